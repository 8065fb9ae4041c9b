"""Progress within a pass of few rows through many blocks."""

import logging
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from lit_extract.common import progress as steps
from lit_extract.data.plan import Plan
from lit_extract.jobs import progress


def lines_of(caplog):
    return [line.removeprefix("m: ").removeprefix("m (2 ranks): ") for line in caplog.messages]


@pytest.fixture
def at_once(monkeypatch):
    """Lines are due at each batch, and other ranks are looked at all the time."""
    monkeypatch.setattr(steps, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(steps, "SHARE_BETWEEN_LINES", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_RECORDS", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.001)


def test_the_first_of_many_blocks_counts_as_part_of_a_row(caplog, at_once):
    caplog.set_level(logging.INFO, "lit_extract")
    trainer, model = SimpleNamespace(world_size=1), SimpleNamespace(model_name="m", streamed=SimpleNamespace())
    plan, lines = Plan(n_rows=3, shard_rows=3, batch_size=3), []
    with progress.Progress(SimpleNamespace(bytes_written=0), plan, "captions") as shown:
        shown.on_predict_start(trainer, model)
        shown.on_predict_batch_start(trainer, model, [{"index": torch.arange(2)}, {"index": torch.arange(2, 3)}])
        for block in (1, 20, 39):
            model.streamed.on_block(block, 40)
            lines.append(caplog.messages[-1])
        assert [line.removeprefix("m: ")[:6] for line in lines] == ["0 of 3", "1 of 3", "2 of 3"]
        assert "block 20 of 40 of 3 captions" in lines[1]
        model.streamed.on_block(40, 40)
        shown.on_predict_batch_end(trainer, model, [{}, {}])
        assert shown.done == 3
    assert caplog.messages[:3] == lines
    (end,) = caplog.messages[3:]  # the end is printed once
    assert end.startswith("m: 3 of 3 captions")
    assert "all done" in end
    assert "block" not in end


def test_of_other_ranks_finished_shards_count(caplog, at_once):
    caplog.set_level(logging.INFO, "lit_extract")
    finished = {1}  # of rank one, before this run: it is repaired
    plan = Plan(n_rows=10, shard_rows=2, batch_size=2)
    with progress.Progress(SimpleNamespace(bytes_written=0), plan, "images", lambda: set(finished)) as shown:
        shown.on_predict_start(SimpleNamespace(world_size=2), SimpleNamespace(model_name="m"))
        shown.on_predict_batch_end(None, None, {"index": torch.arange(2)})
        finished.add(0)  # of rank zero, which counts its own batches
        finished.add(3)
        deadline = time.monotonic() + 60
        while not any(line.startswith("4 of 10 images") for line in lines_of(caplog)):
            assert time.monotonic() < deadline, lines_of(caplog)
            time.sleep(0.001)
        assert not any(line.startswith("6 of") for line in lines_of(caplog))
    assert lines_of(caplog)[-1].startswith("10 of 10 images")
    assert "all done" in lines_of(caplog)[-1]


def test_a_run_that_fails_has_no_last_line(caplog):
    caplog.set_level(logging.INFO, "lit_extract")
    plan = Plan(n_rows=4, shard_rows=2, batch_size=2)
    with suppress(KeyError), progress.Progress(SimpleNamespace(bytes_written=0), plan, "images") as shown:
        shown.on_predict_start(SimpleNamespace(world_size=1), SimpleNamespace(model_name="m"))
        shown.on_predict_batch_end(None, None, {"index": torch.arange(2)})
        raise KeyError
    assert caplog.messages == []
