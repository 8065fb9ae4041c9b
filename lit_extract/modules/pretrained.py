"""Models of Hugging Face: configuration, options, blocks, and weights that are checked after loading."""

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import MAX_RECORD_BYTES, read_regular, shorten, validate_json
from lit_extract.modules.streaming import OnDisk
from lit_extract.modules.weights import WEIGHTS_INDEX, default_float32, on_cpu_in_float32
from lit_extract.modules.weights_on_disk import ALIGNED, ScratchFile, load_on_disk, read_headers

MAX_LAYERS, MAX_WIDTH = 1000, 2**20  # far more than models have; layers are made one by one to know their shapes

# Arguments of Hugging Face's loaders that are not fields of a configuration.
_WEIGHTS = frozenset(
    "allow_all_kernels attn_implementation cache_dir device_map disable_mmap experts_implementation force_download "
    "fusion_config gguf_file ignore_mismatched_sizes key_mapping kernel_config local_files_only max_memory "
    "offload_buffers offload_folder quantization_config subfolder token tp_plan tp_size use_kernels use_safetensors "
    "variant weights_only".split()
)
_OF_BOTH = ("trust_remote_code", "revision", "gguf_file", "subfolder")
# Arguments that shape a model with given tensors, and arguments that locate files.
_OF_MODEL = frozenset(("attn_implementation", "experts_implementation", "key_mapping", "quantization_config"))
_WHERE = frozenset(("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download"))


def split_options(options: Mapping[str, Any], unused: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the arguments of from_pretrained between the model and its tokenizer.

    An option belongs to the model if its configuration has a field of that name or if it is about loading weights. All
    others go to the tokenizer, which refuses unknown ones.

    Returns:
        The options of the configuration and the weights; the options of the tokenizer, with the ones that locate files.
    """
    known = {name for name in options if name not in unused or name in _WEIGHTS or name in _OF_BOTH}
    model = {name: value for name, value in options.items() if name in known}
    tokenizer = {name: value for name, value in options.items() if name not in known or name in _OF_BOTH}
    return model, tokenizer


def text_config_of(config: Any, name: str) -> Any:
    """Return the configuration of the language model: the whole configuration, or the part for text.

    Raises:
        InputError: There is no language model, or a part is too large to be built.
    """
    what = f"model.name: the configuration of {name!r}"
    try:
        text_config = config.get_text_config(decoder=True)
    except ValueError as error:  # several
        raise InputError(f"{what} ({config.model_type}) describes more than one language model") from error
    if not hasattr(text_config, "model_type"):
        raise InputError(f"{what} ({config.model_type}) is not composed of configurations that Transformers knows")
    for field, most in (("num_hidden_layers", MAX_LAYERS), ("hidden_size", MAX_WIDTH)):
        value = getattr(text_config, field, None)
        if not isinstance(value, int):
            raise InputError(f"{what} ({config.model_type}) has no single {field}; choose a causal language model")
        if not 1 <= value <= most:
            raise InputError(f"{what} has {field} {shorten(value)}; it must be 1 to {most:,}")
    for part in config.sub_configs:
        for field, most in (("num_hidden_layers", MAX_LAYERS), ("depth", MAX_LAYERS), ("hidden_size", MAX_WIDTH)):
            value = getattr(getattr(config, part, None), field, None)
            if isinstance(value, int) and not 0 <= value <= most:
                raise InputError(f"{what} has {part}.{field} {shorten(value)}; it must be at most {most:,}")
    return text_config


def check_parts(config: Any, name: str) -> Any:
    """Return the configuration of the language model in a composed configuration.

    Raises:
        InputError: There is no language model, or a part is too large to be built.
    """
    text_config = text_config_of(config, name)
    if text_config is config:
        raise InputError(
            f"model.name: the configuration of {name!r} ({config.model_type}) is not composed of a language model and "
            "a vision model"
        )
    return text_config


def find_blocks(model: nn.Module, n_blocks: int) -> nn.ModuleList:
    """Return the list of transformer blocks: the first module list that is as long as the configuration says."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            return module
    raise InputError(f"model.name: {type(model).__name__} has no list of {n_blocks} blocks")


def find_language_blocks(model: Any, name: str) -> nn.ModuleList:
    """Return the list of transformer blocks of a vision-language model's language model."""
    check_decoder(model, name)
    decoder = model.get_decoder()
    if decoder in (model, model.base_model):
        raise InputError(
            f"model.name: {name!r} ({type(model).__name__}) has no language model apart from its vision model"
        )
    return _decoder_blocks(model)


def check_decoder(model: Any, name: str) -> None:
    """Raise InputError if a model's text goes through an encoder."""
    text_config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise InputError(
            f"model.name: {name!r} ({type(model).__name__}) has an encoder for its text, not a decoder alone"
        )


def find_backbone(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """Return the part of a model that turns tokens into the last hidden state, and its list of transformer blocks.

    It is the innermost model around the blocks; outer modules add a head, or features of images.
    """
    blocks = _decoder_blocks(model)
    return _innermost(model, blocks), blocks


def find_with_head(model: Any, backbone: nn.Module) -> Any:
    """Return the part of a model that turns tokens into logits: the innermost one around the backbone and the head."""
    return _innermost(model, backbone, model.get_output_embeddings())


def _innermost(model: nn.Module, *parts: nn.Module) -> Any:
    from transformers import PreTrainedModel

    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [module for module in models if {*parts} <= {*module.modules()}][-1]


def _decoder_blocks(model: Any) -> nn.ModuleList:
    """Return the list of blocks in a model's decoder; in some models, the part called decoder is the head."""
    text_config = model.config.get_text_config(decoder=True)
    # num_hidden_layers belongs to the encoder if there is one, and is doubled in LongCat
    fields = ("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers")
    counts = [count for field in fields if isinstance(count := getattr(text_config, field, None), int)]
    for part in (model.get_decoder(), model.base_model):
        for count in counts:
            try:
                return find_blocks(part, count)
            except InputError:
                continue
    raise InputError(f"model.name: {type(model).__name__} has no list of {text_config.num_hidden_layers} blocks")


def bos_id(config: Any) -> int | None:
    """Return the BOS token of the configuration; None if it only ends texts, as in GPT-2."""
    bos, eos = getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)
    return bos if isinstance(bos, int) and bos not in (eos if isinstance(eos, list) else [eos]) else None


def auto_class_of(config: Any) -> str:
    """Return the Transformers class of a language model: a class for text alone, if there is one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kinds = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING, type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return "AutoModelForImageTextToText" if kinds == (False, True) else "AutoModelForCausalLM"


def create_skeleton(config: Any, settings: Mapping[str, Any], name: str, auto_class: str) -> Any:
    """Return a model on the meta device."""
    try:
        with torch.device("meta"):
            return _from_config(config, settings, auto_class)
    except Exception as error:  # raised by the model's own code for unexpected configurations
        raise InputError(
            f"model.name: Transformers can't make a model of {name!r} with {auto_class}: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def create_random(
    config: Any, settings: Mapping[str, Any], seed: int, dtype: torch.dtype, device: torch.device, auto_class: str
) -> Any:
    """Return a model with random weights, which depend on the seed alone."""
    with on_cpu_in_float32(seed):
        model = _from_config(config, settings, auto_class)
    for parameter in model.parameters():  # not buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(device, dtype)
    return model.to(device)


def _from_config(config: Any, settings: Mapping[str, Any], auto_class: str) -> Any:
    import transformers

    known = {name: value for name, value in settings.items() if name in ("attn_implementation", "trust_remote_code")}
    own = copy.deepcopy(config)  # T5's encoder changes it
    return getattr(transformers, auto_class).from_config(own, dtype=torch.float32, **known)


def load_pretrained(
    source: str, settings: dict[str, Any], dtype: torch.dtype, device: torch.device, auto_class: str
) -> tuple[Any, dict[str, str]]:
    """Load a model with its head, from a repository on the hub or a local folder.

    Returns:
        The model, and its random parameters and buffers, which did not come from the checkpoint, with the reason:
        missing, or of another shape.
    """
    import transformers

    # Mismatched shapes are accepted here: they are refused later, by name, and only if the requested layers need them.
    settings = {**settings, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto = getattr(transformers, auto_class)
        model, info = auto.from_pretrained(source, dtype=dtype, device_map={"": device}, **settings)
    if dtype == torch.float32:  # MXFP4 is dequantized to bfloat16, whatever was requested
        for parameter in model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    if device.type == "cpu":
        # Tensors mapped from a file have the alignment of the file, on which the last bits of a product may depend.
        for parameter in model.parameters():
            if parameter.data_ptr() % ALIGNED:
                parameter.data = parameter.data.clone()
    return model, _not_loaded(model, info)


def load_streamed(
    config: Any, source: str, settings: dict[str, Any], dtype: torch.dtype, auto_class: str
) -> tuple[Any, dict[str, OnDisk], dict[str, str]]:
    """Load a model whose weights stay on disk, from a repository on the hub or a local folder.

    Returns:
        The model, the places of its parameters and persistent buffers on disk, and the random ones, which did not come
        from the checkpoint, with the reason.
    """
    model_class = type(create_skeleton(config, settings, source, auto_class))
    known = {name: value for name, value in settings.items() if name in _OF_MODEL}

    def load(state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype, device: str) -> Any:
        with warnings.catch_warnings(), default_float32():
            warnings.simplefilter("ignore")
            return model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(state_dict),
                dtype=dtype,
                device_map={"": device},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **known,
            )

    model, places, info = load_on_disk(read_headers(_safetensors_of(source, settings)), load, dtype)
    if dtype == torch.float32:
        halves = (torch.bfloat16, torch.float16)
        places = {
            name: replace(at, wanted=torch.float32 if at.wanted in halves else at.wanted) for name, at in places.items()
        }
    return model, places, _not_loaded(model, info)


def create_streamed(
    config: Any, settings: Mapping[str, Any], seed: int, dtype: torch.dtype, auto_class: str, n_parameters: int
) -> tuple[Any, dict[str, OnDisk]]:
    """Return a model with the random weights of :func:`create_random` in a file, and their places there."""
    room = torch.float32.itemsize * n_parameters
    scratch = ScratchFile(room, 2 * room + 2**30)  # parameters that will be tied have space of their own at first
    with on_cpu_in_float32(seed), scratch.parameters_kept():
        model = _from_config(config, settings, auto_class)
    return model, scratch.places_of(model, dtype)


def _safetensors_of(source: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the files of a checkpoint; files of the hub are in the local cache.

    Raises:
        InputError: The checkpoint has another format.
    """
    from transformers.utils import cached_file

    if "gguf_file" in settings:
        raise InputError("model.stream: a GGUF file can't be streamed; give a checkpoint in safetensors format")
    where = {name: settings[name] for name in _WHERE if name in settings}
    variant = f".{settings['variant']}" if settings.get("variant") else ""
    try:
        return [str(cached_file(source, f"model{variant}.safetensors", **where))]
    except OSError:  # an error of the hub, or weights in several files
        pass
    try:
        index = str(cached_file(source, f"model.safetensors.index{variant}.json", **where))
        content = read_regular(Path(index), MAX_RECORD_BYTES)
        names = validate_json(WEIGHTS_INDEX, content, f"model.checkpoint: {index}")["weight_map"].values()
        return [str(cached_file(source, name, **where)) for name in sorted(set(names))]
    except OSError as error:
        raise InputError(
            f"model.stream: {source!r} has no weights in safetensors format, which streaming needs ({one_line(error)})"
        ) from error


def _not_loaded(model: Any, info: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters and buffers that did not come from the checkpoint, with the reason."""
    random = dict.fromkeys(info["missing_keys"], "missing")
    for name, found, wanted in info["mismatched_keys"]:
        random[name] = f"{list(found)} in the checkpoint, {list(wanted)} in the model"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            random.setdefault(name, "missing")
    return random
