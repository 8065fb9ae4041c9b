"""From a complete store to features files: one streaming pass, memory of one shard.

N stimuli, L layers, D hidden size.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_extract.errors import InputError, name_some
from lit_extract.features import read_metadata
from lit_extract.lock import write_lock
from lit_extract.store import BAD_INPUT, N_BYTES, NOT_FINITE, Store, differing

FORMAT = 1


def finalize(store: str | Path, keep_store: bool = False) -> list[Path]:
    """Turn a complete store into its features files, one a pooling.

    Args:
        store: Folder of the store (``….zarr``).
        keep_store: Leave the store in place.

    Returns:
        The features files.

    Raises:
        InputError: Not a store, rows are missing, another run is writing it, or the disk is full.
    """
    path = Path(store)
    if not path.is_dir():
        raise InputError(f"store: {str(path)!r} is not a folder")
    with write_lock(path):
        return finalize_locked(Store(path), keep_store)


def finalize_locked(store: Store, keep_store: bool) -> list[Path]:
    """:func:`finalize` for a caller that holds the store's lock."""
    if missing := store.missing_rows():
        rows = [f"{rows.start} to {rows.stop - 1}" for rows in missing]
        raise InputError(
            f"{str(store.path)!r} is not complete: {sum(map(len, missing))} of {store.n_stimuli} rows are missing: "
            f"rows {name_some(rows)}; run the same predict command again to go on"
        )
    files = {pool: store.path.parent / name for pool, name in store.notes["files"].items()}
    left = [pool for pool, file in files.items() if not is_finished(file, features_provenance(store.provenance, pool))]
    for pool in left:
        _write_features(store, pool, files[pool])
    if not keep_store:
        store.remove()
    return list(files.values())


def features_provenance(provenance: dict[str, Any], pool: str) -> dict[str, Any]:
    """Provenance of one pooling's file."""
    return {**provenance, "pool": pool}


def inputs_sha256(n_bytes: NDArray[np.int64]) -> str:
    """Hash of the size of each row's input: it changes when images are encoded anew, say."""
    return hashlib.sha256(n_bytes.astype("<i8").tobytes()).hexdigest()


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
    part = file.with_name(f".{file.name}.part")
    shape = store.n_stimuli, len(store.layers), store.n_dim
    shards = (store.read_shard(pool, shard) for shard in range(store.n_shards))
    tensors = {"feats": _Numbers(shape, torch.float32, shards), **_extra_tensors(store)}
    try:
        _save_skeleton(_content(store, pool), tensors, part)
        checksums = [_fill(part, f"/data/{place}", numbers.chunks) for place, numbers in enumerate(tensors.values())]
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


def _fill(part: Path, ending: str, chunks: Iterable[NDArray[Any]]) -> int:
    """Write numbers into the hole of a record; return their CRC-32.

    A ``.pt`` is a zip archive. A record's checksum, which the skeleton leaves 0, is filled in too, so
    that ``python -m zipfile -t FILE`` finds damage years later.
    """
    with zipfile.ZipFile(part) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith(ending))
        directory = archive.start_dir
    checksum = 0
    with part.open("r+b") as file:
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        name_length, extra_length = _LOCAL_HEADER.unpack(header)[-2:]
        start = record.header_offset + len(header) + name_length + extra_length
        file.seek(start)
        for chunk in chunks:
            contiguous = np.ascontiguousarray(chunk)
            file.write(contiguous.data)
            checksum = zlib.crc32(contiguous.data, checksum)
        assert file.tell() == start + record.file_size, "the numbers do not fill the tensor"
        packed = struct.pack("<I", checksum)
        assert file.read(4) == _DESCRIPTOR_MARK
        file.seek(start + record.file_size + 4)
        file.write(packed)
        file.seek(_directory_entry(file, directory, record.filename) + _CRC_IN_DIRECTORY_ENTRY)
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    return checksum


# Layout of a zip archive: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7, 4.3.9 and 4.3.12
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_DIRECTORY_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_CRC_IN_DIRECTORY_ENTRY = 16
_DESCRIPTOR_MARK = b"PK\x07\x08"


def _directory_entry(file: BinaryIO, start: int, name: str) -> int:
    """Where a record's entry in the central directory begins."""
    while True:
        file.seek(start)
        fields = _DIRECTORY_ENTRY.unpack(file.read(_DIRECTORY_ENTRY.size))
        name_length, extra_length, comment_length = fields[10:13]
        if file.read(name_length).decode() == name:
            return start
        start += _DIRECTORY_ENTRY.size + name_length + extra_length + comment_length


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
