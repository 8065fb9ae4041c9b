"""Hashes and places of weights, and random weights."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.common.errors import InputError
from lit_extract.common.progress import step
from lit_extract.common.untrusted import MAX_RECORD_BYTES, OneName, read_regular, validate_json

# Other files of a local model folder (logs, optimizer states) do not change the numbers.
_MODEL_FILES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".json", ".model", ".txt", ".py")
CHUNK_BYTES = 2**20


def path_sha256(path: str | Path) -> str:
    """Return a hash of a weights file, or of all model files in a folder."""
    path, read = Path(path), 0
    parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES)

    def sha256(part: Path) -> str:
        nonlocal read
        digest = hashlib.sha256()
        with part.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                read += len(chunk)
        return digest.hexdigest()

    with step(f"hashing {path.name}", sum(part.stat().st_size for part in parts), lambda: read):
        if path.is_file():
            return sha256(path)
        lines = (f"{part.relative_to(path).as_posix()} {sha256(part)}\n" for part in parts)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def widest_output(block: nn.Module) -> int:
    """Return the largest input or output width of a matrix in a block."""
    return max(max(parameter.shape[-2:]) for parameter in block.parameters() if parameter.ndim > 1)


def check_shards(folder: str | Path) -> None:
    """Check that the index of a local model's weights only names files in the model's folder.

    Raises:
        InputError: The index is damaged, or names a path, which :func:`path_sha256` would not hash.
    """
    for index in Path(folder).glob("*.index.json"):
        what = f"model.checkpoint: {index}"
        try:
            content = read_regular(index, MAX_RECORD_BYTES)
        except OSError as error:
            raise InputError(f"{what} can't be read: {error.strerror}") from None
        validate_json(WEIGHTS_INDEX, content, what)


class _Index(TypedDict):
    weight_map: dict[str, OneName]


WEIGHTS_INDEX = TypeAdapter(_Index)


def config_sha256(config: Any) -> str:
    """Return a hash of an architecture, without settings that do not shape the model or its parts."""

    def known(settings: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in settings.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
        return {k: known(v) if isinstance(v, dict) else v for k, v in kept.items()}

    return hashlib.sha256(json.dumps(known(config.to_dict()), sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def default_float32() -> Iterator[None]:
    """Make new tensors float32, even if Lightning's precision sets another default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def on_cpu_in_float32(seed: int) -> Iterator[None]:
    """Build a model on the CPU, with random weights that depend on the seed alone.

    Lightning's contexts around ``configure_model`` would draw other weights, on the device and in bf16. The global
    generator keeps its state.
    """
    with default_float32(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
