"""Vision models, from timm's own intermediates, or from hooks on the modules that timm lists as stages.

T tokens, D hidden size or channels, H height, W width.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, counted, name_some, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.datasets import load_dataset, table
from lit_extract.datasets.decode import read_stimulus
from lit_extract.datasets.ids import id_key
from lit_extract.datasets.nsd import open_images
from lit_extract.modules.checkpoint import loading_noted, read_weights, unwrap
from lit_extract.modules.weights import on_cpu_in_float32
from lit_extract.parity.provenance_form import CHECKPOINT, HUB, UNTRAINED, given_preprocessing
from lit_extract.parity.reference import Reference, check_memory, check_same, check_sizes, no_weights

# A function from an image (1, 3, H, W) to the layers by name: prefix and patch tokens of each, (1, T, D) both.
_Tokens = Callable[[Tensor], dict[str, tuple[Tensor, Tensor]]]


class VisionReference(Reference):
    """Timm's intermediates of one image, opened by Pillow and prepared by timm's own transform."""

    packages = ("torch", "torchvision", "timm", "pillow")

    def check_stimuli(self, ids: list[Any], n_bytes_sha256: str | None) -> None:
        """Read the stimulus table, which must have the rows of the file, and images of the same sizes."""
        known = self.provenance
        stimuli = load_dataset(known["dataset"], self.settings.root, known["query"], known.get("limit"))
        check_same("stimuli_sha256", known["stimuli_sha256"], table.fingerprint(stimuli))
        theirs = stimuli["stimulus_id"].tolist()
        if len(ids) != len(theirs):
            rows, expected = counted(len(ids), "row"), counted(len(theirs), "stimulus", "stimuli")
            raise InputError(f"the file has {rows}, but the dataset has {expected}; they are not those of the file")
        for row, (ours, other) in enumerate(zip(ids, theirs, strict=True)):
            if id_key(ours) != id_key(other):
                ours, other = shorten(repr(ours)), shorten(repr(other))
                raise InputError(f"row {row} of the file is stimulus {ours}, but of the dataset {other}")
        check_sizes(n_bytes_sha256, [stat.st_size for stat in table.image_stats(stimuli)])
        self.paths: list[str] = stimuli["image"].tolist()
        self.image_rows: list[int] | None = stimuli["image_row"].tolist() if "image_row" in stimuli else None

    def build(self) -> nn.Module:
        """Call timm.create_model as in the run; preprocessing that was not given must be timm's own."""
        import timm
        from timm.data import create_transform, resolve_data_config

        known = self.provenance
        given = given_preprocessing(known)
        name, options, weights = known["model"], known["options"], known["weights"]
        if weights == CHECKPOINT and Path(self.checkpoint()).is_dir():
            name = f"local-dir:{self.settings.checkpoint}"
        try:
            with torch.device("meta"):
                skeleton = timm.create_model(name, pretrained=False, **options)
            check_memory(skeleton)
            if weights == UNTRAINED:
                with on_cpu_in_float32(known["seed"]):
                    model = timm.create_model(name, pretrained=False, **options)
            else:
                overlay = self._overlay(skeleton)
                with loading_noted():
                    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except InputError:
            raise
        except Exception as error:  # network, hub, disk and format errors of several libraries
            raise no_weights(name, weights, error) from error
        side = options.get("img_size")
        sides = (side, side) if isinstance(side, int) else side
        size = {"input_size": (3, *sides)} if sides else {}
        own, config = (resolve_data_config(settings, model=model) for settings in (size, size | given))
        if given:
            changes = ", ".join(f"{key} {config[key]} instead of {own[key]}" for key in given)
            self.remarks = [f"preprocessing is not the model's own: {changes}"]
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        check_same("preprocessing", known["preprocessing"], plain)
        self.transform = create_transform(**config, is_training=False)
        blocks = _block_path(skeleton.eval(), config["input_size"])
        self.way, self.tokens = _tokens_of(model, name, known["pool"], self.layers, blocks)
        built: nn.Module = model
        return built

    def _overlay(self, skeleton: Any) -> dict[str, Any]:
        """Return the settings by which timm finds the weights: in the user's file, else in its own repository."""
        if self.provenance["weights"] != CHECKPOINT:
            repository = str(skeleton.pretrained_cfg.get("hf_hub_id"))
            check_same("weights", self.provenance["weights"], f"{HUB}{repository}")
            return {"hf_hub_id": f"{repository}@{self.provenance['revision']}"}
        file = self.checkpoint()
        if Path(file).is_dir():
            return {}
        if file.endswith(".npz"):
            return {"file": file, "custom_load": True}
        # without wrappers, as in the run; the head matters only for pooling head
        weights, _ = unwrap(read_weights(file), set(skeleton.state_dict()))
        n_classes = self.provenance["options"].get("num_classes")
        its_own = {"num_classes": n_classes} if n_classes and self.provenance["pool"] == "head" else {}
        return {"state_dict": weights, "source": "", "custom_load": False, **its_own}

    def compute(self, row: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Send one image through the model."""
        dtype = next(self.model.parameters()).dtype
        image = self.transform(self._open(row))[None].to(self.device, dtype)
        found, shape = self.tokens(image), image.shape[2] / image.shape[3]
        if missing := [layer for layer in self.layers if layer not in found]:
            raise InputError(f"layers: the file has {name_some(missing)}, but the model has {name_some([*found])}")
        chosen = [found[layer] for layer in self.layers]
        return [pool_tokens(*tokens, self.provenance["pool"], shape) for tokens in chosen], {}

    def cast(self) -> None:
        """Change parameters and buffers to bf16, as timm's forward passes need a single type."""
        self.model.bfloat16()

    def _open(self, row: int) -> Any:
        """Return the image, RGB."""
        from PIL import Image

        if self.image_rows is None:
            image = read_stimulus(self.paths[row]).opened()
            if image.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip
                return Image.fromarray(np.rint(np.asarray(image) * (255 / 65535)).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
        images = open_images(self.paths[row])
        with images.file:
            return Image.fromarray(images[self.image_rows[row]])


def _tokens_of(model: Any, name: str, pool: str, layers: Sequence[str], path: str) -> tuple[str, _Tokens]:
    """Return the interface of the model, and a function from an image to (prefix, patch tokens) of each layer.

    With pooling head, the model's output stands in for patch tokens. ``path`` is the module of the blocks.
    """
    if pool == "head":

        def output(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            vector = model(image)
            return {"head": (vector[:, :0], vector)}

        return "timm model(image)", output
    if not path:
        return _stages_of(model, layers)
    way, blocks = _blocks_of(model, name, pool, path)
    has_norm = "norm" in layers

    def tokens(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        outputs = blocks(image)
        found = {f"blocks.{k}": output for k, output in enumerate(outputs)}
        if has_norm:
            normed = model.forward_features(image).flatten(1, -2)  # some models return a map (1, H, W, D)
            n_prefix = normed.shape[1] - outputs[-1][1].shape[1]
            found["norm"] = normed[:, :n_prefix], normed[:, n_prefix:]
        return found

    return f"{way}, forward_features" if has_norm else way, tokens


def _block_path(skeleton: nn.Module, size: Sequence[int]) -> str:
    """Return the path of a model's blocks, if all output tokens of the same width; "" for a model with stages."""
    sequences = [path for path, part in skeleton.named_modules() if isinstance(part, nn.Sequential | nn.ModuleList)]
    named = [path for path in sequences if path.rpartition(".")[2] == "blocks"]
    path = min(named, key=len, default="")  # "blocks", or as "encoder.blocks"; the path of a stage has a number in it
    if not path or any(letter.isdigit() for letter in path):
        return ""
    blocks, widths = list(skeleton.get_submodule(path).children()), []
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: widths.append(_width_of_tokens(output)))
    with torch.no_grad(), suppress(Exception):  # some fail after their blocks on the meta device
        skeleton(torch.empty(1, *size, device="meta"))
    return path if len(widths) == len(blocks) and len({*widths}) == 1 and widths[0] else ""


def _width_of_tokens(output: Any) -> int:
    return output.shape[2] if isinstance(output, Tensor) and output.ndim == 3 and output.shape[0] == 1 else 0


def _stages_of(model: Any, layers: Sequence[str]) -> tuple[str, _Tokens]:
    """Return the interface of a model with stages, and a function from an image to the places of their maps.

    If timm lists no module that outputs a stage, the stage is named ``intermediates.k``, after timm's intermediates.
    """
    channels = {stage["module"]: stage["num_chs"] for stage in model.feature_info}
    modules = {path: module for path, module in model.named_modules() if path in channels and path in layers}
    unnamed = [layer for layer in layers if layer.startswith("intermediates.")]
    is_last = getattr(model, "output_fmt", "") == "NHWC"

    def tokens(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        found: dict[str, Tensor] = {}

        def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            stage = next(tensor for tensor in tensors if channels[path] in tensor.shape[1:])
            found[path] = _places(stage, channels[path], is_last).clone()  # it may be changed in place

        handles = [module.register_forward_hook(partial(note, path)) for path, module in modules.items()]
        try:
            model(image)
        finally:
            for handle in handles:
                handle.remove()
        if unnamed:
            maps = model.forward_intermediates(image, norm=False, output_fmt="NCHW", intermediates_only=True)
            found |= {f"intermediates.{k}": stage.flatten(2).mT for k, stage in enumerate(maps)}
        return {layer: (stage[:, :0], stage) for layer, stage in found.items()}

    ways = (["hooks on the modules that timm lists"] if modules else []) + ["timm forward_intermediates"] * bool(
        unnamed
    )
    return ", ".join(ways), tokens


def _places(stage: Tensor, channels: int, is_last: bool) -> Tensor:
    """Return the places (1, T, D) of a map (1, D, H, W) or (1, H, W, D), or tokens from (1, T, D) or (1, D, T)."""
    if stage.ndim == 3:
        return stage if stage.shape[2] == channels else stage.mT
    if stage.shape[3] == channels and (is_last or stage.shape[1] != channels):
        return stage.flatten(1, 2)
    return stage.flatten(2).mT


def _blocks_of(
    model: Any, name: str, pool: str, path: str
) -> tuple[str, Callable[[Tensor], list[tuple[Tensor, Tensor]]]]:
    """Return the interface of the model, and a function from an image to (prefix, patch tokens) of each block."""
    offered = inspect.signature(getattr(model, "forward_intermediates", lambda: None)).parameters
    has_prefix = getattr(model, "num_prefix_tokens", 0) > 0
    wanted = {"norm": False, "output_fmt": "NLC", "intermediates_only": True}
    if has_prefix and "return_prefix_tokens" in offered:
        wanted["return_prefix_tokens"] = True
    if set(wanted) <= set(offered) and ("return_prefix_tokens" in wanted or not has_prefix or pool == "avg"):

        def intermediates(image: Tensor) -> list[tuple[Tensor, Tensor]]:
            layers = model.forward_intermediates(image, **wanted)
            return [(layer[1], layer[0]) if isinstance(layer, tuple) else (layer[:, :0], layer) for layer in layers]

        return "timm forward_intermediates", intermediates
    from torchvision.models.feature_extraction import create_feature_extractor

    names = [f"{path}.{k}" for k in range(len(model.get_submodule(path)))]
    try:
        extractor = create_feature_extractor(model, {block: block for block in names})
    except Exception as error:  # tracing raises whatever the model raises
        raise InputError(
            f"parity: {name!r} has no forward_intermediates of timm that gives all tokens, and torchvision's "
            f"create_feature_extractor can't trace it: {one_line(error)}; there is no independent way to its layers"
        ) from error

    def traced(image: Tensor) -> list[tuple[Tensor, Tensor]]:
        outputs = extractor(image)
        n_patches = model.patch_embed.num_patches
        return [(outputs[block][:, :-n_patches], outputs[block][:, -n_patches:]) for block in names]

    return "torchvision create_feature_extractor", traced


def pool_tokens(prefix: Tensor, patches: Tensor, pool: str, shape: float) -> Tensor:
    """Pool prefix and patch tokens (1, T, D) of one stimulus; ``shape`` is its image's height divided by width."""
    if pool == "cls" and prefix.shape[1] == 0:
        raise InputError("parity: the file has pooling cls, but the model has no class token")
    if pool.startswith("grid"):
        return _means_of_parts(patches[0].float(), int(pool.removeprefix("grid")), shape)
    return POOLINGS[pool](prefix[0], patches[0])


def _means_of_parts(patches: Tensor, k: int, shape: float) -> Tensor:
    """Return the means of patches (T, D), ordered row by row, over k × k parts of the image, (k·k, D)."""
    rows = round((len(patches) * shape) ** 0.5)
    columns = len(patches) // rows
    by_place = patches.reshape(rows, columns, -1)

    def part(at: int, n: int) -> slice:
        return slice(at * n // k, -(-(at + 1) * n // k))

    parts = [by_place[part(i, rows), part(j, columns)] for i in range(k) for j in range(k)]
    return torch.stack([each.mean(dim=(0, 1)) for each in parts])


# For each pooling, a function from prefix tokens (T, D) and patch tokens (T, D), or an output (D,), to (D,).
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda prefix, patches: prefix[0],
    "avg": lambda prefix, patches: patches.float().mean(0),
    "avg_all": lambda prefix, patches: torch.cat([prefix, patches]).float().mean(0),
    "tokens": lambda prefix, patches: torch.cat([prefix, patches]).float(),
    "head": lambda none, output: output.float(),
}
