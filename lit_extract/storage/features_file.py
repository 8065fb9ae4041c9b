"""Read a finished features file; its numbers stay in the file until they are used."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_extract.common.errors import InputError, one_line
from lit_extract.storage.archive import TensorRecord, name_of_open
from lit_extract.storage.disk import check_room
from lit_extract.storage.features_form import FEATS_DTYPES, feats_records, form_of, read_features_content
from lit_extract.storage.layout import FEATURES_KEYS, FEATURES_SUFFIX, KEPT_AS
from lit_extract.storage.places import LARGE, AnyPath, place_of
from lit_extract.storage.tensors import to_tensor


def open_file(path: AnyPath, pool: str | None) -> dict[str, Any]:
    """Return the arguments of Features for a ``.pt``."""
    local = place_of(path).local
    with _opened(path) as file:
        content = read_features_content(file)
        form = form_of(content)
        mapped = None if local is None else _map_feats(file, local, content)
        extras = {name: value for name, value in content.items() if name not in FEATURES_KEYS}
        for name, value in extras.items():
            if isinstance(value, TensorRecord) and local is not None:
                extras[name] = _map(file, local, value)
            elif isinstance(value, TensorRecord):
                file.seek(value.offset)
                extras[name] = _numbers_of(np.frombuffer(bytearray(file.read(value.nbytes)), np.uint8), value)
    stored = content["metadata"]["provenance"]["pool"]
    if pool not in (None, stored):
        raise InputError(f"pool: {str(path)!r} has {stored!r}, not {pool!r}")

    all_feats = cache(lambda: _fetch_feats(path, content) if mapped is None else mapped)

    def read(layer: int | None, rows: list[int] | None = None) -> Any:
        feats = all_feats()
        if layer is None:
            return feats
        found = feats[content["layers"][layer]] if isinstance(feats, dict) else feats[:, layer]
        return found if rows is None else found[rows]

    return {
        **{name: content[name] for name in ("layers", "stimulus_ids", "num_params", "metadata")},
        "layer_shapes": form.layer_shapes,
        "dtype": form.dtype,
        "n_done": form.n_stimuli,
        "_read": read,
        "extras": extras,
    }


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """Return the metadata of a ``.pt``, or raise InputError; no numbers are read."""
    with _opened(path) as file:
        metadata: dict[str, Any] = read_features_content(file)["metadata"]
    return metadata


@contextmanager
def _opened(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a features file for reading bytes; anything wrong with it, also while it is read, is an InputError."""
    try:
        with place_of(path).open_to_read() as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"features: no file {str(path)!r}") from None
    except InputError:
        raise
    except (ValueError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise InputError(f"features: {str(path)!r} is not a features file that this version reads: {reason}") from None


def _map(file: BinaryIO, path: Path, record: TensorRecord) -> Tensor:
    """Map a tensor of a local file: numbers are read on use, changes stay in memory, and no file stays open."""
    if not record.nbytes:
        return _numbers_of(np.empty(0, np.uint8), record)
    size = os.fstat(file.fileno()).st_size
    whole = torch.from_file(name_of_open(file, path), shared=False, size=size, dtype=torch.uint8)
    return _numbers_of(whole[record.offset : record.offset + record.nbytes].numpy(), record)


def _numbers_of(content: NDArray[np.uint8], record: TensorRecord) -> Tensor:
    """Return a tensor from the bytes of its numbers, in the form that a record states."""
    kept_as = KEPT_AS[FEATS_DTYPES[record.dtype]] if record.dtype in FEATS_DTYPES else record.dtype
    return to_tensor(content.view(kept_as).reshape(record.shape))


def _fetch_feats(path: AnyPath, content: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
    """Map a remote file's features from a private copy."""
    with tempfile.NamedTemporaryFile(suffix=FEATURES_SUFFIX) as copy:
        folder, place = Path(copy.name).parent, Path(copy.name)
        n_bytes = sum(record.nbytes for record in feats_records(content))
        check_room(folder, 0, n_bytes, 0, f"set TMPDIR to a folder with space for a copy of {path}")
        with place_of(path).open_to_read(LARGE) as source:
            shutil.copyfileobj(source, copy, LARGE)
        copy.flush()
        with _opened(place) as file:
            if read_features_content(file)["feats"] != content["feats"]:
                raise InputError(f"features: {str(path)!r} has changed since it was opened")
            return _map_feats(file, place, content)


def _map_feats(file: BinaryIO, path: Path, content: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
    feats = content["feats"]
    if isinstance(feats, TensorRecord):
        return _map(file, path, feats)
    return {layer: _map(file, path, record) for layer, record in feats.items()}
