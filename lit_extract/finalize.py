"""From a complete store to features files: one streaming pass, memory of one shard.

N stimuli, L layers, D hidden size.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_extract.archive import fill_record
from lit_extract.disk import bytes_there, check_room, features_bytes
from lit_extract.errors import InputError, name_some
from lit_extract.features import read_metadata
from lit_extract.lock import write_lock
from lit_extract.provenance import differing, features_provenance, inputs_sha256
from lit_extract.store import BAD_INPUT, N_BYTES, NOT_FINITE, Store

FORMAT = 1


def finalize(store: str | Path, keep_store: bool = False) -> list[Path]:
    """Turn a complete store into its features files, one a pooling.

    Args:
        store: Folder of the store (``….zarr``).
        keep_store: Leave the store in place.

    Returns:
        The features files.

    Raises:
        InputError: Not a store, rows are missing, another run is writing it, or the disk has no room for the files.
    """
    path = Path(store)
    if not path.is_dir():
        raise InputError(f"store: {str(path)!r} is not a folder")
    with write_lock(path):
        return finalize_locked(Store(path), keep_store)


def finalize_locked(store: Store, keep_store: bool) -> list[Path]:
    """:func:`finalize` for a caller that holds the store's lock."""
    store.drop_damaged()
    if missing := store.missing_rows():
        rows = [f"{rows.start} to {rows.stop - 1}" for rows in missing]
        raise InputError(
            f"{str(store.path)!r} is not complete: {sum(map(len, missing))} of {store.n_stimuli} rows are missing: "
            f"rows {name_some(rows)}; run the same predict command again to go on"
        )
    files = {pool: store.path.parent / name for pool, name in store.notes["files"].items()}
    left = [pool for pool, file in files.items() if not is_finished(file, features_provenance(store.provenance, pool))]
    size = features_bytes(store.n_stimuli, len(store.layers), store.n_dim)
    check_room(
        store.path.parent,
        store=0,
        files=len(left) * size,
        replaced=bytes_there(map(_part, files.values())),  # of a finalize that was killed; they are written over
        advice=f"make room, then run lit-extract finalize {store.path}",
    )
    for pool in left:
        _write_features(store, pool, files[pool])
    if keep_store:
        store.keep()
    else:
        store.remove()
    return list(files.values())


def is_finished(file: Path, provenance: dict[str, Any]) -> bool:
    """Whether ``file`` is there, with exactly this provenance.

    Raises:
        InputError: It is there with another; the differing settings are named.
    """
    if not file.exists():
        return False
    if difference := differing(read_metadata(file)["provenance"], provenance):
        raise InputError(
            f"{str(file)!r} was made with other settings: {difference}. Pass --overwrite to predict to replace it, or "
            "choose another --output_dir"
        )
    return True


def _write_features(store: Store, pool: str, file: Path) -> None:
    """Write the file beside, verify it, rename it."""
    part = _part(file)
    shape = store.n_stimuli, len(store.layers), store.n_dim
    shards = (store.read_shard(pool, shard) for shard in range(store.n_shards))
    tensors = {"feats": _Numbers(shape, torch.float32, shards), **_extra_tensors(store)}
    try:
        _save_skeleton(_content(store, pool), tensors, part)
        checksums = [
            fill_record(part, f"/data/{place}", numbers.chunks) for place, numbers in enumerate(tensors.values())
        ]
        _verify(part, dict(zip(tensors, checksums, strict=True)))
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"can't write {str(file)!r}: {error}; nothing is lost: make room, then run "
            f"lit-extract finalize {store.path}"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(file)


def _part(file: Path) -> Path:
    """What a features file is called while it is made."""
    return file.with_name(f".{file.name}.part")


@dataclass(frozen=True)
class _Numbers:
    """A tensor to be, whose numbers come in chunks, in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Iterable[NDArray[Any]]


def _content(store: Store, pool: str) -> dict[str, Any]:
    """All of a features file but its tensors."""
    status = store.status()
    content: dict[str, Any] = {
        "num_params": store.notes["num_params"],
        "layers": store.layers,
        "stimulus_ids": store.stimulus_ids(),
        "metadata": {
            "format": FORMAT,
            "provenance": features_provenance(store.provenance, pool),
            "notes": {key: value for key, value in store.notes.items() if key != "files"},
            "n_bytes_sha256": inputs_sha256(store.extra(N_BYTES)) if N_BYTES in store.extras else None,
            "bad_input_rows": np.flatnonzero(status == BAD_INPUT).tolist(),
            "not_finite_rows": np.flatnonzero(status == NOT_FINITE).tolist(),
        },
    }
    for name in _MEANS:
        if name in store.extras:
            content[name] = float(np.nanmean(store.extra(name)))
    return content


# Per-row values of language models: their mean under the name, the rows under row_<name>.
_MEANS = ("loss", "bpb")


def _extra_tensors(store: Store) -> dict[str, _Numbers]:
    tensors = {}
    if "n_tokens" in store.extras:
        lengths = store.extra("n_tokens")
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.uint8)
        tensors["mask"] = _Numbers(mask.shape, torch.uint8, [mask])
    for name in _MEANS:
        if name in store.extras:
            values = store.extra(name)
            tensors[f"row_{name}"] = _Numbers(values.shape, torch.float32, [values])
    return tensors


def _save_skeleton(content: dict[str, Any], tensors: dict[str, _Numbers], part: Path) -> None:
    """A features file with holes where the numbers go; the first tensor is its first record, and so on."""
    with FakeTensorMode():
        holes = {name: torch.empty(numbers.shape, dtype=numbers.dtype) for name, numbers in tensors.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({**holes, **content}, part)


def _verify(part: Path, checksums: dict[str, int]) -> None:
    """Open the file as a reader would and compare what is in it with what went in."""
    content = torch.load(part, mmap=True, weights_only=True)
    for name, expected in checksums.items():
        tensor: NDArray[Any] = content[name].numpy()
        found = 0
        for first in range(0, len(tensor), _VERIFIED_ROWS):
            found = zlib.crc32(tensor[first : first + _VERIFIED_ROWS].data, found)
        if found != expected:
            raise OSError(f"{name} read back differs from what was written (CRC-32 {found:08x}, not {expected:08x})")


_VERIFIED_ROWS = 1024
