"""From replies to parts on disk, a shard at a time."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_extract.captioning.output import CUT_OFF, FAILED, OK
from lit_extract.captioning.parts import Parts, Record
from lit_extract.data.sources import ImageSource
from lit_extract.errors import InputError
from lit_extract.modules.engines import Reply
from lit_extract.signals import held


class CaptionWriter(BasePredictionWriter):
    """Writes each shard of replies when it comes.

    Args:
        parts: Where they go.
        shard_rows: Rows a shard.
        n_bytes: Bytes of each row's image file.
    """

    def __init__(self, parts: Parts, shard_rows: int, n_bytes: Sequence[int]) -> None:
        super().__init__(write_interval="batch")
        self.parts, self.shard_rows, self.n_bytes = parts, shard_rows, n_bytes
        self.bytes_written = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Put the replies about a shard on disk."""
        rows = prediction["index"].tolist()
        records = [
            _record(row, source, reply, self.n_bytes[row])
            for row, source, reply in zip(rows, batch["sources"], prediction["replies"], strict=True)
        ]
        shard = rows[0] // self.shard_rows
        assert all(row // self.shard_rows == shard for row in rows), "a batch crosses shards"
        try:
            with held():
                self.bytes_written += self.parts.write(shard, records)
        except OSError as error:
            raise InputError(
                f"can't write to {str(self.parts.folder)!r}: {error}; finished captions are safe: mend it and run "
                "the same command again"
            ) from error


def _record(row: int, source: ImageSource, reply: Reply, n_bytes: int) -> Record:
    status = f"{FAILED}: {reply.error}" if reply.error is not None else CUT_OFF if reply.cut_off else OK
    return {
        "index": row,
        "stimulus_id": source.stimulus,
        "caption": reply.text,
        "status": status,
        "n_bytes": n_bytes,
    }
