"""One captioning job: one model and one prompt on one dataset, from settings to one file."""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lit_extract import __version__
from lit_extract.captioning.captioner import Captioner
from lit_extract.captioning.output import COLUMNS, CUT_OFF, FAILED, OK, check_output
from lit_extract.captioning.parts import Parts, Record, inputs_of, is_done, noted_inputs, read_sidecar
from lit_extract.captioning.writer import CaptionWriter
from lit_extract.common.errors import InputError, name_some, printable
from lit_extract.common.signals import Interrupted, stoppable
from lit_extract.data.sources import ImageSourceDataModule
from lit_extract.datasets.table import ID_MEANING, RESERVED
from lit_extract.jobs.inputs import changed_rows
from lit_extract.jobs.progress import Progress
from lit_extract.jobs.run import run_predict
from lit_extract.storage.layout import ROTATED
from lit_extract.storage.places import place_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """What a job left.

    Args:
        file: The caption file.
        n_rows: Its rows.
        failed: Why an image has no caption, by stimulus.
        cut_off: How many captions were longer than max_tokens.
        n_rotated: Images with an EXIF rotation, which is not applied.
        was_done: The file was there already, with the same provenance.
    """

    file: Path
    n_rows: int
    failed: dict[str, str]
    cut_off: int
    n_rotated: int
    was_done: bool = False


def caption(
    model: Captioner,
    data: ImageSourceDataModule,
    trainer: Trainer,
    output: str | None,
    overwrite: bool = False,
) -> Captions:
    """Caption images, or go on where an earlier run with the same settings stopped; images that failed are tried again.

    Args:
        model: The captioner.
        data: The images; its preprocessing is the model's.
        trainer: One process; vLLM itself takes several GPUs.
        output: The CSV or Parquet to make.
        overwrite: Start anew: delete what an earlier run left.

    Returns:
        The file, and what to beware of.

    Raises:
        InputError: Anything wrong with the settings, the dataset or the output, or an engine that does not answer.
        Interrupted: A signal asked the run to stop, and it may be resumed; of SIGINT it is a KeyboardInterrupt.
    """
    path = check_output(output)
    if not isinstance(data, ImageSourceDataModule):
        raise InputError(f"data: {type(data).__name__} has no images to caption; use ImageSourceDataModule")
    if trainer.world_size > 1:
        raise InputError(
            f"trainer.devices: {trainer.world_size} processes; captioning is one process, --trainer.devices 1: "
            "vLLM takes several GPUs with --model.engine_options '{tensor_parallel_size: 2}', or behind a server"
        )
    if data.preprocessing is None:
        data.preprocessing = model.preprocessing
    data.setup("predict")
    job = CaptionJob(model, data, path)
    with stoppable(), job.saying_how_far(), place_of(path).write_lock():
        if overwrite:
            job.parts.remove()
        return job.run(trainer)


class CaptionJob:
    """Provenance and rows of one job.

    Args:
        model: The captioner.
        data: The images, set up.
        path: The output.
    """

    def __init__(self, model: Captioner, data: ImageSourceDataModule, path: Path) -> None:
        assert data.stimuli is not None, "data.setup() comes first"
        assert data.shard_rows is not None
        self.model, self.data, self.parts = model, data, Parts(path)
        self.table = data.stimuli.drop(columns=list(RESERVED), errors="ignore")
        if taken := [column for column in COLUMNS if column in self.table.columns]:
            raise InputError(
                f"data.dataset: {data.dataset_name} has a column {name_some(taken)}, a name that the "
                "output uses; rename it"
            )
        self.done_at_start = 0
        self.provenance = {**model.provenance(), **data.provenance()}

    def run(self, trainer: Trainer) -> Captions:
        """Ask about what is left, and write the file."""
        begun = self.parts.check_provenance(self.provenance)
        if begun and self.parts.is_finished():
            if (noted := noted_inputs(self.parts.output, len(self.table))) is not None:
                self._check_images(noted, np.ones(len(noted), dtype=np.bool_))
            sidecar = read_sidecar(self.parts.output)
            self.parts.remove_folder()  # what a killed run may have left of it
            counts = sidecar.get("cut_off", 0), sidecar.get("exif_rotations", 0)
            return Captions(self.parts.output, len(self.table), {}, *counts, was_done=True)
        if not begun or not self.parts.folder.exists():
            self.parts.begin(self.provenance, self._notes())
        self.parts.check_untouched()
        records = self._records()
        self.data.done_rows = {row for row, record in records.items() if is_done(record)}
        self.done_at_start = len(self.data.done_rows)
        rows = range(len(self.table))
        inputs = [inputs_of(records.get(row)) for row in rows]
        self._check_images(np.array(inputs), np.array([row in self.data.done_rows for row in rows]))
        if len(self.data.done_rows) < len(self.table):
            self._say_what_is_left(records)
            self._predict(trainer)
        return self._finish()

    @contextmanager
    def saying_how_far(self) -> Iterator[None]:
        """Have an interruption say how much is done."""
        try:
            yield
        except Interrupted as stop:
            done = sum(map(is_done, self._records().values()))
            stop.is_stuck = done <= self.done_at_start
            stop.how_far = f"{done} of {len(self.table)} images are done"
            raise

    def _records(self) -> dict[int, Record]:
        return self.parts.records([source.stimulus for source in self.data.sources])

    def _predict(self, trainer: Trainer) -> None:
        assert self.data.shard_rows is not None
        writer = CaptionWriter(self.parts, self.data.shard_rows)
        run_predict(trainer, self.model, self.data, [writer, Progress(writer)])

    def _finish(self) -> Captions:
        """The file, from all records; parts stay while some failed, for the next run."""
        records = self._records()
        rows = [records[row] for row in range(len(self.table))]
        table = self.table.assign(
            caption=[row["caption"] for row in rows], model=self.model.model_name, prompt=self.model.prompt.name
        )
        if any(row["status"] != OK for row in rows):
            table["status"] = [row["status"] for row in rows]
        failed = {
            str(row["stimulus_id"]): printable(row["status"].removeprefix(f"{FAILED}: "))
            for row in rows
            if not is_done(row)
        }
        cut_off = sum(row["status"] == CUT_OFF for row in rows)
        inputs = np.array([inputs_of(record) for record in rows])
        n_rotated = int((inputs[:, ROTATED] != 0).sum())
        self.parts.publish(table, inputs, failed=len(failed), cut_off=cut_off, exif_rotations=n_rotated)
        if not failed:
            self.parts.remove_folder()
        return Captions(self.parts.output, len(rows), failed, cut_off, n_rotated)

    def _check_images(self, inputs: NDArray[np.int64], rows: NDArray[np.bool_]) -> None:
        """An image that changed after it was captioned would have the caption of another."""
        if changed := changed_rows(inputs, rows, self.data).tolist():
            named = name_some([str(self.data.sources[row].stimulus) for row in changed])
            raise InputError(
                f"the images of {named} changed since they were captioned; restore them, pass --overwrite to start "
                "from scratch, or choose another --output"
            )

    def _say_what_is_left(self, records: dict[int, Record]) -> None:
        if records:
            done, failed = len(self.data.done_rows), len(records) - len(self.data.done_rows)
            again = f", {failed} of them again because they failed" if failed else ""
            left = len(self.table) - done
            logger.info("resuming %s: %d images done, %d left%s", self.parts.output, done, left, again)

    def _notes(self) -> dict[str, str]:
        assert self.data.stimuli is not None
        return {
            "stimulus_id_meaning": self.data.stimuli.attrs[ID_MEANING],
            "lit_extract": __version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
