"""A timm model before its weights are loaded: its name, and the preprocessing of its images.

H height, W width.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import AfterValidator, Field, TypeAdapter
from timm.data import resolve_model_data_config
from torch import nn
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import MAX_RECORD_BYTES, read_regular, shorten, validate, validate_json
from lit_extract.modules.registry import read_models, unknown_model

MAX_DEPTH, MAX_SIZE = 1000, 2**20  # far more than models have; blocks are made one by one to know their shapes


def is_timm_name(name: str) -> bool:
    """Return whether timm has an architecture or trained weights of this name, which is no address or path."""
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or timm.is_model_pretrained(name))


def create_skeleton(timm_name: str, model_name: str, options: dict[str, Any], models: str | None) -> Any:
    """Return a model without memory for its weights."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(timm_name, pretrained=False, **options).eval()
    except Exception as error:  # timm asserts, and its models may raise anything
        if ":" in model_name or is_timm_name(model_name):
            setting, what = ("options", f"{model_name!r} with {options}") if options else ("name", repr(model_name))
            raise InputError(f"model.{setting}: timm can't build {what}: {one_line(error)}") from None
        known = [entry.name for entry in read_models(models)["vision"]] + timm.list_models(pretrained=True)
        raise unknown_model(model_name, dict.fromkeys(known)) from None


def check_config(file: Path) -> None:
    """Check that a local model is small enough to be built."""
    what = f"model.name: {file}"
    try:
        settings = validate_json(_CONFIG, read_regular(file, MAX_RECORD_BYTES), what).get("model_args", {})
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or one_line(error)}") from None
    for name, value in settings.items():
        most = MAX_DEPTH if name == "depth" else MAX_SIZE
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise InputError(f"{what}: model_args.{shorten(name)} is {shorten(value)}; the maximum is {most:,}")


class _Config(TypedDict, total=False):
    model_args: dict[str, Any]


_CONFIG: TypeAdapter[_Config] = TypeAdapter(_Config)


def preprocessing_of(skeleton: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return timm's evaluation config of the model, as plain lists and numbers."""
    size = options.get("img_size")
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else None
    config = resolve_model_data_config(skeleton, args={"input_size": (3, *sides)} if sides else {})
    if config["input_size"][0] != 3:
        raise InputError(f"model.name: the model takes images of {config['input_size'][0]} channels, not RGB")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _of_rgb(size: list[int]) -> list[int]:
    if size[0] != 3:
        raise ValueError(f"must be [3, H, W] for RGB images, not {size}")
    return size


Side = Annotated[int, Field(ge=1, le=4096)]  # pixels; more than any model has been trained with
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Three = Field(min_length=3, max_length=3)


class _Preprocessing(TypedDict, total=False):
    """Settings of timm's evaluation transform that can replace the model's own."""

    crop_pct: Annotated[float, Field(ge=0.1, le=1)]  # at 0.01, each image would be enlarged to 10,000 times its area
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    mean: Annotated[list[_Finite], _Three]
    std: Annotated[list[_Positive], _Three]
    input_size: Annotated[list[Side], _Three, AfterValidator(_of_rgb)]


_PREPROCESSING: TypeAdapter[Any] = TypeAdapter(_Preprocessing)


def check_preprocessing(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the settings for timm's evaluation transform; raise InputError, which names ``what``, if one is wrong."""
    if unknown := [shorten(key) for key in given if key not in _Preprocessing.__annotations__]:
        raise InputError(f"{what}: {name_some(unknown)}: must be one of {', '.join(_Preprocessing.__annotations__)}")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return {**validate(_PREPROCESSING, plain, what)}
