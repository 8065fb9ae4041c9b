"""Predictions that are still on their way from a GPU: not read before they are there, and none is lost."""

import numpy as np
import torch

from lit_extract.storage.layout import N_BYTES
from lit_extract.storage.store import Store, StoreSpec
from lit_extract.storage.writer import ActivationWriter

N, LAYERS, DIM, ROWS = 12, 3, 4, 4
NOTES = {"files": {"cls": "x.pt"}, "num_params": 1}


class OnItsWay:
    """Copies a batch's numbers when it is waited for, as a GPU does at its own time."""

    def __init__(self, true, host):
        self.true, self.host = true, host

    def synchronize(self):
        self.host[:] = self.true


def write(store, true, from_gpu, ends_with):
    """All batches of two rows through a writer, which then ends."""
    writer = ActivationWriter()
    writer.open(store, {}, np.zeros(N, dtype=np.int64))
    for first in range(0, N, 2):
        host = torch.full((2, LAYERS, DIM), 99.0) if from_gpu else true[first : first + 2].clone()
        prediction = {
            "index": torch.arange(first, first + 2),
            "feats": {"cls": host},
            "bad": torch.zeros(2, dtype=torch.bool),
            "arrived": OnItsWay(true[first : first + 2], host) if from_gpu else None,
        }
        writer.write_on_batch_end(None, None, prediction, None, None, 0, 0)
    ends_with(writer)
    return Store(store.path)


def empty_store(folder):
    spec = StoreSpec(
        ["cls"], ["a", "b", "c"], [(DIM,)] * 3, ROWS, list(range(N)), {"model": "m"}, NOTES, {N_BYTES: "int64"}
    )
    return Store.create(folder, spec)


def test_what_comes_from_a_gpu_is_waited_for_and_the_last_batch_is_not_lost(tmp_path):
    true = torch.arange(N * LAYERS * DIM, dtype=torch.float32).reshape(N, LAYERS, DIM)
    for from_gpu in (False, True):
        for name, ends_with in {
            "done": lambda writer: writer.teardown(None, None, "predict"),
            "stopped": lambda writer: writer.on_exception(None, None, SystemExit()),
        }.items():
            written = write(empty_store(tmp_path / f"{name}-{from_gpu}.zarr"), true, from_gpu, ends_with)
            assert written.done_shards() == {0, 1, 2}
            for shard in range(3):
                np.testing.assert_array_equal(written.read_shard("cls", shard), true[4 * shard : 4 * shard + 4])
