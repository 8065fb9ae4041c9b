"""The provenance of a features file, checked before any of it becomes a model, a dataset or a setting.

A file may come from a stranger. It may only name models that its user knows: those of models.yml or timm, or one that
the user names as well; never an address, a path or code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants it until Python 3.12

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import OneName, ShortText, shorten, validate
from lit_extract.datasets import DATASETS
from lit_extract.datasets.query import MAX_LENGTH
from lit_extract.modules.architecture import Side, check_preprocessing, is_timm_name
from lit_extract.modules.hub import COMMIT
from lit_extract.modules.pooling import (
    GRID_NAME,
    VISION_POOLINGS,
    Excluded,
    LanguagePooling,
    TextPooling,
    VisionLanguagePooling,
)
from lit_extract.modules.registry import ModelEntry, read_models
from lit_extract.parity.certificate import RebuildSettings
from lit_extract.storage.provenance import OF_CAPTIONS, kind_of

UNTRAINED, CHECKPOINT, HUB = "untrained", "checkpoint", "hub:"
MAX_PROMPT = 100_000  # characters

_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_Pixels = Annotated[int, Field(ge=1, le=2**26)]
_Times = Annotated[float, Field(ge=1, le=1e6)]
_BLOCK = "blocks[.](0|[1-9][0-9]{0,3})"
_MODULE = r"^[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*\z"  # a path in a model


class _Provenance(TypedDict):
    model: ShortText
    options: dict[str, Any]
    weights: ShortText
    seed: NotRequired[Annotated[int, Field(ge=-(2**63), lt=2**63)]]
    checkpoint_sha256: NotRequired[_Sha256]
    revision: NotRequired[Annotated[str, StringConstraints(pattern=f"^{COMMIT}$")]]
    precision: Literal["bf16-true", "bf16-mixed", "32-true"]
    dataset: ShortText
    query: Annotated[str, StringConstraints(max_length=MAX_LENGTH)] | None
    limit: NotRequired[Annotated[int, Field(ge=1)]]


_OfImage = Literal[*VISION_POOLINGS] | Annotated[str, StringConstraints(pattern=GRID_NAME)]  # type: ignore[valid-type]


class _Vision(_Provenance):
    pool: _OfImage
    stimuli_sha256: _Sha256
    preprocessing: dict[str, Any]
    preprocessing_given: NotRequired[list[ShortText]]  # its keys whose values are not the model's own


class _Processor(TypedDict):
    """The settings of an image processor of Transformers; the reference requests the same backend."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    image_processor: ShortText
    backend: Literal["torchvision", "pil"]
    settings: dict[str, Any]


class _TransformersVision(_Provenance):
    pool: _OfImage
    source: NotRequired[ShortText]  # missing when the weights are local
    stimuli_sha256: _Sha256
    preprocessing: _Processor


class _Language(_Provenance):
    pool: LanguagePooling
    source: NotRequired[ShortText]  # missing when the weights are local
    prompt_name: ShortText
    tokens_sha256: _Sha256
    truncate: bool
    captions_used: NotRequired[Literal["all"]]
    exclude_bos: bool | Literal["first"]
    exclude: NotRequired[list[Excluded]]
    sinks_above: NotRequired[_Times]
    loss: bool
    tokenizer: Literal["huggingface", "sentencepiece"]


class _TextEncoder(_Provenance):
    pool: TextPooling
    source: NotRequired[ShortText]  # missing when the weights are local
    prompt_name: ShortText
    tokens_sha256: _Sha256
    truncate: bool
    captions_used: NotRequired[Literal["all"]]
    special_tokens: Literal["included", "excluded"]
    exclude: NotRequired[list[Excluded]]
    sinks_above: NotRequired[_Times]
    prefix: Annotated[str, StringConstraints(max_length=MAX_PROMPT)]
    context: Annotated[int, Field(ge=1, le=10**6)] | None


class _VisionLanguage(_Provenance):
    pool: VisionLanguagePooling
    source: NotRequired[ShortText]  # missing when the weights are local
    stimuli_sha256: _Sha256
    preprocessing: dict[str, Any]
    prompt_name: ShortText
    prompt_text: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT)]
    chat_tokens_sha256: _Sha256
    image_token: ShortText


class _VisionOptions(TypedDict, total=False):
    """Options that shape a model, with limits like those of real models."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    img_size: Side | list[Side] | tuple[Side, Side]
    patch_size: Side | list[Side] | tuple[Side, Side]
    depth: Annotated[int, Field(ge=1, le=200)]
    embed_dim: Annotated[int, Field(ge=1, le=16_384)]
    num_heads: Annotated[int, Field(ge=1, le=512)]
    num_classes: Annotated[int, Field(ge=0, le=1_000_000)]
    in_chans: Literal[3]
    reg_tokens: Annotated[int, Field(ge=0, le=10_000)]
    class_token: bool
    no_embed_class: bool
    dynamic_img_size: bool
    dynamic_img_pad: bool
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
    global_pool: Literal["", "avg", "avgmax", "catavgmax", "max", "token", "map", "prr"]
    pool_include_prefix: bool
    final_norm: bool
    fc_norm: bool | None
    zero_init_last: bool


class _TransformersVisionOptions(TypedDict, total=False):
    """The attention of a run, which the reference ignores."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]


class _LanguageOptions(TypedDict, total=False):
    """Options of a tokenizer; the attention of a run, which the reference ignores."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
    gguf_file: Annotated[OneName, StringConstraints(pattern="[.]gguf$")]  # in the model's own folder
    add_bos_token: bool
    add_eos_token: bool
    add_prefix_space: bool
    clean_up_tokenization_spaces: bool
    legacy: bool
    use_fast: bool


class _VisionLanguageOptions(TypedDict, total=False):
    """Options for resizing and cutting images; the attention of a run, which the reference ignores."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
    size: dict[Literal["height", "width", "shortest_edge", "longest_edge"], _Pixels]
    min_pixels: _Pixels
    max_pixels: _Pixels
    do_image_splitting: bool
    do_pan_and_scan: bool
    crop_to_patches: bool
    min_patches: Annotated[int, Field(ge=1, le=100)]
    max_patches: Annotated[int, Field(ge=1, le=100)]


class _Forms(NamedTuple):
    provenance: TypeAdapter[Any]
    options: TypeAdapter[Any]
    layers: TypeAdapter[list[str]]


_TEXT_LAYERS = TypeAdapter(list[Annotated[str, StringConstraints(pattern=f"^(embeddings|norm|{_BLOCK})$")]])
_ENCODER_LAYERS = TypeAdapter(list[Annotated[str, StringConstraints(pattern=f"^(embeddings|norm|head|{_BLOCK})$")]])
_VISION_LAYERS = TypeAdapter(list[Annotated[str, StringConstraints(pattern=f"^(norm|head|{_BLOCK})$")]])
TRANSFORMERS_VISION = "transformers_vision"
_FORMS = {
    "vision": _Forms(
        TypeAdapter(_Vision),
        TypeAdapter(_VisionOptions),
        TypeAdapter(list[Annotated[str, StringConstraints(pattern=_MODULE, max_length=100)]]),
    ),
    TRANSFORMERS_VISION: _Forms(
        TypeAdapter(_TransformersVision), TypeAdapter(_TransformersVisionOptions), _VISION_LAYERS
    ),
    "language": _Forms(
        TypeAdapter(_Language),
        TypeAdapter(_LanguageOptions),
        _TEXT_LAYERS,
    ),
    "text_encoder": _Forms(TypeAdapter(_TextEncoder), TypeAdapter(_LanguageOptions), _ENCODER_LAYERS),
    "vision_language": _Forms(TypeAdapter(_VisionLanguage), TypeAdapter(_VisionLanguageOptions), _TEXT_LAYERS),
}


def form_of(provenance: Mapping[str, Any]) -> str:
    """Return the kind of model that made features; vision models of Transformers are a separate kind here."""
    kind, preprocessing = kind_of(provenance), provenance.get("preprocessing")
    is_processed = kind == "vision" and isinstance(preprocessing, dict) and "image_processor" in preprocessing
    return TRANSFORMERS_VISION if is_processed else kind


def check_provenance(provenance: Mapping[str, Any], layers: list[str], settings: RebuildSettings) -> None:
    """Raise InputError unless provenance and layers are as a run writes them, and the model is known.

    A model is known if models.yml lists it, timm has it, or the user names it.
    """
    kind = form_of(provenance)
    known = validate(_FORMS[kind].provenance, dict(provenance), "provenance")
    validate(_FORMS[kind].layers, layers, "layers")
    weights, source = known["weights"], known.get("source")
    needed = {UNTRAINED: "seed", CHECKPOINT: "checkpoint_sha256"}.get(weights, "revision")
    if needed not in known or (needed == "revision" and not weights.startswith(HUB)):
        raise InputError(
            f"provenance.weights: {shorten(weights)!r} must be {UNTRAINED} with seed, {CHECKPOINT} with "
            f"checkpoint_sha256, or {HUB}… with revision"
        )
    is_local = weights == CHECKPOINT and source is None
    if kind != "vision" and not is_local and weights not in (UNTRAINED, f"{HUB}{source}"):
        raise InputError(f"provenance.source: {shorten(source)!r} does not match weights {shorten(weights)!r}")
    if kind not in OF_CAPTIONS and known["dataset"] not in DATASETS:
        raise InputError(f"provenance.dataset: {shorten(known['dataset'])!r} is not one of {', '.join(DATASETS)}")
    if kind == "vision":
        given_preprocessing(known)
    if settings.trust_remote_code and "revision" in known:
        raise InputError(
            f"trust_remote_code: the file decides which commit's code would run, {known['revision']}; check the "
            "code of that commit, and pass a folder with it as --checkpoint"
        )
    entries = read_models()[kind_of(provenance)]
    _check_options(kind, known, entries)
    _check_model(kind, known, entries, settings)


def given_preprocessing(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of preprocessing that replaced the model's own in a run, checked like a user's."""
    given = {key: known["preprocessing"].get(key) for key in known.get("preprocessing_given", ())}
    return check_preprocessing(given, "provenance.preprocessing")


def _check_model(kind: str, known: Mapping[str, Any], entries: Sequence[ModelEntry], settings: RebuildSettings) -> None:
    if settings.model is not None:
        if settings.model != (loaded := known.get("source", known["model"])):
            raise InputError(f"model: the file names {shorten(loaded)!r}, not {settings.model!r}")
        return
    if kind != "vision":
        name, whose = known.get("source"), "models.yml does not list"
        is_known = name is None or name in {entry.checkpoint or entry.name for entry in entries}
    else:
        name, whose = known["model"], "timm does not have and models.yml does not list"
        folder = settings.checkpoint if known["weights"] == CHECKPOINT else None
        is_folder = folder is not None and Path(folder).is_dir()
        is_known = is_folder or is_timm_name(name) or name in {entry.name for entry in entries}
    if not is_known:
        raise InputError(f"model: the file names {shorten(name)!r}, which {whose}; if you trust it, pass --model NAME")


def _check_options(kind: str, known: Mapping[str, Any], entries: Sequence[ModelEntry]) -> None:
    """Check the options: they reach the constructors of other libraries, which also accept paths and addresses."""
    listed = next((entry.options for entry in entries if entry.name == known["model"]), {})
    others = {k: value for k, value in known["options"].items() if k not in listed or listed[k] != value}
    try:
        validate(_FORMS[kind].options, others, "provenance.options")
    except InputError as error:
        raise InputError(f"{error}; other options are used only when models.yml has them for this model") from None
