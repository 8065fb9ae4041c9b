"""Vision models of Transformers, from its own hidden states.

T tokens, D hidden size.
"""

import json
import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some
from lit_extract.parity.hugging_face import HuggingFaceReference
from lit_extract.parity.reference import check_same
from lit_extract.parity.vision import VisionReference, pool_tokens


class TransformersVisionReference(HuggingFaceReference, VisionReference):
    """The hidden states of one image, opened by Pillow and sent through the model's own image processor."""

    packages = ("torch", "torchvision", "transformers", "pillow")
    way = "transformers output_hidden_states"
    auto_class = "AutoModel"
    parts = "image processor"

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Find the images, which must be those of the file."""
        VisionReference.check_stimuli(self, ids, n_bytes_sha256)

    def build(self) -> nn.Module:
        """Load processor and model; the settings of the processor must be those of the file."""
        known = self.provenance["preprocessing"]
        self.find_model()
        self.takes_videos = known["image_processor"].endswith("VideoProcessor")
        where: dict[str, Any] = {name: self.options[name] for name in ("revision", "subfolder") if name in self.options}
        if self.takes_videos:
            self.processor = self.load("video processor", "AutoVideoProcessor", where)
        else:
            self.processor = self.load("image processor", "AutoImageProcessor", where, backend=known["backend"])
        found = {
            "image_processor": type(self.processor).__name__,
            "backend": known["backend"] if self.takes_videos else self.processor.backend,
            "settings": json.loads(self.processor.to_json_string()),
        }
        check_same("preprocessing", known, found)
        return HuggingFaceReference.build(self)

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one image through the model."""
        image, weight = self._open(row), next(self.model.parameters())
        sent = {"videos": [np.array([image])]} if self.takes_videos else {"images": image}
        inputs = {
            name: values.to(weight.device, weight.dtype if values.is_floating_point() else values.dtype)
            for name, values in self.processor(**sent, return_tensors="pt").items()
        }
        if self.layers == ["head"]:
            return [self._own_output(inputs)], {}
        names = [name for name in ("vision_model", "vision_tower", "image_encoder") if hasattr(self.model, name)]
        tower = getattr(self.model, names[0]) if names else self.model
        tower.config.tie_last_hidden_states = False  # keep the last state from before the final norm
        output = tower(**inputs, output_hidden_states=True)
        tokens_of = {f"blocks.{k}": state[0] for k, state in enumerate(output.hidden_states[1:])}
        tokens_of["norm"] = output.last_hidden_state[0]
        if missing := [layer for layer in self.layers if layer not in tokens_of]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {name_some([*tokens_of])}")
        pool, pixels = self.provenance["pool"], next(iter(inputs.values()))
        shape = pixels.shape[-2] / pixels.shape[-1]
        divided = [self._divided(tokens_of[layer], inputs) for layer in self.layers]
        return [pool_tokens(prefix[None], patches[None], pool, shape) for prefix, patches in divided], {}

    def _own_output(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the model's own output, a vector (D,)."""
        compute = getattr(self.model, "get_image_features", self.model)
        vector: Tensor = compute(**inputs).pooler_output[0]
        return vector.float()

    def _divided(self, tokens: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Divide tokens (T, D) into prefix tokens and patch tokens, which come last."""
        pixels, mask = next(iter(inputs.values())), inputs.get("pixel_attention_mask")
        if mask is not None:
            return tokens[:0], tokens[mask[0].bool()]
        side = getattr(self.config, "vision_config", self.config).patch_size
        n_patches = math.prod(pixels.shape[-2:]) // (side**2 if isinstance(side, int) else math.prod(side))
        return tokens[:-n_patches], tokens[-n_patches:]
