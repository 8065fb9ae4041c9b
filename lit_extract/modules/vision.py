"""Vision extractor: any timm model that is a sequence of blocks of equal width.

B batch, L layers, T tokens, D hidden size, P poolings, H height, W width.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import TypeAdapter
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic wants it until Python 3.12

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.ranks import is_rank_zero
from lit_extract.common.timing import stopwatch
from lit_extract.common.untrusted import MAX_RECORD_BYTES, read_regular, shorten, validate_json
from lit_extract.modules.base import Extractor
from lit_extract.modules.checkpoint import Loaded, check_loaded, loading_noted, read_weights, tensors_behind, unwrap
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import VISION_POOLINGS, VisionPooling, pool_image
from lit_extract.modules.registry import is_timm_name, read_models, unknown_model
from lit_extract.modules.selection import check_pools, select_blocks
from lit_extract.modules.weights import on_cpu_in_float32, path_sha256, widest_output

logger = logging.getLogger(__name__)

MAX_DEPTH, MAX_SIZE = 1000, 2**20  # far more than models have; blocks are made one by one to know their shapes


class VisionExtractor(Extractor):
    """Pooled activations of a vision model's blocks.

    The constructor reads the model's configuration only; weights are loaded in
    :meth:`configure_model`, when a run begins.

    Args:
        name: The model, as timm calls it, such as "vit_base_patch16_224.mae".
        untrained: Random weights (timm's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local weights (safetensors or .pth) instead of the hub's.
        revision: Branch, tag or commit of the weights on the hub.
        options: Further arguments for timm.create_model, such as {img_size: 224}.
        pool: "cls" (class token), "avg" (mean of the patch tokens), "avg_all" (mean of all tokens), or
            a list of these, each its own file.
        layers: "blocks" (all), or the indices of some; negative ones count from the end.
        models: The models.yml in which settings of a name are looked up; default: ./models.yml, else
            the one shipped.
        channels_last: Images and convolutions in channels-last memory format; last bits differ.
    """

    kind = "vision"
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
        layers: Literal["blocks"] | list[int] = "blocks",
        models: str | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if untrained and (checkpoint or revision):
            setting = "checkpoint" if checkpoint else "revision"
            raise InputError(
                f"model.untrained is true, but model.{setting} is {checkpoint or revision!r}; give one of the two"
            )
        if checkpoint and revision:
            raise InputError(
                f"model.checkpoint ({checkpoint!r}) and model.revision ({revision!r}): give one of the two"
            )
        self._timm_name = name if self.model_name == name else f"local-dir:{Path(name.removeprefix('local-dir:'))}"
        self._folder = None if self.model_name == name else self._timm_name.removeprefix("local-dir:")
        if self._folder:
            _check_config(Path(self._folder, "config.json"))
        if self.checkpoint and not untrained and not Path(self.checkpoint).is_file():
            raise InputError(f"model.checkpoint: {self.checkpoint!r} is not a file")
        self._models = models
        if self.options.get("in_chans", 3) != 3:
            raise InputError(f"model.options: in_chans is {self.options['in_chans']}, but images here are RGB: 3")
        skeleton = self._create_skeleton()
        self.preprocessing = _preprocessing(skeleton, self.options)
        self.n_tokens, self.n_dim = _block_shape(name, skeleton, self.preprocessing["input_size"])
        self.block_width = widest_output(skeleton.blocks[0])
        self.n_prefix, has_class_token = _prefix_tokens(skeleton, self.n_tokens)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        notes = skeleton.pretrained_cfg.get("notes") or ()
        self._wants_quickgelu = any("quickgelu" in str(note).lower() for note in notes)
        self.hub_id = str(skeleton.pretrained_cfg.get("hf_hub_id"))
        chosen = select_blocks(layers, len(skeleton.blocks))
        self.layers = [f"blocks.{k}" for k in chosen]
        self.stop_after = f"blocks.{max(chosen)}"
        allowed = [p for p in VISION_POOLINGS if p != "cls" or has_class_token]
        self.pools = check_pools(pool, VISION_POOLINGS, allowed, f"{name!r} has no class token")
        self.backbone: nn.Module | None = None
        self._scale: tuple[Tensor, Tensor] | None = None

    def provenance(self) -> dict[str, Any]:
        """What about the model changes the numbers."""
        channels_last = {"channels_last": True} if self.memory_format is torch.channels_last else {}
        architecture = {}
        if self._folder and (self.untrained or self.checkpoint):
            architecture["config_sha256"] = path_sha256(Path(self._folder, "config.json"))
        return {**super().provenance(), **architecture, **channels_last}

    def configure_model(self) -> None:
        """Build the backbone and load its weights, once, in float32; Lightning moves and casts it."""
        if self.backbone is not None:
            return
        with stopwatch("weights"), on_cpu_in_float32(self.seed):
            self._warn_of_activation()
            backbone: nn.Module = self._create_backbone()
        self.backbone = backbone.eval().requires_grad_(False).to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def activations(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, 3, H, W) uint8 to pooled activations (B, P, L, D) float32, on the device."""
        assert self.backbone is not None, "configure_model() loads the backbone"
        modules = {layer: self.backbone.get_submodule(layer) for layer in self.layers}
        with capture(modules, self.pool_layer, last=self.stop_after) as pooled:
            self.backbone(self.normalize(inputs["image"]))
        return {"feats": torch.stack([pooled[layer] for layer in self.layers], dim=2)}

    def pool_layer(self, hidden: Tensor) -> Tensor:
        """A layer's tokens (B, T, D) to all wanted poolings of them (B, P, D)."""
        return torch.stack([pool_image(hidden, pooling, self.n_prefix) for pooling in self.pools], dim=1)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 pixels to the backbone's input: float32 arithmetic first, then its dtype."""
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
        """Estimate them: the image, and in a block's MLP what comes before and after its activation."""
        return self.input_bytes(0) + self.n_tokens * (4 * self.n_dim + 2 * self.block_width)

    def input_bytes(self, n_tokens: int) -> int:
        """Return those of its pixels."""
        return math.prod(self.preprocessing["input_size"])

    @property
    def loaded(self) -> nn.Module | None:
        """The backbone with its weights, once it is loaded."""
        return self.backbone

    def local_checkpoint(self) -> str | None:
        """The file, or the folder that the name gives."""
        return self.checkpoint or self._folder

    def weights_source(self) -> tuple[str, Sequence[str]]:
        """Timm's repository on the hub."""
        names = ("model", "open_clip_model", "pytorch_model", "open_clip_pytorch_model")
        return self.hub_id, [f"{name}{suffix}" for name in names for suffix in (".safetensors", ".bin")]

    def _create_skeleton(self) -> Any:
        """The model without memory behind its weights, for its shape."""
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                skeleton = timm.create_model(self._timm_name, pretrained=False, **self.options)
        except Exception as error:  # timm asserts, and its models raise what they like
            if ":" in self.model_name or is_timm_name(self.model_name):
                what = f"{self.model_name!r} with {self.options}"
                raise InputError(f"model.name, model.options: timm can't build {what}: {one_line(error)}") from None
            known = [entry.name for entry in read_models(self._models)["vision"]] + timm.list_models(pretrained=True)
            raise unknown_model(self.model_name, dict.fromkeys(known)) from None
        return skeleton.eval()

    def _create_backbone(self) -> Any:
        if self.untrained:
            return timm.create_model(self._timm_name, pretrained=False, **self.options)
        if self.checkpoint and Path(self.checkpoint).suffix == ".npz":
            return self._from_npz(self.checkpoint)
        removed: list[str] = []
        overlay: dict[str, Any] = {}
        if self.checkpoint:
            own = set(self._create_skeleton().state_dict())
            weights, removed = unwrap(read_weights(self.checkpoint), own)
            overlay = {"state_dict": weights, "source": "", "custom_load": False}
        elif not self._folder:  # the commit that was recorded, not what the branch has become since
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
        """Weights in the format of JAX, which timm copies by itself: what it leaves out is still NaN."""
        backbone = timm.create_model(self._timm_name, pretrained=False, **self.options)
        for parameter in backbone.parameters():
            nn.init.constant_(parameter, torch.nan)
        try:
            backbone.load_pretrained(file)
        except Exception as error:  # of timm, numpy and the disk
            raise InputError(
                f"model.checkpoint: {file!r} does not fit {self.model_name!r}: {one_line(error)}"
            ) from error
        missing = [name for name, parameter in backbone.named_parameters() if parameter.isnan().any()]
        self._check(Loaded(True, missing, []))
        return backbone

    def _check(self, loaded: Loaded) -> None:
        """Raise InputError unless the weights are all that the layers need."""
        source = self.local_checkpoint() or f"{self.hub_id}@{self.commit}"
        needed: set[str] = set()
        if loaded.missing:
            size = self.preprocessing["input_size"]
            needed = tensors_behind(self._create_skeleton(), self.layers, self.stop_after, size)
        check_loaded(loaded, needed, source, self.model_name)

    def _warn_of_activation(self) -> None:
        """Warn of CLIP weights whose activation function is another than the model's."""
        variant = self.model_name.replace("_clip_", "_clip_quickgelu_")
        if (
            self._wants_quickgelu
            and not self.untrained
            and "quickgelu" not in self.model_name
            and "act_layer" not in self.options
            and timm.is_model(variant.partition(".")[0])
            and is_rank_zero()
        ):
            warnings.warn(
                f"the weights of {self.model_name} were trained with QuickGELU, which this variant does not have; "
                f"for the original features use --model.name {variant}",
                stacklevel=2,
            )

    def _no_weights(self, reason: str) -> str:
        return (
            f"model.name: the weights of {self.model_name!r} ({self.hub_id}) can't be loaded: {reason}. Without a "
            "network, give --model.checkpoint FILE; for random weights, --model.untrained true"
        )


def _check_config(file: Path) -> None:
    """See that the configuration of a local model is of a size that can be built.

    Raises:
        InputError: It can't be read, or is not.
    """
    what = f"model.name: {file}"
    try:
        settings = validate_json(_CONFIG, read_regular(file, MAX_RECORD_BYTES), what).get("model_args", {})
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or one_line(error)}") from None
    for name, value in settings.items():
        most = MAX_DEPTH if name == "depth" else MAX_SIZE
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise InputError(f"{what}: model_args.{shorten(name)} is {shorten(value)}; {most:,} is possible")


class _Config(TypedDict, total=False):
    model_args: dict[str, Any]


_CONFIG: TypeAdapter[_Config] = TypeAdapter(_Config)


def _preprocessing(skeleton: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Timm's evaluation config of the model, as plain lists and numbers."""
    size = options.get("img_size")
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else None
    config = resolve_model_data_config(skeleton, args={"input_size": (3, *sides)} if sides else {})
    if config["input_size"][0] != 3:
        raise InputError(f"model.name: the model takes images of {config['input_size'][0]} channels; here they are RGB")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _block_shape(name: str, skeleton: nn.Module, input_size: list[int]) -> tuple[int, int]:
    """Tokens and width of the blocks' outputs, from a forward pass without data.

    Raises:
        InputError: The model has no ``blocks``, or they are not (B, T, D) of one shape.
    """
    blocks = getattr(skeleton, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) == 0:
        raise InputError(
            f"model.name: {name!r} has no sequence of blocks; vision transformers have (ViT, DeiT, BEiT, EVA, …)"
        )
    shapes: list[tuple[int, ...]] = []

    def note(output: Any) -> Any:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())
        return output

    try:
        with (
            capture({str(k): block for k, block in enumerate(blocks)}, note, last=str(len(blocks) - 1)),
            torch.no_grad(),
        ):
            skeleton(torch.empty(1, *input_size, device="meta"))
    except Exception as error:  # of any model of timm's
        raise InputError(
            f"model.name: {name!r} can't compute an image of {input_size}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if any(len(shape) == 0 or shape[0] != 1 for shape in shapes):  # CrossViT: two sequences; TNT: pixels of each patch
        raise InputError(f"model.name: the blocks of {name!r} do not put out one sequence of tokens for an image")
    if len(shapes) != len(blocks):  # Twins: groups of blocks, of which no group is called
        raise InputError(f"model.name: the blocks of {name!r} are not called one after the other, each once")
    kinds = list(dict.fromkeys(shape[1:] for shape in shapes))
    shown = name_some([str(kind) for kind in kinds])
    if any(len(kind) != 2 for kind in kinds):
        raise InputError(f"model.name: the blocks of {name!r} put out maps, not tokens (T, D): {shown}")
    if len({kind[1] for kind in kinds}) > 1:
        raise InputError(
            f"model.name: the blocks of {name!r} are not of one width: {shown}; features need the same in every layer"
        )
    if len(kinds) > 1:  # ConViT
        raise InputError(
            f"model.name: the number of tokens changes between the blocks of {name!r} (T, D): {shown}; a class token "
            "that joins later can't be told apart in each layer, which is not supported"
        )
    return shapes[0][1], shapes[0][2]


def _prefix_tokens(skeleton: nn.Module, n_tokens: int) -> tuple[int, bool]:
    """How many tokens come before the patches inside the blocks, and whether the first is a class token.

    Some models (CaiT, XCiT) have a class token that joins only after the blocks: counted, not assumed.
    """
    declared: int = getattr(skeleton, "num_prefix_tokens", 0)
    stem = getattr(skeleton, "patch_embed", None) or getattr(skeleton, "stem", None)
    n_patches = getattr(stem, "num_patches", None)
    n_prefix = declared if n_patches is None else n_tokens - n_patches
    if n_prefix not in (0, declared):
        raise InputError(
            f"model.name: timm says that the model has {n_patches} patches and {declared} tokens before them, but its "
            f"blocks have {n_tokens} tokens: patches can't be told apart"
        )
    embeddings = getattr(skeleton, "embeds", skeleton)  # where NaFlexViT has it
    return n_prefix, n_prefix > 0 and getattr(embeddings, "cls_token", None) is not None
