"""What a vision-language model is sent: an image and a prompt in the chat template of its processor.

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

EXAMPLE_SIZE = 512, 384  # width and height of an image that stands for others


@dataclass(frozen=True)
class Chat:
    """One prompt about one image, as a model's processor makes tokens of it."""

    tokens: list[int]  # of the text, in which the image is not yet as many tokens as its size makes it
    image_token: str
    image_token_id: int
    prompt_tokens: list[int]
    examples: list[dict[str, Tensor]]  # what the processor makes of two images that differ everywhere
    preprocessing: dict[str, Any]  # for the data module: the image processor, and the text that goes with each image

    def prompt_places(self, ids: Tensor) -> Tensor:
        """Return the places of the prompt's tokens among those (T,) of an image with it, of which it is the last."""
        prompt = torch.tensor(self.prompt_tokens, device=ids.device)
        starts = (ids.unfold(0, len(prompt), 1) == prompt).all(dim=1).nonzero()
        if not len(starts):
            raise InputError("model.prompt: its tokens are not among those that the processor makes of an image")
        return starts[-1] + torch.arange(len(prompt), device=ids.device)


def load_chat(source: str, options: Mapping[str, Any], prompt: str, config: Any) -> Chat:
    """Load a processor and return what it makes of a prompt; InputError when it is not usable.

    ``options`` are arguments of the processor, ``config`` is the model's. Whatever else Transformers and the processor
    raise is passed on.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(source, **{**options, "trust_remote_code": False})
    tokenizer, images = (getattr(processor, part, None) for part in ("tokenizer", "image_processor"))
    if tokenizer is None or images is None:
        raise InputError(f"its processor ({type(processor).__name__}) is not one of a tokenizer and an image processor")
    settings = json.loads(images.to_json_string())
    if unknown := [name for name in options if name not in settings and name not in ("revision", "trust_remote_code")]:
        raise InputError(
            f"model.options: {name_some(unknown)}: neither the configuration, the weights nor the image processor "
            f"({type(images).__name__}) has a setting of that name"
        )
    image_token_id = image_token_of(config)
    if not getattr(processor, "chat_template", None):
        raise InputError("its processor has no chat template; choose a model that is made for instructions")
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # as the template's own tokenizing does: it may have the BOS token already, which would then be there twice
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    call = {"text": [text], **({"add_special_tokens": False} if has_bos else {})}
    width, height = EXAMPLE_SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = [processor(images=[Image.fromarray(each)], return_tensors="pt", **call) for each in (pixels, 255 - pixels)]
    examples = [{name: values for name, values in one.items() if isinstance(values, Tensor)} for one in made]
    ids = examples[0]["input_ids"][0].tolist()
    if image_token_id not in ids:
        raise InputError(f"its processor puts no token {image_token_id} of its image_token_id where the image is")
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
    """Return the id of the tokens in whose places a model puts images."""
    found = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if not isinstance(found, int):
        raise InputError("its configuration has no image_token_id, so its image has no tokens among those of the text")
    return found


def _tokens_with(tokenizer: Any, ids: list[int], prompt: str) -> list[int]:
    """Return the last and shortest run of tokens whose text has the prompt."""

    def has_prompt(part: list[int]) -> bool:
        return prompt in tokenizer.decode(part, clean_up_tokenization_spaces=False)

    first = next((k for k in reversed(range(len(ids))) if has_prompt(ids[k:])), None)
    if first is None:
        raise InputError(
            f"model.prompt: its tokenizer does not give the text {prompt!r} back, so its tokens can't be found"
        )
    end = next(k for k in range(first + 1, len(ids) + 1) if has_prompt(ids[first:k]))
    return ids[first:end]
