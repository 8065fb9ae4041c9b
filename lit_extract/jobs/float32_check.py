"""The check at the end of a run: a few stimuli again in float32, to measure the rounding of the run's precision.

The weights stay rounded as in the run; ``verify --parity`` measures the effect of that.

K stimuli computed again, P poolings, L layers, D hidden size.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lit_extract.common.errors import InputError, one_line
from lit_extract.data.base import StimulusDataModule
from lit_extract.modules.base import Extractor, by_row
from lit_extract.modules.precision import ieee_float32, in_float32
from lit_extract.modules.weights import default_float32
from lit_extract.storage.layout import OK, ROW_OF, feats_arrays
from lit_extract.storage.rounding import NOTE
from lit_extract.storage.store import Store
from lit_extract.storage.tensors import pad_layers, to_tensor

logger = logging.getLogger(__name__)

STIMULI = 8


def check_store(store: Store, model: Extractor, data: StimulusDataModule, trainer: Trainer) -> None:
    """Compute a few stimuli of a complete store again, in float32, and note the difference to the store.

    If the check fails, the features are kept; the reason is noted and logged.
    """
    check: dict[str, Any] = {"precision": store.provenance["precision"]}
    try:
        rows = choose_rows(store.status())
        if not rows:
            return
        again = compute_again(rows, model, data, trainer)  # (K, P, L, most numbers of a layer)
        pools = {pool: compare(read_rows(store, pool, rows), again[:, k]) for k, pool in enumerate(model.pools)}
        check |= {"rows": rows, "pools": pools}
    except Exception as error:  # raised by any model; the computed features are kept
        check["failed"] = f"{type(error).__name__}: {one_line(error)}"
        logger.warning(f"the check of {check['precision']} against float32 failed: {check['failed']}")
    try:
        store.note(NOTE, check)
    except (InputError, OSError) as error:
        logger.warning(f"the check against float32 could not be noted in {store.path}: {one_line(error)}")


def choose_rows(status: NDArray[np.uint8]) -> list[int]:
    """Return at most K good rows, from the first to the last; they do not depend on interruptions."""
    good = np.flatnonzero(status == OK)
    places = np.unique(np.linspace(0, len(good) - 1, min(len(good), STIMULI)).astype(int))
    return [int(row) for row in good[places]]


def read_rows(store: Store, pool: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Return features of some rows of a store, padded as by :func:`pad_layers`."""
    found = []
    for array in feats_arrays(pool, store.layer_shapes):
        shards = {shard: store.read_shard(array.name, shard) for shard in {row // store.shard_rows for row in rows}}
        numbers = np.stack([shards[row // store.shard_rows][row % store.shard_rows] for row in rows])
        found.append(to_tensor(numbers).flatten(1))
    return np.asarray(pad_layers(torch.cat(found, dim=1), store.layer_shapes).numpy())


def compute_again(
    rows: Sequence[int], model: Extractor, data: StimulusDataModule, trainer: Trainer
) -> NDArray[np.float32]:
    """Compute features of some rows, one at a time, in float32: (K, P, …), padded as by :func:`pad_layers`."""
    device = trainer.strategy.root_device
    with torch.no_grad(), default_float32(), ieee_float32(), torch.autocast(device.type, enabled=False):
        backbone = model.loaded_backbone(trainer)
        was_on = next(backbone.parameters()).device
        backbone.to(device)
        try:
            with in_float32(backbone, streamed=model.streamed is not None):
                batches = data.batches_of([[row] for row in rows])
                inputs, feats = [], []
                for place, row in enumerate(rows):
                    batch = batches[place]
                    if batch["bad"].any():
                        raise InputError(f"row {row} can't be read again")
                    inputs.append(move_data_to_device({name: batch[name] for name in model.inputs}, device))
                for place, outputs in enumerate(model.compute(inputs)):
                    batch = batches[place]
                    outputs = by_row(outputs, batch[ROW_OF]) if ROW_OF in batch else outputs
                    feats.append(outputs["feats"][0].cpu())  # (P, numbers)
        finally:
            backbone.to(was_on)
    by_pool = [pad_layers(torch.stack(rows), model.layer_shapes) for rows in zip(*feats, strict=True)]
    return np.asarray(torch.stack(by_pool, dim=1).numpy())


def compare(found: NDArray[np.float32], again: NDArray[np.float32]) -> dict[str, list[float | None]]:
    """Measure how far features of a run are from float32 (both K, L, numbers), by layer.

    ``relative_error`` is the norm of the difference, relative to the norm; ``of_differences``, relative to the norm of
    the differences between the K stimuli. None if the denominator is 0, or not finite.
    """
    run, reference = found.astype(np.float64), again.astype(np.float64)
    error, norm, spread = (
        np.sqrt(np.square(values).sum(axis=(0, 2)))  # (L,)
        for values in (run - reference, reference, reference - reference.mean(axis=0))
    )
    differ = (again != again[:1]).any(axis=(0, 2))  # the mean of equal rows may differ in the last bit
    ratios = {"relative_error": (error, norm), "of_differences": (error, np.where(differ, spread, 0))}
    with np.errstate(all="ignore"):
        return {
            name: [float(ratio) if np.isfinite(ratio) else None for ratio in of / to]
            for name, (of, to) in ratios.items()
        }
