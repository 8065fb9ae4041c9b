"""Vision-language models, from Hugging Face's own hidden states.

T tokens, L layers, D hidden size.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some
from lit_extract.parity.hugging_face import HuggingFaceReference, before_final_norm
from lit_extract.parity.reference import check_same
from lit_extract.parity.vision import VisionReference


class VisionLanguageReference(HuggingFaceReference, VisionReference):
    """The hidden states of one image with the prompt, opened by Pillow and sent by Transformers' own chat template."""

    packages = ("torch", "torchvision", "transformers", "pillow")
    way = "transformers apply_chat_template, output_hidden_states"
    auto_class = "AutoModelForImageTextToText"
    parts = "processor"

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Find the images, which must be those of the file."""
        VisionReference.check_stimuli(self, ids, n_bytes_sha256)

    def build(self) -> nn.Module:
        """Load processor and model; the processor, and what it sends, must be as in the run."""
        known = self.provenance
        self.find_model()
        self.processor = self.load("processor", "AutoProcessor", self.other_options)
        images, tokenizer = self.processor.image_processor, self.processor.tokenizer
        template = self.processor.apply_chat_template(self._chat({"type": "image"}), add_generation_prompt=True)
        starts_itself = bool(tokenizer.bos_token) and template.startswith(tokenizer.bos_token)
        found = {
            "image_processor": type(images).__name__,
            "backend": images.backend,
            "settings": json.loads(images.to_json_string()),
            "call": {"text": [template], **({"add_special_tokens": False} if starts_itself else {})},
        }
        check_same("preprocessing", known["preprocessing"], found)
        encoded = tokenizer(template, add_special_tokens=not starts_itself, return_offsets_mapping=True)
        tokens, spans = encoded["input_ids"], encoded["offset_mapping"]
        sha256 = hashlib.sha256(np.array(tokens, "<i4").tobytes()).hexdigest()
        check_same("chat_tokens_sha256", known["chat_tokens_sha256"], sha256)
        begin = template.rindex(known["prompt_text"])
        end = begin + len(known["prompt_text"])
        touched = [place for place, (first, last) in enumerate(spans) if first < end and last > begin]
        self.prompt = tokens[touched[0] : touched[-1] + 1]
        self.after_prompt = len(tokens) - 1 - touched[-1]
        self.image_token: int = self.config.image_token_id
        check_same("image_token", known["image_token"], tokenizer.convert_ids_to_tokens(self.image_token))
        return HuggingFaceReference.build(self)

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one image through the model; twice, if the last block's output before the final norm is needed."""
        chat = self._chat({"type": "image", "image": self._open(row)})
        sent = self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        weight = next(self.model.parameters())
        inputs = {
            name: values.to(weight.device, weight.dtype if values.is_floating_point() else values.dtype)
            for name, values in sent.items()
        }

        def states() -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = self.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
            return found

        hidden, n_blocks = states(), self.config.get_text_config(decoder=True).num_hidden_layers
        if len(hidden) != n_blocks + 1:
            raise InputError(f"parity: {self.source!r} gives {len(hidden)} hidden states, not {n_blocks + 1}")
        names = ["embeddings", *(f"blocks.{k}" for k in range(n_blocks - 1)), "norm"]
        last = f"blocks.{n_blocks - 1}"
        tokens_of = dict(zip(names, hidden, strict=True))
        if missing := [layer for layer in self.layers if layer not in (*names, last)]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {n_blocks} blocks")
        if last in self.layers:
            tokens_of[last] = before_final_norm(self.model.get_decoder(), lambda: states()[-1], hidden[-1])
        chosen = POOLINGS[self.provenance["pool"]](self, inputs["input_ids"][0].tolist())
        return [tokens_of[layer][0, chosen].float().mean(0) for layer in self.layers], {}

    def image_places(self, ids: list[int]) -> list[int]:
        """Return the places of the image among the tokens."""
        return [place for place, token in enumerate(ids) if token == self.image_token]

    def prompt_places(self, ids: list[int]) -> list[int]:
        """Return the places of the prompt: as far from the end as in the template, where the image is one token."""
        end = len(ids) - self.after_prompt
        places = list(range(end - len(self.prompt), end))
        if [ids[place] for place in places] != self.prompt:
            raise InputError("parity: the prompt's tokens are not as far from the end as in the template")
        return places

    def _chat(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [image, {"type": "text", "text": self.provenance["prompt_text"]}]}]


# For each pooling, a function from token ids to the places of the tokens that it averages.
POOLINGS: dict[str, Callable[[VisionLanguageReference, list[int]], list[int]]] = {
    "image": VisionLanguageReference.image_places,
    "prompt": VisionLanguageReference.prompt_places,
    "last": lambda reference, ids: [len(ids) - 1],
}
