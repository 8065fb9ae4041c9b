"""A timm model before it has weights: what it is called, and the tokens of its blocks.

B batch, T tokens, D hidden size, H height, W width.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import AfterValidator, Field, TypeAdapter
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic wants it until Python 3.12

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import MAX_RECORD_BYTES, read_regular, shorten, validate, validate_json
from lit_extract.modules.registry import read_models, unknown_model

MAX_DEPTH, MAX_SIZE = 1000, 2**20  # far more than models have; blocks are made one by one to know their shapes


def is_timm_name(name: str) -> bool:
    """Return whether timm has an architecture, or trained weights, of this name; an address or a path is none."""
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or timm.is_model_pretrained(name))


def create_skeleton(timm_name: str, model_name: str, options: dict[str, Any], models: str | None) -> Any:
    """Return a model without memory for its weights."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(timm_name, pretrained=False, **options).eval()
    except Exception as error:  # timm asserts, and its models raise what they like
        if ":" in model_name or is_timm_name(model_name):
            what = f"{model_name!r} with {options}"
            raise InputError(f"model.name, model.options: timm can't build {what}: {one_line(error)}") from None
        known = [entry.name for entry in read_models(models)["vision"]] + timm.list_models(pretrained=True)
        raise unknown_model(model_name, dict.fromkeys(known)) from None


def check_config(file: Path) -> None:
    """Check that the configuration of a local model is of a size that can be built."""
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


def preprocessing_of(skeleton: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return timm's evaluation config of the model, as plain lists and numbers."""
    size = options.get("img_size")
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else None
    config = resolve_model_data_config(skeleton, args={"input_size": (3, *sides)} if sides else {})
    if config["input_size"][0] != 3:
        raise InputError(f"model.name: the model takes images of {config['input_size'][0]} channels; here they are RGB")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _of_rgb(size: list[int]) -> list[int]:
    if size[0] != 3:
        raise ValueError(f"must be [3, H, W], as images here are RGB, not {size}")
    return size


Side = Annotated[int, Field(ge=1, le=4096)]  # pixels; more than any model has been trained with
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Three = Field(min_length=3, max_length=3)


class _Preprocessing(TypedDict, total=False):
    """Settings of timm's evaluation transform that can be given instead of the model's own."""

    crop_pct: Annotated[float, Field(ge=0.1, le=1)]  # at 0.01, each image would be enlarged to 10,000 times its area
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    mean: Annotated[list[_Finite], _Three]
    std: Annotated[list[_Positive], _Three]
    input_size: Annotated[list[Side], _Three, AfterValidator(_of_rgb)]


_PREPROCESSING: TypeAdapter[Any] = TypeAdapter(_Preprocessing)


def check_preprocessing(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return settings of preprocessing that timm's evaluation transform takes; else InputError names ``what``."""
    if unknown := [shorten(key) for key in given if key not in _Preprocessing.__annotations__]:
        raise InputError(f"{what}: {name_some(unknown)}: must be of {', '.join(_Preprocessing.__annotations__)}")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return {**validate(_PREPROCESSING, plain, what)}


def find_trunk(name: str, skeleton: nn.Module) -> str:
    """Return what comes before ``blocks`` in the path of the sequence of blocks: "", or as "encoder.".

    Raises:
        InputError: There is no such sequence, or only those of stages (``stages.0.blocks``), or several.
    """
    trunks = [
        f"{path}." if path else ""
        for path, module in skeleton.named_modules()
        if isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList)
        and len(module.blocks)
        and not any(part.isdigit() for part in path.split("."))
    ]
    if not trunks:
        raise _unsupported(name, _differ_in_width(skeleton) or "it has no sequence of blocks")
    if "" not in trunks and len(trunks) > 1:
        raise _unsupported(name, f"it has several sequences of blocks (of {name_some(trunks)})")
    return "" if "" in trunks else trunks[0]


def block_tokens(name: str, skeleton: nn.Module, trunk: str, input_size: list[int]) -> tuple[list[int], int]:
    """Return the tokens of each block's output, and their width, from a forward pass without data.

    Raises:
        InputError: The outputs of the blocks are not one sequence of tokens (B, T, D) each, of one width.
    """
    blocks = skeleton.get_submodule(f"{trunk}blocks")
    assert isinstance(blocks, nn.Sequential | nn.ModuleList)
    calls: list[tuple[int, tuple[int, ...]]] = []

    def note(k: int, module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((k, tuple(output.shape) if isinstance(output, Tensor) else ()))

    handles = [block.register_forward_hook(partial(note, k)) for k, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            skeleton(torch.empty(1, *input_size, device="meta"))
    except Exception as error:  # of any model of timm's
        if len(calls) < len(blocks):  # else it is of what comes after them, which extraction does not reach
            raise InputError(
                f"model.name: {name!r} can't compute an image of {input_size}: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    shapes = [shape for _, shape in calls]
    if any(len(shape) == 0 or shape[0] != 1 for shape in shapes):  # CrossViT: two sequences; TNT: pixels of each patch
        raise _unsupported(name, "its blocks do not put out one sequence of tokens for an image")
    if [k for k, _ in calls] != [*range(len(blocks))]:  # Twins: groups of blocks, of which no group is called
        reason = "its blocks are not called one after the other, each once"
        raise _unsupported(name, (not calls and _differ_in_width(skeleton)) or reason)
    shown = name_some([" × ".join(map(str, shape[1:])) for shape in dict.fromkeys(shapes)], limit=4)
    if any(len(shape) != 3 for shape in shapes):
        raise _unsupported(name, f"its blocks put out maps, not tokens ({shown})")
    if len({shape[2] for shape in shapes}) > 1:
        raise _unsupported(name, f"its blocks differ in width ({shown})")
    return [shape[1] for shape in shapes], shapes[0][2]


def _differ_in_width(skeleton: nn.Module) -> str:
    """Return that the stages do, if they do: timm lists their channels."""
    stages = getattr(skeleton, "feature_info", None)
    widths = [str(stage["num_chs"]) for stage in stages] if isinstance(stages, list) else []
    return f"its stages differ in width ({name_some(widths)})" if len(set(widths)) > 1 else ""


def _unsupported(name: str, reason: str) -> InputError:
    return InputError(
        f"model.name: {name!r} does not fit: {reason}; use a model whose blocks all put out tokens of one width, a "
        "vision transformer (ViT, DeiT, BEiT, EVA, DINOv2, …)"
    )


def prefix_tokens(name: str, trunk: nn.Module, tokens: list[int]) -> tuple[list[int], bool]:
    """Return how many tokens come before the patches in each block, and whether the first of them is a class token.

    Some models have a class token that joins only after the blocks (CaiT, XCiT) or between them (ConViT): counted, not
    assumed.
    """
    declared = getattr(trunk, "num_prefix_tokens", None)
    stem = getattr(trunk, "patch_embed", None) or getattr(trunk, "stem", None)
    n_patches = getattr(stem, "num_patches", None)
    if n_patches is None and declared is not None:  # NaFlexViT: any number of patches
        n_patches = tokens[0] - declared
    n_prefix = [] if n_patches is None else [n_tokens - n_patches for n_tokens in tokens]
    if n_prefix != sorted(n_prefix) or not {0, declared or 0}.issuperset(n_prefix) or not n_prefix:
        counts = name_some([str(n_tokens) for n_tokens in dict.fromkeys(tokens)])
        raise InputError(
            f"model.name: {name!r} does not fit: timm says that it has {n_patches} patches and {declared} tokens "
            f"before them, but its blocks have {counts} tokens, so that patches can't be told apart; if it is built "
            "for images of another size, give that size, as in --model.options '{img_size: 224}'"
        )
    embeddings = getattr(trunk, "embeds", trunk)  # where NaFlexViT has it
    return n_prefix, n_prefix[-1] > 0 and getattr(embeddings, "cls_token", None) is not None
