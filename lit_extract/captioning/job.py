"""One captioning job: one model and one prompt on one dataset, from settings to one file."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer

from lit_extract.captioning.captioner import Captioner
from lit_extract.captioning.output import COLUMNS, CUT_OFF, FAILED, OK, check_output
from lit_extract.captioning.parts import Parts, inputs_of, is_done, noted_inputs, read_sidecar
from lit_extract.captioning.writer import CaptionWriter
from lit_extract.common.errors import InputError, counted, name_some, printable
from lit_extract.common.signals import stoppable
from lit_extract.data.base import Connection
from lit_extract.data.plan import Plan
from lit_extract.data.sources import ImageSourceDataModule
from lit_extract.datasets import DATASETS
from lit_extract.datasets.table import RESERVED
from lit_extract.jobs.job import Job
from lit_extract.jobs.progress import Progress
from lit_extract.jobs.run import run_predict
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.layout import ROTATED
from lit_extract.storage.places import place_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """Result of a captioning job."""

    file: Path
    n_rows: int
    failed: dict[str, str]  # reason for a missing caption, by stimulus
    cut_off: int  # captions that were longer than max_tokens
    n_rotated: int  # images with an EXIF rotation, which is not applied
    was_done: bool = False  # the file existed already, with the same provenance


def caption(
    model: Captioner,
    data: ImageSourceDataModule,
    trainer: Trainer | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> Captions:
    """Caption images, or resume an earlier run with the same settings; images that failed are tried again.

    Args:
        model: The captioner.
        data: The images; the captioner's preprocessing is used for them.
        trainer: A Trainer with one process, because vLLM itself uses several GPUs; default: :func:`predict_trainer`
            with one device.
        output: The CSV or Parquet file to write.
        overwrite: Start from scratch: delete the output of an earlier run.

    Returns:
        ``file``, with ``n_rows`` rows; ``failed``, the stimuli without a caption, with the reason; ``cut_off``, the
        number of captions longer than max_tokens; ``n_rotated``, the number of images whose EXIF rotation is not
        applied; ``was_done``, true if the file already existed.

    Raises:
        InputError: A setting, the dataset or the output is invalid, or the engine does not answer.
        Interrupted: A signal stopped the run, which can be resumed; SIGINT raises it as a KeyboardInterrupt.
    """
    path = check_output(output)
    if not isinstance(data, ImageSourceDataModule):
        raise InputError(f"data: {type(data).__name__} has no images to caption; use ImageSourceDataModule")
    trainer = trainer or predict_trainer(devices=1)
    if trainer.world_size > 1:
        raise InputError(
            f"trainer.devices: captioning needs one process, not {trainer.world_size}; pass --trainer.devices 1. "
            "For several GPUs, use --model.engine_options '{tensor_parallel_size: 2}', or a server"
        )
    data.connect(Connection(model.preprocessing))
    data.setup("predict")
    job = CaptionJob(model, data, path)
    with stoppable(), job.reporting_how_far(), place_of(path).write_lock():
        if overwrite:
            job.parts.remove()
        if (finished := job.find_finished()) is not None:
            return finished
        plan = job.open_parts()
        if plan.shards():
            writer = CaptionWriter(job.parts, plan.shard_rows)
            with Progress(writer, plan, data.unit) as progress:
                run_predict(trainer, model, data, [writer, progress])
        return job.publish()


class CaptionJob(Job):
    """Provenance and rows of one captioning job; connects the data to the model."""

    def __init__(self, model: Captioner, data: ImageSourceDataModule, path: Path) -> None:
        super().__init__(data, {**model.provenance(), **data.provenance()})
        self.model, self.parts, self.done_at_start = model, Parts(path), 0
        id_column = DATASETS[data.dataset_name].id_column
        self.table = data.stimuli.drop(columns=[name for name in RESERVED if name != id_column], errors="ignore")
        if taken := [column for column in COLUMNS if column in self.table.columns]:
            raise InputError(
                f"data.dataset: {data.dataset_name} has a column {name_some(taken)}, which the output uses; rename it"
            )

    def find_finished(self) -> Captions | None:
        """Return the captions of a finished run with these settings; None if there is none."""
        if not self.parts.check_provenance(self.provenance) or not self.parts.is_finished():
            return None
        if (noted := noted_inputs(self.parts.output, len(self.table))) is not None:
            self.refuse_changed(self.data.changed(noted, np.ones(len(noted), dtype=np.bool_)), self.parts.output)
        sidecar = read_sidecar(self.parts.output)
        self.parts.remove_folder()  # a killed run may have left some of it
        counts = sidecar.get("cut_off", 0), sidecar.get("exif_rotations", 0)
        return Captions(self.parts.output, len(self.table), {}, *counts, was_done=True)

    def open_parts(self) -> Plan:
        """Start or resume; return the plan of the remaining images, which the data module uses."""
        if not self.parts.check_provenance(self.provenance) or not self.parts.folder.exists():
            self.parts.begin(self.provenance, self.notes())
        self.parts.check_untouched()
        records, plan = self.parts.records(self.stimulus_ids), self.data.plan
        is_done_row = np.array([row in records and is_done(records[row]) for row in range(plan.n_rows)])
        inputs = np.array([inputs_of(records.get(row)) for row in range(plan.n_rows)])
        self.refuse_changed(self.data.changed(inputs, is_done_row), self.parts.output)
        done: list[int] = np.flatnonzero(is_done_row).tolist()
        self.done_at_start = len(done)
        if records and len(done) < plan.n_rows:
            failed = len(records) - len(done)
            again = f", {failed} of them again because they failed" if failed else ""
            images, left = counted(len(done), "image"), plan.n_rows - len(done)
            logger.info(f"resuming {self.parts.output}: {images} done, {left} left{again}")
        plan = plan.without_rows(done)
        self.data.connect(Connection(self.data.preprocessing, plan=plan))
        return plan

    def count_done(self) -> tuple[int, int, str]:
        """Return the number of finished images, of all images, and their unit."""
        return sum(map(is_done, self.parts.records(self.stimulus_ids).values())), len(self.table), "images"

    def publish(self) -> Captions:
        """Write the file from all records; if some failed, keep the parts for the next run."""
        records = self.parts.records(self.stimulus_ids)
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
        inputs = np.array([inputs_of(row) for row in rows])
        n_rotated = int((inputs[:, ROTATED] != 0).sum())
        self.parts.publish(table, inputs, failed=len(failed), cut_off=cut_off, exif_rotations=n_rotated)
        if not failed:
            self.parts.remove_folder()
        return Captions(self.parts.output, len(rows), failed, cut_off, n_rotated)
