"""Vision extractor: any timm model that is a sequence of blocks of equal width.

B batch, L layers, T tokens, D hidden size, P poolings, H height, W width.
"""

import hashlib
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning.pytorch import LightningModule
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lit_extract.errors import InputError, name_some, one_line
from lit_extract.modules.hooks import capture
from lit_extract.modules.pooling import VISION_POOLINGS, VisionPooling, pool_tokens
from lit_extract.registry import find_model, read_models, unknown_model


class VisionExtractor(LightningModule):
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
    """

    kind = "vision"

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
    ) -> None:
        super().__init__()
        entry = find_model("vision", name, models)
        if entry is not None:
            checkpoint = checkpoint or (None if untrained else entry.checkpoint)
            revision = revision or (None if untrained else entry.revision)
            options = {**entry.options, **(options or {})}
        if untrained and (checkpoint or revision):
            setting = "checkpoint" if checkpoint else "revision"
            raise InputError(
                f"model.untrained is true, but model.{setting} is {checkpoint or revision!r}; give one of the two"
            )
        if checkpoint and revision:
            raise InputError(
                f"model.checkpoint ({checkpoint!r}) and model.revision ({revision!r}): give one of the two"
            )
        if checkpoint and not Path(checkpoint).is_file():
            raise InputError(f"model.checkpoint: {checkpoint!r} is not a file")
        self.model_name, self.untrained, self.seed = name, untrained, seed
        self.checkpoint, self.revision, self.options = checkpoint, revision, options or {}

        skeleton = self._create_skeleton(models)
        self.preprocessing = _preprocessing(skeleton, self.options)
        n_tokens, self.n_dim = _block_shape(name, skeleton, self.preprocessing["input_size"])
        self.n_prefix, has_class_token = _prefix_tokens(skeleton, n_tokens)
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.hub_id = skeleton.pretrained_cfg.get("hf_hub_id")
        self.layers = [f"blocks.{k}" for k in select_blocks(layers, len(skeleton.blocks))]
        self.pools = _check_pools(name, pool, has_class_token)
        self.backbone: nn.Module | None = None
        self._largest_batch: int | None = None
        self._scale: tuple[Tensor, Tensor] | None = None

    @property
    def stop_after(self) -> str:
        """The wanted layer that comes last in the network; nothing behind it is computed."""
        return max(self.layers, key=lambda layer: int(layer.split(".")[1]))

    def configure_model(self) -> None:
        """Build the backbone and load its weights, once, in float32; Lightning moves and casts it."""
        if self.backbone is not None:
            return
        # Lightning's contexts would draw the random weights on the device and in bf16: other numbers.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                backbone: nn.Module = self._create_backbone()
                self.backbone = backbone.eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> dict[str, Any]:
        """Pooled activations of a batch.

        Args:
            batch: ``index`` (B,), ``image`` (B, 3, H, W) uint8, ``bad`` (B,).
            batch_idx: Not used; the index travels in the batch.

        Returns:
            ``index`` (B,), ``feats`` with a float32 (B, L, D) on the host for each pooling, and ``bad`` (B,).
        """
        feats = self.split_on_oom(batch["image"])  # (P, B, L, D)
        feats = feats.cpu()
        feats[:, batch["bad"].cpu()] = torch.nan
        return {
            "index": batch["index"].cpu(),
            "feats": dict(zip(self.pools, feats, strict=True)),
            "bad": batch["bad"].cpu(),
        }

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 to pooled activations (P, B, L, D) float32, on the device."""
        assert self.backbone is not None, "configure_model() loads the backbone"
        modules = {layer: self.backbone.get_submodule(layer) for layer in self.layers}
        with capture(modules, self.pool_layer, last=self.stop_after) as pooled:
            self.backbone(self.normalize(images))
        return torch.stack([pooled[layer] for layer in self.layers], dim=2)

    def pool_layer(self, hidden: Tensor) -> Tensor:
        """A layer's tokens (B, T, D) to all wanted poolings of them (P, B, D)."""
        return torch.stack([pool_tokens(hidden, pooling, self.n_prefix) for pooling in self.pools])

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
        return images.float().div_(255).sub_(mean).div_(std).to(dtype)

    def split_on_oom(self, images: Tensor) -> Tensor:
        """:meth:`features`, in halves when the device is out of memory; what fitted is remembered."""
        limit = self._largest_batch or len(images)
        try:
            parts = [self.features(part) for part in torch.split(images, limit)]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        except torch.OutOfMemoryError:
            if limit == 1:
                raise
        # Outside the except block: the exception would keep the activations of the failed pass alive.
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._largest_batch is None:
            warnings.warn(
                f"{limit} images do not fit the device's memory; going on with smaller batches "
                "(a smaller data.batch_size avoids this)",
                stacklevel=2,
            )
        self._largest_batch = -(-min(limit, len(images)) // 2)
        return self.split_on_oom(images)

    def provenance(self) -> dict[str, Any]:
        """What about the model changes the numbers."""
        return {
            "model": self.model_name,
            "options": self.options,
            "layers": self.layers,
            **self.weights_provenance(),
        }

    def weights_provenance(self) -> dict[str, Any]:
        """Which weights: the seed, the checkpoint's hash, or the hub's repository and commit."""
        if self.untrained:
            return {"weights": "untrained", "seed": self.seed}
        if self.checkpoint:
            return {"weights": "checkpoint", "checkpoint_sha256": _file_sha256(self.checkpoint)}
        return {"weights": f"hub:{self.hub_id}", "revision": self.commit}

    @cached_property
    def commit(self) -> str:
        """The commit on the hub that the weights come from: asked of the hub, else of the local cache."""
        from huggingface_hub import HfApi, constants, try_to_load_from_cache

        try:
            return str(HfApi().model_info(str(self.hub_id), revision=self.revision, timeout=10).sha)
        except Exception:  # offline, gated, absent: loading the weights will say which
            for filename in (
                "model.safetensors",
                "open_clip_model.safetensors",
                "pytorch_model.bin",
                "open_clip_pytorch_model.bin",
            ):
                cached = try_to_load_from_cache(str(self.hub_id), filename, revision=self.revision)
                if isinstance(cached, str):
                    return Path(cached).parent.name
            if constants.HF_HUB_OFFLINE:
                raise InputError(
                    self._no_weights("HF_HUB_OFFLINE is set and the weights are not in the cache")
                ) from None
            return self.revision or "main"

    def _create_skeleton(self, models: str | None) -> Any:
        """The model without memory behind its weights, for its shape."""
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                skeleton = timm.create_model(self.model_name, pretrained=False, **self.options)
        except (RuntimeError, ValueError, TypeError) as error:
            if ":" in self.model_name or _is_timm_name(self.model_name):
                what = f"{self.model_name!r} with {self.options}"
                raise InputError(f"model.name, model.options: timm can't build {what}: {one_line(error)}") from None
            known = [entry.name for entry in read_models(models)["vision"]] + timm.list_models(pretrained=True)
            raise unknown_model(self.model_name, dict.fromkeys(known)) from None
        return skeleton.eval()

    def _create_backbone(self) -> Any:
        if self.untrained:
            return timm.create_model(self.model_name, pretrained=False, **self.options)
        if self.checkpoint:
            overlay = {"file": self.checkpoint, "custom_load": Path(self.checkpoint).suffix == ".npz"}
        else:  # the commit that was recorded, not what the branch has become since
            overlay = {"hf_hub_id": f"{self.hub_id}@{self.commit}"}
        try:
            return timm.create_model(self.model_name, pretrained=True, pretrained_cfg_overlay=overlay, **self.options)
        except Exception as error:  # network, hub, disk and format errors of several libraries
            if self.checkpoint:
                raise InputError(
                    f"model.checkpoint: {self.checkpoint!r} does not fit {self.model_name!r}: {one_line(error)}"
                ) from error
            raise InputError(self._no_weights(f"{type(error).__name__}: {one_line(error)}")) from error

    def _no_weights(self, reason: str) -> str:
        return (
            f"model.name: the weights of {self.model_name!r} ({self.hub_id}) can't be loaded: {reason}. Without a "
            "network, give --model.checkpoint FILE; for random weights, --model.untrained true"
        )


def _is_timm_name(name: str) -> bool:
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or timm.is_model_pretrained(name))


def select_blocks(layers: Literal["blocks"] | list[int], n_blocks: int) -> list[int]:
    """Indices of the wanted blocks, from 0 to ``n_blocks`` - 1, in the order asked for.

    Args:
        layers: "blocks" for all, or indices; -1 is the last block.
        n_blocks: How many the model has.

    Raises:
        InputError: An index out of range, the same block twice, or none.
    """
    if layers == "blocks":
        return list(range(n_blocks))
    if outside := [k for k in layers if not -n_blocks <= k < n_blocks]:
        raise InputError(
            f"model.layers: {name_some([str(k) for k in outside])} out of range; the model has {n_blocks} blocks, "
            f"{-n_blocks} to {n_blocks - 1}"
        )
    chosen = [k % n_blocks for k in layers]
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"model.layers: {layers} must name at least one block, and none twice")
    return chosen


def _check_pools(name: str, pool: VisionPooling | list[VisionPooling], has_class_token: bool) -> list[VisionPooling]:
    pools: list[VisionPooling] = [pool] if isinstance(pool, str) else list(pool)
    allowed = [p for p in VISION_POOLINGS if p != "cls" or has_class_token]
    if not pools or len(set(pools)) < len(pools) or not set(pools) <= set(VISION_POOLINGS):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if not set(pools) <= set(allowed):
        raise InputError(
            f"model.pool: {name!r} has no class token, so it can't give 'cls'; allowed: {', '.join(allowed)}"
        )
    return pools


def _preprocessing(skeleton: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Timm's evaluation config of the model, as plain lists and numbers."""
    args = {"img_size": options["img_size"]} if isinstance(options.get("img_size"), int) else {}
    config = resolve_model_data_config(skeleton, args=args)
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

    def note(output: Tensor) -> Tensor:
        shapes.append(tuple(output.shape))
        return output

    with (
        capture({str(k): block for k, block in enumerate(blocks)}, note, last=str(len(blocks) - 1)),
        torch.no_grad(),
    ):
        skeleton(torch.empty(1, *input_size, device="meta"))
    if len(set(shapes)) != 1 or len(shapes) != len(blocks) or len(shapes[0]) != 3:
        widths = name_some([str(shape[1:]) for shape in dict.fromkeys(shapes)])
        raise InputError(
            f"model.name: the blocks of {name!r} are not of one width: {widths}; features need the same in every layer"
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
    assert n_prefix in (0, declared), f"{n_tokens} tokens, {n_patches} patches, {declared} prefix tokens"
    return n_prefix, n_prefix > 0 and getattr(skeleton, "cls_token", None) is not None


def _file_sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
