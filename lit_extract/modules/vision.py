"""Vision extractor: any timm model with blocks of equal width that output tokens, or stages that output maps.

B batch, L layers, T tokens, D hidden size, P poolings, H height, W width.
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.timing import stopwatch
from lit_extract.modules.after_blocks import Output
from lit_extract.modules.architecture import check_config, check_preprocessing, create_skeleton, preprocessing_of
from lit_extract.modules.base import Extractor
from lit_extract.modules.blocks import Blocks, NoBlocks
from lit_extract.modules.checkpoint import Loaded, check_loaded, loading_noted, read_weights, tensors_behind, unwrap
from lit_extract.modules.layer_set import CannotComputeError, LayerSet
from lit_extract.modules.pooling import (
    GRID,
    HEAD,
    TOKENS,
    VISION_POOLINGS,
    LayerForm,
    VisionPooling,
    check_pools,
    vision_pooling,
)
from lit_extract.modules.room import loading_shown, where_it_runs
from lit_extract.modules.selection import Layers
from lit_extract.modules.stages import Stages
from lit_extract.modules.weights import on_cpu_in_float32, path_sha256
from lit_extract.modules.weights_on_disk import ScratchFile, stream_blocks

logger = logging.getLogger(__name__)


class VisionExtractor(Extractor):
    """Pooled activations of a vision model's blocks, or of its stages.

    Some models, such as ResNet, ConvNeXt, Swin and Hiera, have no blocks that output tokens of one width. Their layers
    are stages: the maps that timm's ``forward_intermediates`` returns.

    The constructor only reads the model's configuration; weights are loaded in :meth:`configure_model`, when a run
    starts.

    Args:
        name: The model, as timm calls it, such as "vit_base_patch16_224.mae".
        untrained: Use random weights (timm's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local weights (safetensors or .pth) to load instead of those on the hub.
        revision: Branch, tag or commit of the weights on the hub.
        options: Further arguments for timm.create_model, such as {img_size: 224}.
        pool: "cls" (class token), "avg" (mean of the patch tokens, or of the places of a map), "avg_all" (mean of all
            tokens), or a list of these, one file per pooling; "head" (the model's own output: embedding or logits), a
            single layer called head; "grid4" or another number (means of the patch tokens over 4 × 4 parts of the
            image: 16 vectors per layer); or "tokens" (all tokens, unpooled), which stay in the store unless --finalize
            true asks for files. Stages have no class token: they take "avg", "head", "grid4" and "tokens".
        layers: "blocks" (all blocks, or all stages), "norm" (the tokens after the final norm, for models with blocks),
            one block or stage, by its index or its name ("blocks.3"), or a list of these; negative indices count from
            the end.
        models: YAML file with settings for named models; default: ./models.yml, else the one that ships with the
            package.
        channels_last: Use the channels-last memory format for images and convolutions; the last bits of the features
            differ.
        preprocessing: Settings of timm's evaluation transform that replace the model's own, such as {crop_pct: 1.0,
            crop_mode: squash}; also interpolation, mean, std, and, if the model takes other sizes, input_size (3, H,
            W).
        stream: Read the weights of each block from disk when they are needed, for many images at once, so only two
            blocks and the rest of the model must fit in memory. The numbers are the same. Default: only when the
            weights do not fit in memory.
        dtype: Data type of the written features, whatever the precision of the run. float16 and bfloat16 halve their
            size. In float16, values beyond 65,504 become infinite, and their rows are listed.
    """

    kind = "vision"
    copies_while_loading = 2  # the checkpoint's and the model's
    inputs = ("image",)
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
        models: str | None = None,
        channels_last: bool = False,
        preprocessing: dict[str, Any] | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        stream: bool | None = None,
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._models, self.stream = models, stream
        self._timm_name = name if self.model_name == name else f"local-dir:{Path(name.removeprefix('local-dir:'))}"
        self._folder = None if self.model_name == name else self._timm_name.removeprefix("local-dir:")
        self._check_settings(checkpoint, revision)
        given = check_preprocessing(preprocessing or {}, "model.preprocessing")
        skeleton = self._skeleton()
        own = preprocessing_of(skeleton, self.options)
        self.preprocessing = {**own, **given}
        self._preprocessing_given = [key for key, value in own.items() if self.preprocessing[key] != value]
        try:
            self.layer_set = _layers_of(name, skeleton, pool, layers, own["input_size"])
        except CannotComputeError as error:
            with_options = f"options: with {self.options}, " if self.options else "name: "
            raise InputError(f"model.{with_options}{error}") from error
        if "input_size" in self._preprocessing_given:
            self._use_size(skeleton)
        self.layers, self.notes = self.layer_set.layers, self.layer_set.notes
        self.pools = check_pools(pool, [*VISION_POOLINGS, GRID], self.layer_set.allowed, self.layer_set.why_no_others)
        self.layer_shapes = [vision_pooling(self.pools[0]).shape(form) for form in self.layer_set.forms]
        self.makes_files = TOKENS not in self.pools
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        if not channels_last:  # a property of the memory of weights, which streaming replaces
            self.note_blocks(self.layer_set.blocks_of(skeleton))
        notes = skeleton.pretrained_cfg.get("notes") or ()
        self._wants_quickgelu = any("quickgelu" in str(note).lower() for note in notes)
        self.hub_id = str(skeleton.pretrained_cfg.get("hf_hub_id"))
        self.backbone: nn.Module | None = None
        self._scale: tuple[Tensor, Tensor] | None = None

    def _check_settings(self, checkpoint: str | None, revision: str | None) -> None:
        """Raise InputError if settings contradict each other, or files are missing."""
        if self.untrained and (checkpoint or revision):
            setting = "checkpoint" if checkpoint else "revision"
            raise InputError(
                f"model.untrained is true, but model.{setting} is {checkpoint or revision!r}; give one of the two"
            )
        if checkpoint and revision:
            raise InputError(
                f"model.checkpoint ({checkpoint!r}) and model.revision ({revision!r}): give one of the two"
            )
        if self._folder:
            check_config(Path(self._folder, "config.json"))
        if self.checkpoint and not self.untrained and not Path(self.checkpoint).is_file():
            raise InputError(f"model.checkpoint: {self.checkpoint!r} is not a file")
        if self.options.get("in_chans", 3) != 3:
            raise InputError(f"model.options: in_chans is {self.options['in_chans']}, but RGB images have 3 channels")

    def _use_size(self, skeleton: nn.Module) -> None:
        """Use images of another size than the model's own, if the model takes them."""
        size = self.preprocessing["input_size"]
        if img_size := self.options.get("img_size"):
            raise InputError(
                f"model.preprocessing: input_size is {size}, but img_size of model.options is {img_size}; give one"
            )
        try:
            self.layer_set.measure(skeleton, size)
        except (InputError, NoBlocks) as error:
            sides = size[1] if size[1] == size[2] else size[1:]
            raise InputError(
                f"model.preprocessing: input_size {size}: {error}; to build the model for images of that size, give "
                f"--model.options '{{img_size: {sides}}}'"
            ) from None

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers."""
        channels_last = {"channels_last": True} if self.memory_format is torch.channels_last else {}
        architecture = {}
        if self._folder and (self.untrained or self.checkpoint):
            architecture["config_sha256"] = path_sha256(Path(self._folder, "config.json"))
        given = {"preprocessing_given": self._preprocessing_given} if self._preprocessing_given else {}
        return {**super().provenance(), **architecture, **channels_last, **given}

    def configure_model(self) -> None:
        """Build the backbone and load its weights, once, in float32; Lightning moves and casts it."""
        if self.backbone is not None:
            return
        dtype, device, _ = where_it_runs(self._trainer)
        self._warn_of_activation()
        is_streamed = self.is_streamed(self._trainer)
        load = partial(self._streamed_backbone, dtype, device) if is_streamed else self._new_backbone
        with stopwatch("weights"), loading_shown(self, torch.float32, torch.device("cpu"), is_streamed):
            backbone = load()
        self.backbone = backbone.eval().requires_grad_(False).to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def _new_backbone(self) -> nn.Module:
        with on_cpu_in_float32(self.seed):
            backbone: nn.Module = self._create_backbone()
        return backbone

    def _streamed_backbone(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Return the backbone with the weights of its blocks in a file, because timm builds models in memory."""
        room = torch.float32.itemsize * self.num_params
        scratch = ScratchFile(room, 2 * room + 2**30)
        with scratch.parameters_kept():
            backbone = self._new_backbone()
        places = scratch.places_of(backbone, dtype)
        self.streamed = stream_blocks(backbone, self.layer_set.blocks_of(backbone), places, device)
        return backbone

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn images (B, 3, H, W) uint8 into pooled activations (B, P, numbers of a row) float32, on the device."""
        assert self.backbone is not None, "configure_model() loads the backbone"
        pooled = self.layer_set.run(self.backbone, self.normalize(inputs["image"]), self._pool)
        return {"feats": torch.cat([pooled[layer] for layer in self.layers], dim=2)}

    def _pool(self, tokens: Tensor, form: LayerForm) -> Tensor:
        """Pool a layer's tokens (B, T, D), or the model's output (B, D), in all wanted ways: (B, P, numbers)."""
        pooled = [vision_pooling(pooling).pool(tokens, form) for pooling in self.pools]
        return torch.stack(pooled, dim=1).flatten(2)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into the backbone's input: float32 arithmetic first, then its dtype."""
        assert self.backbone is not None
        if self._scale is None or self._scale[0].device != images.device:
            mean, std = (
                torch.tensor(self.preprocessing[key], dtype=torch.float32, device=images.device).view(3, 1, 1)
                for key in ("mean", "std")
            )
            self._scale = (mean, std)
        mean, std = self._scale
        dtype = next(self.backbone.parameters()).dtype
        return images.float().div_(255).sub_(mean).div_(std).to(dtype).contiguous(memory_format=self.memory_format)

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers from a forward pass without data."""
        return self.input_bytes(0) + self.layer_set.held

    def numbers_between_blocks(self, n_tokens: int) -> int:
        """Estimate the numbers of its tokens and of the arguments of a block."""
        return self.input_bytes(0) + 2 * self.tokens_a_row(0) * max(form.width for form in self.layer_set.forms)

    def tokens_a_row(self, n_tokens: int) -> int:
        """Return the number of tokens of an image."""
        return max(form.n_tokens for form in self.layer_set.forms)

    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of its pixels."""
        return math.prod(self.preprocessing["input_size"])

    @property
    def loaded(self) -> nn.Module | None:
        """Return the backbone with its weights, once it is loaded."""
        return self.backbone

    def local_checkpoint(self) -> str | None:
        """Return the file of local weights, or the folder in the name; None if the weights come from the hub."""
        return self.checkpoint or self._folder

    def weights_source(self) -> tuple[str, Sequence[str]]:
        """Return timm's repository on the hub."""
        names = ("model", "open_clip_model", "pytorch_model", "open_clip_pytorch_model")
        return self.hub_id, [f"{name}{suffix}" for name in names for suffix in (".safetensors", ".bin")]

    def _skeleton(self) -> Any:
        return create_skeleton(self._timm_name, self.model_name, self.options, self._models)

    def _create_backbone(self) -> Any:
        if self.untrained:
            return timm.create_model(self._timm_name, pretrained=False, **self.options)
        if self.checkpoint and Path(self.checkpoint).suffix == ".npz":
            return self._from_npz(self.checkpoint)
        removed: list[str] = []
        overlay: dict[str, Any] = {}
        if self.checkpoint:
            own = set(self._skeleton().state_dict())
            weights, removed = unwrap(read_weights(self.checkpoint), own)
            overlay = {"state_dict": weights, "source": "", "custom_load": False}
            if HEAD in self.layers and self.options.get("num_classes"):
                overlay["num_classes"] = self.options["num_classes"]  # else timm drops a head of another size
        elif not self._folder:  # the recorded commit, not the current state of the branch
            overlay = {"hf_hub_id": f"{self.hub_id}@{self.commit}"}
        try:
            with loading_noted() as loaded:
                backbone = timm.create_model(
                    self._timm_name, pretrained=True, pretrained_cfg_overlay=overlay, **self.options
                )
        except Exception as error:  # network, hub, disk and format errors of several libraries
            if local := self.local_checkpoint():
                raise InputError(
                    f"model.checkpoint: {local!r} does not fit {self.model_name!r}: {one_line(error)}"
                ) from error
            raise InputError(self._no_weights(f"{type(error).__name__}: {one_line(error)}")) from error
        backbone.pretrained_cfg.pop("state_dict", None)  # it would be kept twice
        self._check(loaded)
        if removed:
            logger.info(f"{self.checkpoint}: the weights fit without the wrappers {', '.join(removed)}")
        return backbone

    def _from_npz(self, file: str) -> Any:
        """Load weights in JAX's format; timm copies them itself, and parameters that it leaves out stay NaN."""
        backbone = timm.create_model(self._timm_name, pretrained=False, **self.options)
        for parameter in backbone.parameters():
            nn.init.constant_(parameter, torch.nan)
        try:
            backbone.load_pretrained(file)
        except Exception as error:  # raised by timm, numpy and the disk
            raise InputError(
                f"model.checkpoint: {file!r} does not fit {self.model_name!r}: {one_line(error)}"
            ) from error
        missing = [name for name, parameter in backbone.named_parameters() if parameter.isnan().any()]
        self._check(Loaded(True, missing, []))
        return backbone

    def _check(self, loaded: Loaded) -> None:
        """Raise InputError unless the weights have everything that the layers need."""
        source = self.local_checkpoint() or f"{self.hub_id}@{self.commit}"
        needed: set[str] = set()
        if loaded.missing:
            skeleton = self._skeleton()
            image = torch.empty(1, *self.preprocessing["input_size"], device="meta")
            needed = tensors_behind(
                skeleton, lambda: self.layer_set.run(skeleton, image, lambda layer, _: layer).values()
            )
        check_loaded(loaded, needed, self.layers, source, self.model_name)

    def _warn_of_activation(self) -> None:
        """Warn if CLIP weights were trained with another activation function than the model's."""
        variant = self.model_name.replace("_clip_", "_clip_quickgelu_")
        if (
            self._wants_quickgelu
            and not self.untrained
            and "quickgelu" not in self.model_name
            and "act_layer" not in self.options
            and timm.is_model(variant.partition(".")[0])
        ):
            logger.warning(
                f"the weights of {self.model_name} were trained with QuickGELU, which this variant does not have; "
                f"for the original features use --model.name {variant}"
            )

    def _no_weights(self, reason: str) -> str:
        return (
            f"model.name: the weights of {self.model_name!r} ({self.hub_id}) can't be loaded: {reason}. Without a "
            "network, give --model.checkpoint FILE; for random weights, --model.untrained true"
        )


def _layers_of(name: str, skeleton: Any, pool: str | Sequence[str], layers: Layers, size: list[int]) -> LayerSet:
    """Return the wanted layers: the output, the blocks if they output tokens of one width, else the stages."""
    if HEAD in ([pool] if isinstance(pool, str) else pool):
        return Output(name, skeleton, layers, size)
    try:
        return Blocks(name, skeleton, layers, size)
    except NoBlocks as reason:
        return Stages(name, skeleton, layers, size, str(reason))
