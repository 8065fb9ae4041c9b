"""Progress within a pass of few rows through many blocks."""

import logging
from types import SimpleNamespace

import torch

from lit_extract.data.plan import Plan
from lit_extract.jobs import progress


def test_the_first_of_many_blocks_counts_as_part_of_a_row(caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_RECORDS", 0)
    caplog.set_level(logging.INFO, "lit_extract")
    shown = progress.Progress(SimpleNamespace(bytes_written=0), Plan(n_rows=3, shard_rows=3, batch_size=3), "captions")
    trainer, model = SimpleNamespace(world_size=1), SimpleNamespace(model_name="m", streamed=SimpleNamespace())
    shown.on_predict_start(trainer, model)
    shown.on_predict_batch_start(trainer, model, [{"index": torch.arange(2)}, {"index": torch.arange(2, 3)}])
    lines = []
    for block in (1, 20, 40):
        model.streamed.on_block(block, 40)
        lines.append(caplog.messages[-1])
    assert [line.removeprefix("m: ")[:6] for line in lines] == ["0 of 3", "1 of 3", "3 of 3"]
    assert "block 20 of 40 of 3 captions" in lines[1]
    shown.on_predict_batch_end(trainer, model, [{}, {}])
    assert shown.done == 3
    assert "block" not in caplog.messages[-1]
