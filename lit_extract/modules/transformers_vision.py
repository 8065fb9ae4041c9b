"""Vision extractor for models of Transformers: any sequence of blocks of equal width that takes images.

B batch, L layers, T tokens, D hidden size, P poolings, H height, W width.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lit_extract.common.errors import InputError, name_some
from lit_extract.modules.checkpoint import refuse_random, tensors_behind
from lit_extract.modules.hooks import capture
from lit_extract.modules.hugging_face import HuggingFaceExtractor
from lit_extract.modules.pooling import (
    CLS,
    GRID,
    HEAD,
    LANGUAGE_POOLINGS,
    TOKENS,
    VISION_POOLINGS,
    VisionPooling,
    check_pools,
    vision_pooling,
)
from lit_extract.modules.pretrained import create_skeleton, find_blocks
from lit_extract.modules.selection import NORM, VISION_LAYERS, Layers, blocks_among, select_layers
from lit_extract.modules.vision_tower import (
    MASK,
    arguments_of,
    dissect,
    find_tower,
    output_meaning,
    output_width,
    own_output,
    run_tower,
    vision_config,
)
from lit_extract.modules.weights import widest_output


class TransformersVisionExtractor(HuggingFaceExtractor):
    """Pooled activations of the blocks of a vision model of Transformers, such as DINOv3, AIMv2 or V-JEPA 2.

    Images go through the model's own image processor. The constructor only reads configurations; weights are loaded in
    :meth:`configure_model`.

    Args:
        name: The model on the Hugging Face hub, such as "facebook/dinov3-vits16-pretrain-lvd1689m", or a local folder
            with config.json, the weights and preprocessor_config.json. Of a model of images and text, such as CLIP, the
            vision model is used.
        untrained: Use random weights (the architecture's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local folder or repository on the hub to load instead of name. An untrained model takes its
            configuration and image processor from there.
        revision: Branch, tag or commit on the hub.
        options: Further arguments for from_pretrained, such as {attn_implementation: eager}.
        pool: "cls" (class token), "avg" (mean of the patch tokens), "avg_all" (mean of all tokens), or a list of these,
            one file per pooling; "head" (the model's own output: its pooler_output, or the projected embedding of an
            image), a single layer called head; "grid4" or another number (means of the patch tokens over 4 × 4 parts of
            the image: 16 vectors per layer); or "tokens" (all tokens, unpooled), which stay in the store unless
            --finalize true asks for files.
        layers: "blocks" (all), "norm" (the tokens after the final norm), one block, by its index or its name
            ("blocks.3"), or a list of these; negative indices count from the end.
        backend: Image processor: "torchvision" (fast) or "pil" (slow); they resize differently. Default: the choice of
            Transformers. The metadata of the features record its class and settings.
        models: YAML file with settings for named models; default: ./models.yml, else the one that ships with the
            package.
        dtype: Data type of the written features, whatever the precision of the run. float16 and bfloat16 halve their
            size. In float16, values beyond 65,504 become infinite, and their rows are listed.
    """

    kind = "vision"
    auto_class = "AutoModel"
    parts = "image processor (preprocessor_config.json)"
    rows_a_pass_on_cpu = 16

    def __init__(
        self,
        name: str,
        untrained: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        pool: VisionPooling | list[VisionPooling] = "cls",
        layers: Layers = "blocks",
        backend: Literal["torchvision", "pil"] | None = None,
        models: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype=dtype)
        self.config = self.load_config()
        if self.other_options.keys() - self._from.keys():
            unknown = [repr(option) for option in self.other_options if option not in self._from]
            raise InputError(f"model.options: neither the configuration nor loading weights takes {name_some(unknown)}")
        self._of_tower = vision_config(self.config, self.model_name)
        skeleton = self._skeleton()
        tower = find_tower(skeleton, self.model_name)
        self._backend, self._takes_videos = backend, tower.main_input_name == "pixel_values_videos"
        self.preprocessing, self._example = self._load_processor()
        self.inputs = arguments_of(tower, self._example)
        example = self._meta_example()
        self._input_numbers = sum(self._example[name].numel() for name in self.inputs)
        self.anatomy = dissect(self.model_name, tower, self._of_tower, example)
        blocks = find_blocks(tower, self._of_tower.num_hidden_layers)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.block_width = widest_output(blocks[0])
        self.layers = select_layers(layers, len(blocks), VISION_LAYERS)
        self.pools = self._check_pools(pool)
        form = self.anatomy.form
        if HEAD in self.pools:
            if layers != "blocks":
                raise InputError(
                    f"model.layers: {layers} can't be combined with model.pool head, which has one layer only"
                )
            self.layers = [HEAD]
            form = form._replace(width=output_width(self.model_name, skeleton, tower, example))
            self.notes = {"head_meaning": output_meaning(skeleton, tower)}
        elif NORM in self.layers and self.anatomy.norm is None:
            raise InputError(
                f"model.layers: {self.model_name!r} has no final norm over its tokens; for its last block use layers: "
                "[-1]"
            )
        self.layer_shapes = [vision_pooling(self.pools[0]).shape(form)] * len(self.layers)
        self.makes_files = TOKENS not in self.pools

    def _check_pools(self, pool: str | list[str]) -> list[str]:
        """Return the wanted poolings, if the model can give them."""
        known = [*VISION_POOLINGS, GRID]
        if MASK in self.inputs:
            allowed = [name for name in known if name not in (CLS, TOKENS, GRID)]
            return check_pools(pool, known, allowed, f"{self.model_name!r} has no class token, and pads its patches")
        allowed = [name for name in known if name != CLS or self.anatomy.has_class_token]
        return check_pools(pool, known, allowed, f"{self.model_name!r} has no class token, or several")

    def use_revision(self, commit: str) -> None:
        """Take the image processor from a commit on the hub."""
        self.preprocessing, self._example = self._load_processor()

    def check_loaded(self, model: Any, random: dict[str, str]) -> None:
        """Refuse a model whose layers depend on random parameters."""
        if not random:
            return
        skeleton, example = self._skeleton(), self._meta_example()
        needed = tensors_behind(skeleton, lambda: self._layers_of(skeleton, example, torch.Tensor.sum).values())
        refuse_random(self.source, random, needed.__contains__)

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the processor's output for images, (B, 1, …) per tensor, into pooled activations (B, P, L·D) float32."""
        dtype = next(self.model.parameters()).dtype
        given = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        given = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        mask = given[MASK].bool() if MASK in given else None

        def pool(hidden: Tensor) -> Tensor:
            return torch.stack([self._pool(pooling, hidden, mask) for pooling in self.pools], dim=1).flatten(2)

        pooled = self._layers_of(self.model, given, pool)
        return {"feats": torch.cat([pooled[layer] for layer in self.layers], dim=2)}

    def _pool(self, pooling: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Pool tokens (B, T, D), or the model's output (B, D), without patches outside a mask (B, T)."""
        if mask is not None and pooling in ("avg", "avg_all"):
            return LANGUAGE_POOLINGS["avg"](hidden, mask, (0, 0))
        return vision_pooling(pooling).pool(hidden, self.anatomy.form)

    def _layers_of(
        self, model: Any, inputs: Mapping[str, Tensor], keep: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Return ``keep`` of each layer's output for images."""
        tower = find_tower(model, self.model_name)
        if self.layers == [HEAD]:
            output = own_output(model, tower, inputs)
            assert output is not None, "the constructor has seen it"
            return {HEAD: keep(output)}
        blocks = find_blocks(tower, self._of_tower.num_hidden_layers)
        chosen = blocks_among(self.layers)
        modules: dict[str, nn.Module] = {layer: blocks[k] for layer, k in chosen.items()}
        last = max(chosen, key=chosen.__getitem__, default=None)
        if NORM in self.layers:
            assert self.anatomy.norm is not None
            modules[NORM], last = tower.get_submodule(self.anatomy.norm), NORM
        with capture(modules, keep, last) as kept:
            run_tower(tower, inputs)
        return kept

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers of the image, and of a block's MLP before and after its activation."""
        form = self.anatomy.form
        return self._input_numbers + form.n_tokens * (4 * form.width + 2 * self.block_width)

    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of the processor's output for an image, float32."""
        return 4 * self._input_numbers

    def _skeleton(self) -> Any:
        return create_skeleton(self.config, self.settings, self.model_name, self.auto_class)

    def _meta_example(self) -> dict[str, Any]:
        """Return the inputs of one image for a skeleton, which can read neither pixels nor a mask."""
        chosen = {name: self._example[name] for name in self.inputs if name != MASK}
        found = {name: tensor.to("meta") if tensor.is_floating_point() else tensor for name, tensor in chosen.items()}
        return found | ({MASK: None} if MASK in self.inputs else {})

    def _load_processor(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the settings of the image processor for the data module, and the processor's output for an image."""
        import transformers

        loader = transformers.AutoVideoProcessor if self._takes_videos else transformers.AutoImageProcessor
        given: dict[str, Any] = {name: self._from[name] for name in ("revision", "subfolder") if name in self._from}
        if self._backend:
            given["backend"] = self._backend
        try:
            processor = loader.from_pretrained(self.source, trust_remote_code=False, **given)
            example, other = (self._process(processor, size) for size in ((224, 224), (224, 336)))
        except Exception as error:  # raised by the hub, the disk, the format and the processor
            raise self.unavailable(error) from error
        if any(example[name].shape != other[name].shape for name in example):
            raise InputError(
                f"model.name: {type(processor).__name__} of {self.model_name!r} outputs images of different sizes, "
                "which is not supported"
            )
        backend = getattr(processor, "backend", "torchvision")  # the only one of a video processor
        if self._backend not in (None, backend):
            raise InputError(
                f"model.backend: {self._backend!r} is not available for {type(processor).__name__}; it has {backend!r}"
            )
        settings = {
            "image_processor": type(processor).__name__,
            "backend": backend,
            "settings": json.loads(processor.to_json_string()),
        }
        return settings, example

    def _process(self, processor: Any, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the output of a processor for a black image (H, W)."""
        black = np.zeros((*size, 3), np.uint8)
        image = {"videos": [black[None]]} if self._takes_videos else {"images": [Image.fromarray(black)]}
        made = processor(**image, return_tensors="pt")
        return {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}
