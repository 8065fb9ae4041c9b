"""Which of a language model's options are for the configuration and the weights, and which for the tokenizer."""

from collections.abc import Collection, Mapping
from typing import Any

# Hugging Face's loaders of a configuration and of weights take these without naming them in the configuration.
_WEIGHTS = frozenset(
    "allow_all_kernels attn_implementation cache_dir device_map disable_mmap experts_implementation force_download "
    "fusion_config gguf_file ignore_mismatched_sizes key_mapping kernel_config local_files_only max_memory "
    "offload_buffers offload_folder quantization_config subfolder token tp_plan tp_size use_kernels use_safetensors "
    "variant weights_only".split()
)
_OF_BOTH = ("trust_remote_code", "revision", "gguf_file", "subfolder")


def split_options(options: Mapping[str, Any], unused: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the arguments of from_pretrained between the model and its tokenizer.

    An option is the model's when its configuration has a field of that name or when it is about loading weights. All
    others are the tokenizer's, which refuses what it does not know.

    Args:
        options: All of them.
        unused: Names that the configuration has no field for.

    Returns:
        Those of the configuration and the weights; those of the tokenizer, among them what says where files are.
    """
    known = {name for name in options if name not in unused or name in _WEIGHTS or name in _OF_BOTH}
    model = {name: value for name, value in options.items() if name in known}
    tokenizer = {name: value for name, value in options.items() if name not in known or name in _OF_BOTH}
    return model, tokenizer
