"""The text vector that sentence-transformers computes from a model's last hidden states.

``modules.json`` and the files that it names define it: a pooling, then dense layers and normalisation. They are read
and computed here without sentence-transformers, and no code from the model's folder or repository is run.

B batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints, TypeAdapter
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import MAX_CONFIG_BYTES, OneName, ShortText, read_regular, shorten, validate_json
from lit_extract.modules.pooling import LANGUAGE_POOLINGS
from lit_extract.modules.pretrained import MAX_WIDTH
from lit_extract.modules.weights import on_cpu_in_float32

_NO_RUN = (0, 0)  # no columns without padding: pooling runs once per batch here

_Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
_Prompt = Annotated[str, StringConstraints(max_length=100_000)]


class _Module(TypedDict):
    path: OneName | Literal[""]
    type: ShortText


class _Transformer(TypedDict, total=False):
    max_seq_length: Annotated[int, Field(ge=1)] | None
    do_lower_case: bool
    transformer_task: ShortText
    modality_config: dict[str, Any]


class _Pooling(TypedDict, total=False):
    pooling_mode: ShortText | list[ShortText]
    pooling_mode_cls_token: bool
    pooling_mode_max_tokens: bool
    pooling_mode_mean_tokens: bool
    pooling_mode_mean_sqrt_len_tokens: bool
    pooling_mode_weightedmean_tokens: bool
    pooling_mode_lasttoken: bool
    include_prompt: bool


class _DenseConfig(TypedDict):
    in_features: _Width
    out_features: _Width


class _Dense(_DenseConfig, total=False):
    bias: bool
    activation_function: ShortText
    use_residual: bool
    module_input_name: ShortText
    module_output_name: ShortText | None


class _Normalize(TypedDict, total=False):
    module_input_name: ShortText
    module_output_name: ShortText | None


class _Prompts(TypedDict, total=False):
    prompts: dict[ShortText, _Prompt]
    default_prompt_name: ShortText | None


_MODULES: TypeAdapter[list[_Module]] = TypeAdapter(list[_Module])
_TRANSFORMER, _POOLING = TypeAdapter(_Transformer), TypeAdapter(_Pooling)
_DENSE, _NORMALIZE, _PROMPTS = TypeAdapter(_Dense), TypeAdapter(_Normalize), TypeAdapter(_Prompts)

_AS_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}  # default treatment of a text

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": functional.gelu,
    "torch.nn.modules.activation.SiLU": functional.silu,
    "torch.nn.modules.activation.Sigmoid": torch.sigmoid,
}


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return LANGUAGE_POOLINGS["avg"](hidden, mask, _NO_RUN)


def _mean_by_root(hidden: Tensor, mask: Tensor) -> Tensor:
    return _mean(hidden, mask) * mask.sum(dim=1, keepdim=True).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (hidden.float().masked_fill(~mask[..., None], 0) * weights[..., None]).sum(dim=1)


# By their names in sentence-transformers: from tokens (B, T, D) padded on the right and their mask (B, T) bool
_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: hidden[:, 0].float(),
    "max": lambda hidden, mask: hidden.float().masked_fill(~mask[..., None], -torch.inf).amax(dim=1),
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda hidden, mask: LANGUAGE_POOLINGS["last"](hidden, mask, _NO_RUN),
}
# Names in older files, in the order in which several poolings are concatenated.
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class ModelFiles:
    """The small files of a model, in a local folder or a repository on the hub.

    Args:
        source: Folder or repository.
        where: ``revision`` and ``subfolder``, if given.
    """

    def __init__(self, source: str, where: Mapping[str, Any]) -> None:
        self._source, self._where = source, where

    def find(self, name: str) -> Path | None:
        """Return the path of a file, downloaded if needed; None if it does not exist or can't be downloaded."""
        from transformers.utils import cached_file

        found = cached_file(
            self._source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **self._where,
        )
        return Path(found) if found else None

    def read(self, name: str, form: TypeAdapter[Any]) -> Any:
        """Return the validated content of a JSON file; None if there is no such file."""
        if (path := self.find(name)) is None:
            return None
        what = f"model.name: {name} of {self._source!r}"
        try:
            content = read_regular(path, MAX_CONFIG_BYTES)
        except OSError as error:
            raise InputError(f"{what} can't be read: {error.strerror}") from None
        return validate_json(form, content, what)


def default_prompt(files: ModelFiles) -> str:
    """Return the default prompt that sentence-transformers puts before each text; mostly empty."""
    known = files.read("config_sentence_transformers.json", _PROMPTS) or {}
    prompts, name = known.get("prompts", {}), known.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        raise InputError(f"model.name: its default prompt {shorten(name)!r} is not in its prompts, {_names(prompts)}")
    return str(prompts[name])


def longest_text(files: ModelFiles) -> int | None:
    """Return the number of tokens to which sentence-transformers cuts a text; None if not defined."""
    limit: int | None = (files.read("sentence_bert_config.json", _TRANSFORMER) or {}).get("max_seq_length")
    return limit


class SentenceHead:
    """A pooling, dense layers and normalisation, in the order of ``modules.json``.

    Args:
        files: Files of the model.
        name: Name of the model.
        width: D of its last hidden states.
        prompt: Text before each caption.

    Raises:
        InputError: There is no ``modules.json``, or it has unsupported modules.
    """

    def __init__(self, files: ModelFiles, name: str, width: int, prompt: str) -> None:
        self._files, self._what = files, f"model.pool: head of {name!r}"
        modules: list[_Module] | None = files.read("modules.json", _MODULES)
        if modules is None:
            raise InputError(
                f"{self._what}: there is no modules.json, in which sentence-transformers defines the vector of a text; "
                "allowed: avg, cls, last"
            )
        kinds = [self._kind(module) for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"}:
            raise InputError(
                f"{self._what}: modules.json has {name_some(kinds) or 'nothing'}; it must be Transformer, Pooling, "
                "then any of Dense and Normalize"
            )
        self._check_transformer(modules[0])
        self.modes = self._read_pooling(modules[1], prompt)
        self.width = width * len(self.modes)
        self._steps: list[tuple[str, _Dense | None]] = []  # path and configuration; None: normalisation
        words = [" and ".join(self.modes)]
        for kind, module in zip(kinds[2:], modules[2:], strict=True):
            if kind == "Dense":
                step = self._read_dense(module)
                words.append(f"dense {step['in_features']} to {step['out_features']}")
                self._steps.append((module["path"], step))
            else:
                self._check_normalize(module)
                words.append("normalized")
                self._steps.append((module["path"], None))
        self.meaning = f"embedding of sentence-transformers: {', '.join(words)}"
        self._layers: list[nn.Linear] = []

    def load(self, device: torch.device, seed: int | None) -> None:
        """Load the weights of the dense layers, float32, or draw them with a seed."""
        dense = [(path, step) for path, step in self._steps if step is not None]
        with on_cpu_in_float32(seed or 0):
            self._layers = [
                nn.Linear(step["in_features"], step["out_features"], bias=step.get("bias", True)) for _, step in dense
            ]
        for (path, _), layer in zip(dense, self._layers, strict=True):
            if seed is None:
                self._load_weights(path, layer)
            layer.requires_grad_(False).to(device)

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding (B, width) float32 of last hidden states (B, T, D) with a mask (B, T) bool."""
        layers = iter(self._layers)
        vectors = torch.cat([_MODES[mode](hidden, mask) for mode in self.modes], dim=1)
        with torch.autocast(hidden.device.type, enabled=False):
            for _, step in self._steps:
                if step is None:
                    vectors = functional.normalize(vectors, dim=1)
                else:
                    vectors = _activation(step)(next(layers)(vectors))
        return vectors

    def _kind(self, module: _Module) -> str:
        """Return the class name of a module, if sentence-transformers itself defines the class."""
        package, _, kind = module["type"].rpartition(".")
        return kind if package.partition(".")[0] == "sentence_transformers" else module["type"]

    def _check_transformer(self, module: _Module) -> None:
        known = self._files.read("sentence_bert_config.json", _TRANSFORMER) or {}
        if module["path"]:
            raise InputError(
                f"{self._what}: its model is in {module['path']!r}; give that folder as --model.checkpoint"
            )
        if known.get("do_lower_case"):
            raise InputError(f"{self._what}: it has do_lower_case, which is not supported")
        task, modalities = known.get("transformer_task", "feature-extraction"), known.get("modality_config", {})
        as_text = modalities.get("text", _AS_TEXT)
        if task != "feature-extraction" or not isinstance(as_text, dict) or not _AS_TEXT.items() <= as_text.items():
            raise InputError(
                f"{self._what}: it uses {shorten(as_text)} of a model for {shorten(task)}, not the last hidden states"
            )

    def _read_pooling(self, module: _Module, prompt: str) -> list[str]:
        known: _Pooling = self._read(module, _POOLING)
        old = [mode for name, mode in _OLD_NAMES.items() if known.get(name)]
        found = known.get("pooling_mode", old or "mean")
        modes = [found] if isinstance(found, str) else found
        if not modes or (unknown := [mode for mode in modes if mode not in _MODES]):
            raise InputError(
                f"{self._what}: its pooling is {_names(unknown if modes else [])}, not {', '.join(_MODES)}"
            )
        if prompt and not known.get("include_prompt", True):
            raise InputError(
                f"{self._what}: its pooling leaves out the prompt {shorten(prompt)!r}, which is not supported"
            )
        return modes

    def _read_dense(self, module: _Module) -> _Dense:
        step: _Dense = self._read(module, _DENSE)
        self._check_names(module, step)
        activation = step.get("activation_function", "torch.nn.modules.activation.Tanh")
        if activation not in _ACTIVATIONS or step.get("use_residual"):
            found = "a residual" if activation in _ACTIVATIONS else shorten(activation)
            raise InputError(f"{self._what}: {module['path']} has {found}; allowed: {', '.join(_ACTIVATIONS)}")
        if step["in_features"] != self.width:
            raise InputError(f"{self._what}: {module['path']} takes {step['in_features']} numbers, not {self.width}")
        self.width = step["out_features"]
        return step

    def _check_normalize(self, module: _Module) -> None:
        path = module["path"]
        self._check_names(module, (self._files.read(f"{path}/config.json", _NORMALIZE) if path else None) or {})

    def _check_names(self, module: _Module, known: Mapping[str, Any]) -> None:
        names = [known.get("module_input_name"), known.get("module_output_name")]
        if other := [name for name in names if name not in (None, "sentence_embedding")]:
            raise InputError(f"{self._what}: {module['path']} works on {_names(other)}, not sentence_embedding")

    def _read(self, module: _Module, form: TypeAdapter[Any]) -> Any:
        name = f"{module['path']}/config.json"
        known = self._files.read(name, form) if module["path"] else None
        if known is None:
            raise InputError(f"{self._what}: there is no {name}")
        return known

    def _load_weights(self, path: str, layer: nn.Linear) -> None:
        try:
            weights = self._read_weights(path)
            layer.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
        except InputError:
            raise
        except Exception as error:  # raised by the disk and the format
            raise InputError(
                f"{self._what}: the weights in {path} can't be loaded: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _read_weights(self, path: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        if (file := self._files.find(f"{path}/model.safetensors")) is not None:
            return dict(load_file(file))
        if (file := self._files.find(f"{path}/pytorch_model.bin")) is not None:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        raise InputError(
            f"{self._what}: there are no weights in {path}, neither model.safetensors nor pytorch_model.bin"
        )


def _activation(step: _Dense) -> Callable[[Tensor], Tensor]:
    return _ACTIVATIONS[step.get("activation_function", "torch.nn.modules.activation.Tanh")]


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return name_some([shorten(name) for name in names]) or "none"
