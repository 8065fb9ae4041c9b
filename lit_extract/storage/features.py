"""Reading features: a finished ``.pt``, or the store of a run that is still going.

N stimuli, L layers, D hidden size, T tokens.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import shorten, validate
from lit_extract.datasets.ids import id_key
from lit_extract.storage.archive import TensorRecord, name_of_open
from lit_extract.storage.disk import check_room
from lit_extract.storage.features_form import (
    FEATS_DTYPES,
    METADATA,
    feats_records,
    form_of,
    read_features_content,
)
from lit_extract.storage.layout import (
    BAD_INPUT,
    FEATURES_KEYS,
    FEATURES_SUFFIX,
    KEPT_AS,
    MISSING,
    N_TOKENS,
    NOT_FINITE,
    STORE_SUFFIX,
    TOKEN_IDS,
    Shape,
    stacked_shape,
)
from lit_extract.storage.listing import refuse_plain_folder
from lit_extract.storage.places import LARGE, AnyPath, is_folder, place_of, to_path
from lit_extract.storage.tensors import pad_layers, to_tensor

if TYPE_CHECKING:
    import pandas as pd
    import rsatoolbox
    import xarray


@dataclass(frozen=True)
class Features:
    """Features of one model and one pooling on one dataset.

    Args:
        path: Where they were read from.
        layers: Name of each layer, in the order of the tensor's second axis.
        stimulus_ids: Id of each row.
        num_params: Parameters of the whole model, head included.
        metadata: ``provenance`` (what determines the numbers), ``notes``, ``bad_input_rows`` (inputs that
            could not be read: NaN) and ``not_finite_rows`` (the model gave NaN or infinity).
        layer_shapes: Shape of a row in each layer: (D,), or (T, D) of several vectors a stimulus.
        dtype: "float32", "float16" or "bfloat16".
        n_done: Rows that are computed; fewer than N in the store of an unfinished run, where the others
            are NaN.
        extras: What else a finished file holds: of language models the attention ``mask`` (N, T) and, when
            asked for, ``loss`` (nats a token) and ``bpb`` (bits a byte), means over stimuli, with
            ``row_loss`` and ``row_bpb`` (N,); of vision models ``inputs`` (N, 4), what was noted of each image. Where
            all tokens of captions are kept, ``token_ids`` (N, T) and the mask, also of a store.
    """

    path: AnyPath
    layers: list[str]
    stimulus_ids: list[int] | list[str]
    num_params: int
    metadata: dict[str, Any] = field(repr=False)
    layer_shapes: list[Shape]
    dtype: str
    n_done: int
    _read: Callable[..., Any] = field(repr=False)  # a layer, or None for all; of a layer all rows, or some
    extras: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> Shape:
        """Return (N, L, D), or (N, L, T, D) of several vectors a stimulus; (N, L) if layers differ in shape."""
        return stacked_shape(len(self.stimulus_ids), self.layer_shapes)

    @property
    def feats(self) -> Tensor | dict[str, Tensor]:
        """Return all layers as they are in a ``.pt``, and memory-mapped when read from one.

        That is one tensor, of :attr:`shape`; if layers differ in shape it is one for each, (N, D) by name. With
        :meth:`layer` the two need not be told apart.

        A remote ``.pt`` is copied into the folder for temporary files when this, or a layer, is first asked for; the
        copy goes with the process.
        """
        feats: Tensor | dict[str, Tensor] = self._read(None)
        return feats

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what determines the numbers."""
        provenance: dict[str, Any] = self.metadata["provenance"]
        return provenance

    def layer(self, layer: str | int) -> Tensor:
        """Return one layer by name or index, without reading the others: (N, D), or (N, T, D) of several vectors.

        Raises:
            InputError: No such layer.
        """
        found: Tensor = self._read(self._place_of(layer))
        return found

    def _place_of(self, layer: str | int) -> int:
        known = layer in self.layers if isinstance(layer, str) else -len(self.layers) <= layer < len(self.layers)
        if not known:
            names = shorten(", ".join(self.layers), 4000)
            raise InputError(f"layer: {layer!r} is not one of the {len(self.layers)} layers {names}")
        return self.layers.index(layer) if isinstance(layer, str) else layer % len(self.layers)

    def tokens(self, layer: str | int, rows: Sequence[int] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the tokens of captions in one layer, each caption's own without what fills its row up.

        Args:
            layer: Name or index.
            rows: Rows to take, and to read from a store; default: all N.

        Returns:
            For each row its token ids (T,), as the model's tokenizer has them, and their vectors (T, D).

        Raises:
            InputError: No such layer or row; these are no features of all tokens of captions (pooling "tokens").
        """
        k, n = self._place_of(layer), len(self.stimulus_ids)
        if TOKEN_IDS not in self.extras:
            raise InputError(f"tokens: {str(self.path)!r} has not all tokens of captions, which pooling tokens keeps")
        wanted = list(range(n)) if rows is None else [int(row) for row in rows]
        if outside := [str(row) for row in wanted if not 0 <= row < n]:
            raise InputError(f"rows: {name_some(outside)} must be 0 to {n - 1}")
        ids, lengths = self.extras[TOKEN_IDS][wanted], self.extras["mask"][wanted].sum(dim=1).tolist()
        vectors = self._read(k, wanted)
        return [(ids[place, :length], vectors[place, :length]) for place, length in enumerate(lengths)]

    def padded(self, rows: Sequence[int]) -> Tensor:
        """Return some rows of all layers, float32, each layer flattened and padded with zeros to the widest.

        Norms, distances and products of layers are as they were without the zeros.

        Args:
            rows: K rows.

        Returns:
            (K, L, most numbers of a layer).
        """
        by_layer = [self.layer(k)[list(rows)].flatten(1).float() for k in range(len(self.layers))]
        return pad_layers(torch.cat(by_layer, dim=1), self.layer_shapes)

    def rows_of(self, stimulus_ids: Iterable[int | str]) -> list[int]:
        """Return the row of each of some stimuli, in their order; the same one may be asked for several times.

        Raises:
            InputError: Some of the ids are not in these features.
        """
        places = {id_key(stimulus): row for row, stimulus in enumerate(self.stimulus_ids)}
        wanted = list(stimulus_ids)
        keys = [id_key(stimulus) for stimulus in wanted]
        missing = dict.fromkeys(str(given) for given, key in zip(wanted, keys, strict=True) if key not in places)
        if missing:
            raise InputError(
                f"stimulus_ids: {str(self.path)!r} has no row for {len(missing)} of them: "
                f"{name_some([shorten(stimulus) for stimulus in missing])}"
            )
        return [places[key] for key in keys]

    def of(self, trials: "pd.DataFrame", layer: str | int) -> Tensor:
        """Return one layer for each trial, as (trials, D), in the order of the trials, without reading the others.

        Args:
            trials: From :func:`lit_extract.load_trials`, or any table with a column ``stimulus_id``.
            layer: Name or index.

        Raises:
            InputError: No such layer; trials of another dataset; stimuli that are not in these features.
        """
        return self.layer(layer)[self._rows_of_trials(trials)]

    def _rows_of_trials(self, trials: "pd.DataFrame") -> list[int]:
        if "stimulus_id" not in trials:
            raise InputError(f"trials: no column stimulus_id; it has {name_some([*map(str, trials.columns)], 20)}")
        theirs, own = trials.attrs.get("dataset"), self.provenance.get("dataset")
        if theirs not in (None, own):
            raise InputError(f"trials: they are of the dataset {theirs!r}, the features of {own!r}")
        return self.rows_of(trials["stimulus_id"])

    def to_rsatoolbox(
        self, layer: str | int, rows: Sequence[int] | None = None, trials: "pd.DataFrame | None" = None
    ) -> "rsatoolbox.data.Dataset":
        """Return one layer as a dataset of rsatoolbox, for RDMs and RSA.

        Args:
            layer: Name or index.
            rows: Rows to take; default: all N, which an RDM of N × N may be too much for.
            trials: Take the row of each trial instead, see :meth:`of`.

        Returns:
            ``measurements`` (rows or trials, D), float32, several vectors of a stimulus one after the other;
            ``stimulus_id`` and the other columns of ``trials``, such as subject, session and repetition, are
            observation descriptors, ``dim`` a channel descriptor, and model, layer, pooling, dataset and subset
            describe the dataset.

        Raises:
            InputError: No such layer or stimulus, rows and trials at once, or rsatoolbox is not installed.
        """
        try:
            from rsatoolbox.data import Dataset
        except ImportError:
            raise InputError("to_rsatoolbox needs rsatoolbox: pip install 'lit-extract[report]'") from None
        if rows is not None and trials is not None:
            raise InputError("rows and trials: give one of the two")
        feats, ids = self.layer(layer), self.stimulus_ids
        if trials is not None:
            rows = self._rows_of_trials(trials)
        if rows is not None:
            feats, ids = feats[list(rows)], [ids[row] for row in rows]  # type: ignore[assignment]
        feats = feats.flatten(1)
        return Dataset(
            feats.float().numpy(),
            descriptors={**self._names(), "layer": self._name_of(layer)},
            obs_descriptors={"stimulus_id": list(ids), **_columns_of(trials)},
            channel_descriptors={"dim": list(range(feats.shape[1]))},
        )

    def to_xarray(self, layer: str | int | None = None, trials: "pd.DataFrame | None" = None) -> "xarray.DataArray":
        """Return all layers, or one, with names on the axes: ``.sel(stimulus=42, layer="blocks.7")``.

        Read from a ``.pt`` nothing is loaded before it is used: the numbers stay in the file. From a store all that
        is asked for is read.

        Args:
            layer: Name or index; default: all.
            trials: Take the row of each trial, see :meth:`of`; all that is asked for is then read.

        Returns:
            ``(stimulus, layer, dim)``, or ``(stimulus, dim)`` of one layer, with ``token`` before ``dim`` where a
            stimulus has several vectors; bfloat16 as float32. ``stimulus`` are the ids, ``layer`` the
            names. With trials the first dimension is ``trial``, along which ``stimulus_id`` and the other columns of
            the trials, such as subject, session and repetition, are coordinates. ``attrs`` has model, pooling, dataset,
            subset, and the whole provenance as JSON.

        Raises:
            InputError: No such layer or stimulus, no layer though they differ in shape, or xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise InputError("to_xarray needs xarray: pip install 'lit-extract[report]'") from None
        feats = self.feats if layer is None else self.layer(layer)
        if isinstance(feats, dict):
            raise InputError(f"layer: give one, as the layers of {str(self.path)!r} differ in shape")
        if self.dtype == "bfloat16":
            feats = feats.float()  # numpy has no other type for it
        dimensions = [*(["layer"] if layer is None else []), *["token", "dim"][-len(self.layer_shapes[0]) :]]
        rows, ids = "stimulus", np.array(self.stimulus_ids)
        coordinates: dict[str, Any] = {"stimulus": ids}
        if trials is not None:
            places = self._rows_of_trials(trials)
            rows, feats = "trial", feats[places]
            described = {"stimulus_id": ids[places], **_columns_of(trials)}
            coordinates = {name: (rows, values) for name, values in described.items()}
        coordinates["layer"] = self.layers if layer is None else self._name_of(layer)
        attributes = {**self._names(), "provenance": json.dumps(self.provenance)}
        return xarray.DataArray(feats.numpy(), coordinates, [rows, *dimensions], name="features", attrs=attributes)

    def _name_of(self, layer: str | int) -> str:
        return layer if isinstance(layer, str) else self.layers[layer]

    def _names(self) -> dict[str, Any]:
        return {key: self.provenance.get(key) for key in ("model", "pool", "dataset", "subset")}


def _columns_of(trials: "pd.DataFrame | None") -> dict[str, list[Any]]:
    """Return what describes each trial; its row in the dataset's table is not its row here."""
    if trials is None:
        return {}
    return {str(name): trials[name].tolist() for name in trials.columns if name not in ("stimulus_id", "row")}


def load_features(path: str | AnyPath, pool: str | None = None) -> Features:
    """Open a features file, or the store of a run that is not finalized.

    Args:
        path: A ``.pt``, or a ``.zarr`` folder, local or remote.
        pool: Which pooling of a store that has several.

    Raises:
        InputError: Not a features file or store, or no such pooling.
    """
    path = to_path(path, "features")
    refuse_plain_folder(path, "features")
    local = place_of(path).local
    is_store = path.suffix == STORE_SUFFIX if local is None else is_folder(local)
    return _from_store(path, pool) if is_store else _from_file(path, pool)


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """Return the metadata of a ``.pt``, or raise InputError; no numbers are read."""
    with _opened(path) as file:
        metadata: dict[str, Any] = read_features_content(file)["metadata"]
    return metadata


@contextmanager
def _opened(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a features file for reading bytes; whatever is wrong with it, also while it is read, is an InputError."""
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
    """Map a tensor of a local file: its numbers come from the disk, changes stay in memory, and no file stays open."""
    if not record.nbytes:
        return _numbers_of(np.empty(0, np.uint8), record)
    size = os.fstat(file.fileno()).st_size
    whole = torch.from_file(name_of_open(file, path), shared=False, size=size, dtype=torch.uint8)
    return _numbers_of(whole[record.offset : record.offset + record.nbytes].numpy(), record)


def _numbers_of(content: NDArray[np.uint8], record: TensorRecord) -> Tensor:
    """Return a tensor of the bytes that a record says are its numbers."""
    kept_as = KEPT_AS[FEATS_DTYPES[record.dtype]] if record.dtype in FEATS_DTYPES else record.dtype
    return to_tensor(content.view(kept_as).reshape(record.shape))


def _fetch_feats(path: AnyPath, content: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
    """Map a remote file's features from a copy that nobody else sees."""
    with tempfile.NamedTemporaryFile(suffix=FEATURES_SUFFIX) as copy:
        folder, place = Path(copy.name).parent, Path(copy.name)
        n_bytes = sum(record.nbytes for record in feats_records(content))
        check_room(folder, 0, n_bytes, 0, f"set TMPDIR to a folder that has room for a copy of {path}")
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


def _from_file(path: AnyPath, pool: str | None) -> Features:
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

    return Features(
        path,
        content["layers"],
        content["stimulus_ids"],
        content["num_params"],
        content["metadata"],
        form.layer_shapes,
        form.dtype,
        form.n_stimuli,
        read,
        extras,
    )


def _from_store(path: AnyPath, pool: str | None) -> Features:
    from lit_extract.storage.store import Store

    store = Store(path)
    if pool is None and len(store.pools) == 1:
        pool = store.pools[0]
    if pool not in store.pools:
        raise InputError(f"pool: {pool!r} must be one of {', '.join(store.pools)}, which {str(path)!r} holds")
    chosen: str = pool
    status = store.status()

    is_without = torch.from_numpy(np.isin(status, (MISSING, BAD_INPUT)))

    def read(layer: int | None, rows: list[int] | None = None) -> Any:
        if layer is not None:
            feats = to_tensor(store.read_layer(chosen, layer, rows))
            feats[is_without if rows is None else is_without[rows]] = torch.nan
            return feats
        by_layer = {name: read(k) for k, name in enumerate(store.layers)}
        return torch.stack([*by_layer.values()], dim=1) if len({*store.layer_shapes}) == 1 else by_layer

    metadata = {
        "provenance": {**store.provenance, "pool": chosen},
        "notes": store.notes,
        "bad_input_rows": (status == BAD_INPUT).nonzero()[0].tolist(),
        "not_finite_rows": (status == NOT_FINITE).nonzero()[0].tolist(),
    }
    validate(METADATA, metadata, f"features: {str(path)!r}")
    extras: dict[str, Tensor] = {}
    if TOKEN_IDS in store.extras:
        extras[TOKEN_IDS] = torch.from_numpy(store.extra(TOKEN_IDS))
        n_tokens = torch.from_numpy(store.extra(N_TOKENS))
        extras["mask"] = (torch.arange(extras[TOKEN_IDS].shape[1]) < n_tokens[:, None]).byte()
    n_done = int((status != MISSING).sum())
    form = store.layer_shapes, store.dtype
    num_params = store.notes["num_params"]
    return Features(path, store.layers, store.stimulus_ids(), num_params, metadata, *form, n_done, read, extras)
