"""Open features: a finished ``.pt``, or the store of a run that is not finished.

N stimuli, L layers, D hidden size, T tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import shorten
from lit_extract.datasets.ids import id_key
from lit_extract.storage.features_export import to_rsatoolbox, to_xarray
from lit_extract.storage.features_file import open_file
from lit_extract.storage.features_picture import picture_of
from lit_extract.storage.features_words import as_html, as_text, by_number, in_words
from lit_extract.storage.layout import STORE_SUFFIX, TOKEN_IDS, Shape, stacked_shape
from lit_extract.storage.listing import refuse_plain_folder
from lit_extract.storage.places import AnyPath, is_folder, place_of, to_path
from lit_extract.storage.tensors import pad_layers

if TYPE_CHECKING:
    import pandas as pd
    import rsatoolbox
    import xarray
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Features:
    """Features of one model and one pooling on one dataset.

    Args:
        path: File or store that was opened.
        layers: Name of each layer, in the order of the tensor's second axis.
        stimulus_ids: Stimulus id of each row.
        num_params: Number of parameters of the whole model, head included.
        metadata: ``provenance`` (settings that determine the numbers), ``notes``, ``bad_input_rows`` (the input could
            not be read; the row is NaN) and ``not_finite_rows`` (the model gave NaN or infinity).
        layer_shapes: Shape of a row in each layer: (D,), or (T, D) if a stimulus has several vectors.
        dtype: "float32", "float16" or "bfloat16".
        n_done: Number of computed rows; fewer than N in the store of an unfinished run, where the other rows are
            NaN.
        extras: Further contents of a finished file: ``inputs`` (N, 4), notes on each image or caption; for captions,
            the attention ``mask`` (N, T) and, if asked for, ``loss`` (nats per token) and ``bpb`` (bits per byte),
            means over stimuli, with ``row_loss`` and ``row_bpb`` (N,). If all tokens of captions are kept, also
            ``token_ids`` (N, T); these and the mask exist in a store too.
    """

    path: AnyPath
    layers: list[str]
    stimulus_ids: list[int] | list[str]
    num_params: int
    metadata: dict[str, Any]
    layer_shapes: list[Shape]
    dtype: str
    n_done: int
    _read: Callable[..., Any]  # arguments: a layer, or None for all layers; with a layer, also some of the rows
    extras: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return as_html(self)

    def __len__(self) -> int:
        return len(self.stimulus_ids)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self.stimulus_ids)

    def __contains__(self, stimulus: object) -> bool:
        return id_key(stimulus) in self._rows

    def __getitem__(self, stimulus: int | str | Iterable[int | str]) -> Tensor | dict[str, Tensor]:
        """Return all layers of one stimulus, or of several stimuli in the given order.

        Args:
            stimulus: One id, or a list, array or column of ids; 3 and "3" are the same id.

        Returns:
            (L, D) for one id, (n, L, D) for n ids, with T before D if a stimulus has several vectors. If layers differ
            in shape, a dict from each layer's name to (D,) or (n, D).

        Raises:
            InputError: Some of the ids are not in these features.
        """
        if isinstance(stimulus, slice):  # type: ignore[unreachable]
            raise InputError(f"stimulus_ids: a slice has no ids; rows by number are {by_number(self)}[start:stop]")
        is_one = isinstance(stimulus, str) or not isinstance(stimulus, Iterable)
        rows = self.rows_of([stimulus] if is_one else stimulus)  # type: ignore[list-item, arg-type]
        by_layer: dict[str, Tensor] = {name: self._read(k, rows) for k, name in enumerate(self.layers)}
        if is_one:
            by_layer = {name: values[0] for name, values in by_layer.items()}
        if len({*self.layer_shapes}) > 1:
            return by_layer
        return torch.stack([*by_layer.values()], dim=0 if is_one else 1)

    @property
    def shape(self) -> Shape:
        """Return (N, L, D); (N, L, T, D) if a stimulus has several vectors; (N, L) if layers differ in shape."""
        return stacked_shape(len(self.stimulus_ids), self.layer_shapes)

    @property
    def feats(self) -> Tensor | dict[str, Tensor]:
        """Return all layers as stored in a ``.pt``, memory-mapped if they come from one.

        The result is one tensor of :attr:`shape`; if layers differ in shape, a dict from each layer's name to (N, D).
        :meth:`layer` works the same way in both cases.

        A remote ``.pt`` is copied to the folder for temporary files when this or a layer is first read; the copy is
        gone when the process ends.
        """
        feats: Tensor | dict[str, Tensor] = self._read(None)
        return feats

    @property
    def provenance(self) -> dict[str, Any]:
        """Return the settings that determine the numbers."""
        provenance: dict[str, Any] = self.metadata["provenance"]
        return provenance

    def layer(self, layer: str | int) -> Tensor:
        """Return one layer by name or index, (N, D) or (N, T, D), without reading the others.

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
        """Return the tokens of each caption in one layer, without padding.

        Args:
            layer: Name or index.
            rows: Rows to return; from a store, only these are read; default: all N.

        Returns:
            For each row, its token ids (T,) from the model's tokenizer, and their vectors (T, D).

        Raises:
            InputError: No such layer or row, or these are not features of captions with pooling "tokens".
        """
        k, n = self._place_of(layer), len(self.stimulus_ids)
        if TOKEN_IDS not in self.extras:
            raise InputError(f"tokens: {str(self.path)!r} has no tokens of captions, which only pooling tokens keeps")
        wanted = list(range(n)) if rows is None else [int(row) for row in rows]
        if outside := [str(row) for row in wanted if not 0 <= row < n]:
            raise InputError(f"rows: {name_some(outside)} must be 0 to {n - 1}")
        ids, lengths = self.extras[TOKEN_IDS][wanted], self.extras["mask"][wanted].sum(dim=1).tolist()
        vectors = self._read(k, wanted)
        return [(ids[place, :length], vectors[place, :length]) for place, length in enumerate(lengths)]

    def padded(self, rows: Sequence[int]) -> Tensor:
        """Return some rows of all layers, float32, each layer flattened and padded with zeros to the widest.

        The zeros do not change norms, distances and products within a layer.

        Args:
            rows: K rows.

        Returns:
            (K, L, size of the widest layer).
        """
        by_layer = [self.layer(k)[list(rows)].flatten(1).float() for k in range(len(self.layers))]
        return pad_layers(torch.cat(by_layer, dim=1), self.layer_shapes)

    def rows_of(self, stimulus_ids: Iterable[int | str]) -> list[int]:
        """Return the row of each stimulus, in the given order; an id may be given several times.

        Raises:
            InputError: Some of the ids are not in these features.
        """
        wanted = list(stimulus_ids)
        keys = [id_key(stimulus) for stimulus in wanted]
        missing = {key: given for given, key in zip(wanted, keys, strict=True) if key not in self._rows}
        if missing:
            raise InputError(f"stimulus_ids: {str(self.path)!r} has no row for {in_words(missing, self)}")
        return [self._rows[key] for key in keys]

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The row of each stimulus, by the key with which ids are compared."""
        return {id_key(stimulus): row for row, stimulus in enumerate(self.stimulus_ids)}

    def plot(self) -> "Figure":
        """Draw the norm of each layer, and the dissimilarity of stimuli at an early, a middle and the last layer.

        Returns:
            A matplotlib figure, which a notebook shows; ``.savefig("features.png")`` writes it.

        Raises:
            InputError: No stimulus has finite features yet, or matplotlib is not installed.
        """
        return picture_of(self)

    def of(self, trials: "pd.DataFrame", layer: str | int) -> Tensor:
        """Return one layer with a row for each trial, (trials, D), in their order, without reading the other layers.

        Args:
            trials: Table from :func:`lit_extract.load_trials`, or any other with a column ``stimulus_id``.
            layer: Name or index.

        Raises:
            InputError: No such layer, trials of another dataset, or stimuli that are not in these features.
        """
        return self.layer(layer)[self.rows_of_trials(trials)]

    def rows_of_trials(self, trials: "pd.DataFrame") -> list[int]:
        """Return the row of each trial's stimulus, see :meth:`of`."""
        if "stimulus_id" not in trials:
            raise InputError(f"trials: no column stimulus_id; found {name_some([*map(str, trials.columns)], 20)}")
        theirs, own = trials.attrs.get("dataset"), self.provenance.get("dataset")
        if theirs not in (None, own):
            raise InputError(f"trials: of the dataset {theirs!r}, but the features are of {own!r}")
        return self.rows_of(trials["stimulus_id"])

    def to_rsatoolbox(
        self, layer: str | int, rows: Sequence[int] | None = None, trials: "pd.DataFrame | None" = None
    ) -> "rsatoolbox.data.Dataset":
        """Return one layer as an rsatoolbox dataset, for RDMs and RSA.

        Args:
            layer: Name or index.
            rows: Rows to return; default: all N, for which an RDM of N × N may be too large.
            trials: Return a row for each trial instead, see :meth:`of`.

        Returns:
            A dataset with ``measurements`` (rows or trials, D), float32; several vectors of a stimulus are
            concatenated. ``stimulus_id`` and the other columns of ``trials``, such as subject, session and repetition,
            are observation descriptors; ``dim`` is a channel descriptor; model, layer, pooling, dataset and subset
            describe the dataset.

        Raises:
            InputError: No such layer or stimulus, rows and trials at once, or rsatoolbox is not installed.
        """
        return to_rsatoolbox(self, layer, rows, trials)

    def to_xarray(self, layer: str | int | None = None, trials: "pd.DataFrame | None" = None) -> "xarray.DataArray":
        """Return all layers, or one, with named axes, as for ``.sel(stimulus=42, layer="blocks.7")``.

        From a ``.pt``, numbers stay in the file until they are used. From a store, everything that is asked for is
        read at once.

        Args:
            layer: Name or index; default: all layers.
            trials: Return a row for each trial, see :meth:`of`; everything that is asked for is then read at once.

        Returns:
            ``(stimulus, layer, dim)``, or ``(stimulus, dim)`` for one layer, with ``token`` before ``dim`` if a
            stimulus has several vectors; bfloat16 becomes float32. The coordinate ``stimulus`` has the ids, ``layer``
            the names. With trials, the first dimension is ``trial``; ``stimulus_id`` and the other columns of the
            trials, such as subject, session and repetition, are coordinates along it. ``attrs`` has model, pooling,
            dataset, subset, and the whole provenance as JSON.

        Raises:
            InputError: No such layer or stimulus, layers that differ in shape and no ``layer``, or xarray is not
                installed.
        """
        return to_xarray(self, layer, trials)


def load_features(path: str | AnyPath, pool: str | None = None) -> Features:
    """Open a features file, or the store of a run that is not finalized.

    Args:
        path: A ``.pt``, or a ``.zarr`` folder, local or remote.
        pool: Pooling to open, if a store has several.

    Raises:
        InputError: Not a features file or store, or no such pooling.
    """
    path = to_path(path, "features")
    refuse_plain_folder(path, "features")
    local = place_of(path).local
    is_store = path.suffix == STORE_SUFFIX if local is None else is_folder(local)
    if not is_store:
        return Features(path, **open_file(path, pool))
    from lit_extract.storage.features_store import open_store  # it imports zarr

    return Features(path, **open_store(path, pool))
