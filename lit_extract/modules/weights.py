"""Which weights a model has: hashes of local files, commits on the hub."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lit_extract.errors import InputError, one_line

# What is in a local model folder besides these (logs, optimizer states) does not change the numbers.
_MODEL_FILES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".json", ".model", ".txt", ".py")


def path_sha256(path: str | Path) -> str:
    """Hash of a weights file, or of all model files in a folder."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _MODEL_FILES):
        digest.update(f"{part.relative_to(path).as_posix()} {path_sha256(part)}\n".encode())
    return digest.hexdigest()


def config_sha256(config: Any) -> str:
    """Hash of an architecture, without what does not shape the model."""
    known = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version", "dtype")}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def hub_commit(repository: str, revision: str | None, files: Sequence[str]) -> str:
    """The commit a revision stands for: asked of the hub, else of the local cache.

    Args:
        repository: On the hub.
        revision: Branch, tag or commit; default: the main branch.
        files: Files of which one is in the cache, when the repository is.

    Returns:
        The commit.

    Raises:
        InputError: Neither knows.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().model_info(repository, revision=revision, timeout=10).sha)
        except Exception as error:  # no network, gated, absent: the cache may still have it
            reason = f"{type(error).__name__}: {one_line(error)}"
    for name in files:
        try:
            cached = try_to_load_from_cache(repository, name, revision=revision)
        except HFValidationError as error:
            raise InputError(f"model.name: {repository!r} can't be a name on the hub: {one_line(error)}") from None
        if isinstance(cached, str):
            return Path(cached).parent.name
    raise InputError(
        f"model.name: {repository!r} (revision {revision or 'main'}) can't be had from the hub and is not in its "
        "cache; check the name; without a network, give --model.checkpoint; of a gated model, accept the conditions "
        f"on its page and log in with hf auth login ({reason})"
    )


@contextmanager
def default_float32() -> Iterator[None]:
    """New tensors are float32, also where Lightning's precision says otherwise."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def on_cpu_in_float32(seed: int) -> Iterator[None]:
    """Build a model here and its random weights depend on the seed alone.

    Lightning's contexts around ``configure_model`` would draw them on the device and in bf16: other
    numbers. The global generator is left as it was.
    """
    with default_float32(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
