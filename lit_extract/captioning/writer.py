"""Writer of replies to parts on disk, one shard at a time."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_extract.captioning.engines import Reply
from lit_extract.captioning.output import CUT_OFF, FAILED, OK
from lit_extract.captioning.parts import Parts, Record
from lit_extract.common.errors import InputError
from lit_extract.data.sources import ImageSource
from lit_extract.storage.layout import CONTENT, INPUTS, MTIME, ROTATED, SIZE


class CaptionWriter(BasePredictionWriter):
    """Callback that writes each shard of replies, of ``shard_rows`` rows, when it arrives."""

    def __init__(self, parts: Parts, shard_rows: int) -> None:
        super().__init__(write_interval="batch")
        self.parts, self.shard_rows = parts, shard_rows
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
        """Write the replies of a shard to disk."""
        rows = prediction["index"].tolist()
        of_each = zip(rows, batch["sources"], prediction["replies"], batch[INPUTS].tolist(), strict=True)
        records = [_record(*of_one) for of_one in of_each]
        shard = rows[0] // self.shard_rows
        assert all(row // self.shard_rows == shard for row in rows), "a batch crosses shards"
        try:
            self.bytes_written += self.parts.write(shard, records)
        except OSError as error:
            raise InputError(
                f"can't write to {str(self.parts.folder)!r}: {error}; finished captions are safe: fix that and "
                "run the same command again"
            ) from error


def _record(row: int, source: ImageSource, reply: Reply, inputs: list[int]) -> Record:
    status = f"{FAILED}: {reply.error}" if reply.error is not None else CUT_OFF if reply.cut_off else OK
    return {
        "index": row,
        "stimulus_id": source.stimulus,
        "caption": reply.text,
        "status": status,
        "n_bytes": inputs[SIZE],
        "mtime_ns": inputs[MTIME],
        "content": inputs[CONTENT],
        "rotated": inputs[ROTATED],
    }
