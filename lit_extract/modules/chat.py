"""The input of a vision-language model: an image and a prompt in the chat template of its processor.

T tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_extract.common.errors import InputError, name_some

EXAMPLE_SIZE = 512, 384  # width and height of an example image


@dataclass(frozen=True)
class Chat:
    """One prompt about one image, as the processor of a model tokenizes it."""

    tokens: list[int]  # of the text, before the image is expanded to as many tokens as its size needs
    image_token: str
    image_token_id: int
    prompt_tokens: list[int]
    examples: list[dict[str, Tensor]]  # the processor's output for two images that differ everywhere
    preprocessing: dict[str, Any]  # for the data module: the image processor, and the text that goes with each image

    def prompt_places(self, ids: Tensor) -> Tensor:
        """Return the places of the prompt's tokens among the tokens ``ids`` (T,) of an image with the prompt."""
        prompt = torch.tensor(self.prompt_tokens, device=ids.device)
        starts = (ids.unfold(0, len(prompt), 1) == prompt).all(dim=1).nonzero()
        if not len(starts):
            raise InputError("model.prompt: its tokens are missing from the output of the processor")
        return starts[-1] + torch.arange(len(prompt), device=ids.device)


def load_chat(source: str, options: Mapping[str, Any], prompt: str, config: Any) -> Chat:
    """Load a processor and tokenize a prompt; raise InputError if the processor is not usable.

    ``options`` are arguments of the processor, ``config`` is the model's configuration. Other errors of Transformers
    and the processor are passed on.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(source, **{**options, "trust_remote_code": False})
    tokenizer, images = (getattr(processor, part, None) for part in ("tokenizer", "image_processor"))
    if tokenizer is None or images is None:
        raise InputError(f"its processor ({type(processor).__name__}) has no tokenizer and image processor")
    settings = json.loads(images.to_json_string())
    if unknown := [name for name in options if name not in settings and name not in ("revision", "trust_remote_code")]:
        raise InputError(
            f"model.options: {name_some(unknown)}: neither the configuration, the weights nor the image processor "
            f"({type(images).__name__}) has a setting of that name"
        )
    image_token_id = image_token_of(config)
    if not getattr(processor, "chat_template", None):
        raise InputError("its processor has no chat template; choose a model that is tuned for instructions")
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # the template may contain the BOS token already; it must not be added twice
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    call = {"text": [text], **({"add_special_tokens": False} if has_bos else {})}
    width, height = EXAMPLE_SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = [processor(images=[Image.fromarray(each)], return_tensors="pt", **call) for each in (pixels, 255 - pixels)]
    examples = [{name: values for name, values in one.items() if isinstance(values, Tensor)} for one in made]
    ids = examples[0]["input_ids"][0].tolist()
    if image_token_id not in ids:
        raise InputError(f"its processor does not put its image token ({image_token_id}) in the place of the image")
    return Chat(
        tokens=tokenizer(text, add_special_tokens=not has_bos)["input_ids"],
        image_token=str(tokenizer.convert_ids_to_tokens(image_token_id)),
        image_token_id=image_token_id,
        prompt_tokens=_tokens_with(tokenizer, ids, prompt),
        examples=examples,
        preprocessing={
            "image_processor": type(images).__name__,
            "backend": str(getattr(images, "backend", "")),
            "settings": settings,
            "call": call,
        },
    )


def image_token_of(config: Any) -> int:
    """Return the id of the tokens that a model replaces with an image."""
    found = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if not isinstance(found, int):
        raise InputError("its configuration has no image_token_id, so its images are not tokens of the text")
    return found


def _tokens_with(tokenizer: Any, ids: list[int], prompt: str) -> list[int]:
    """Return the last and shortest run of tokens whose text contains the prompt."""

    def has_prompt(part: list[int]) -> bool:
        return prompt in tokenizer.decode(part, clean_up_tokenization_spaces=False)

    first = next((k for k in reversed(range(len(ids))) if has_prompt(ids[k:])), None)
    if first is None:
        raise InputError(
            f"model.prompt: the tokenizer does not decode its tokens back to {prompt!r}, so they can't be found"
        )
    end = next(k for k in range(first + 1, len(ids) + 1) if has_prompt(ids[first:k]))
    return ids[first:end]
