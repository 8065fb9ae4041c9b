"""One job: one model on one dataset, from settings to features files."""

import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lit_extract import __version__
from lit_extract.common.errors import InputError, NothingLeft, name_some
from lit_extract.common.ranks import is_rank_zero
from lit_extract.common.signals import Interrupted, stoppable
from lit_extract.common.timing import stopwatch
from lit_extract.data.base import StimulusDataModule
from lit_extract.datasets.table import ID_MEANING, ROOT
from lit_extract.jobs.float32_check import check_store
from lit_extract.jobs.inputs import changed_rows
from lit_extract.jobs.one_order import check_one_order, ids_in_folder
from lit_extract.jobs.outputs import output_paths, recorded_provenance
from lit_extract.jobs.progress import Progress
from lit_extract.jobs.run import run_predict
from lit_extract.modules.base import Extractor
from lit_extract.modules.precision import ieee_float32
from lit_extract.storage.disk import bytes_there, check_room, features_bytes, store_bytes
from lit_extract.storage.features import load_features
from lit_extract.storage.features_content import sizes_sha256
from lit_extract.storage.finalize import finalize_locked, is_finished
from lit_extract.storage.layout import BAD_INPUT, MISSING, count_shards
from lit_extract.storage.places import AnyPath, RemoteError, place_of, to_path
from lit_extract.storage.provenance import features_provenance
from lit_extract.storage.repair import Left, by_shard, inputs_of, status_of
from lit_extract.storage.rounding import NOTE, warning
from lit_extract.storage.store import Store
from lit_extract.storage.store_folder import StoreSpec, is_store, remove_store
from lit_extract.storage.writer import ActivationWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What a job left.

    Args:
        files: The features files, one a pooling; empty when it was not finalized.
        store: The store, if it is still there.
        bad_input_rows: Rows whose image could not be decoded: NaN.
        not_finite_rows: Rows for which the model gave NaN or infinity.
        n_rotated: Images with an EXIF rotation, which is not applied.
        warnings: Where the precision has rounded away what differs between stimuli, a sentence each.
        was_done: The files were there already, with the same provenance.
    """

    files: list[AnyPath]
    store: AnyPath | None
    bad_input_rows: list[int]
    not_finite_rows: list[int]
    was_done: bool = False
    n_rotated: int = 0
    warnings: list[str] = field(default_factory=list)


def extract(
    model: Extractor,
    data: StimulusDataModule,
    trainer: Trainer,
    output_dir: str = "features",
    finalize: bool = True,
    keep_store: bool = False,
    overwrite: bool = False,
) -> Extraction:
    """Extract features, or go on where an earlier run with the same settings stopped.

    Args:
        model: The extractor.
        data: The stimuli; its preprocessing is the model's.
        trainer: Where and how to run.
        output_dir: Folder of the features, local or remote (s3://bucket/prefix); files go to <dataset>/<subset>/ in it.
        finalize: Turn the store into .pt files when all rows are done.
        keep_store: Leave the store in place after that.
        overwrite: Start anew: delete a store or features files that are there.

    Returns:
        The files, and the rows to beware of; on ranks other than zero nothing.

    Raises:
        InputError: Anything wrong with the settings, the dataset or the output folder.
        Interrupted: A signal asked the run to stop, and it may be resumed; of SIGINT it is a KeyboardInterrupt.
    """
    job = prepare_job(model, data, str(trainer.precision), output_dir, overwrite)
    with stoppable(), ExitStack() as held_locks:
        if not is_rank_zero():
            with suppress(NothingLeft):  # rank zero says so
                job.predict(trainer, finalize, overwrite)
            return Extraction([], None, [], [])
        with job.saying_how_far():
            try:
                job.check_one_order()
                was_done = not overwrite and job.is_done()
                if not was_done:
                    held_locks.enter_context(place_of(job.store_path).write_lock())
                is_left = overwrite or not (was_done or job.is_complete())
            except InputError as refusal:
                job.dismiss_ranks(trainer, refusal)
                raise
            if is_left:
                job.predict(trainer, finalize, overwrite)
            else:
                job.dismiss_ranks(trainer, NothingLeft())
            if not was_done:
                job.check_precision(trainer)
            if was_done and not keep_store:
                job.remove_leftovers()
            elif finalize and not was_done:
                store = Store(job.store_path)
                finalize_locked(store, keep_store or (bool(job.repairable) and store.is_kept))
        return job.report(was_done)


def find_finished(model: Extractor, data: StimulusDataModule, precision: str, output_dir: str) -> Extraction | None:
    """Return what a job has made, if nothing of it is left to do; nothing is computed, written or removed.

    Raises:
        InputError: As :func:`extract`.
    """
    job = prepare_job(model, data, precision, output_dir)
    job.check_one_order()
    return job.report(was_done=True) if job.is_done() and not place_of(job.store_path).remains() else None


def prepare_job(
    model: Extractor, data: StimulusDataModule, precision: str, output_dir: str, overwrite: bool = False
) -> "Job":
    """Return a job: what :func:`extract` does before it looks at what is there."""
    if data.preprocessing is None:
        data.preprocessing = model.preprocessing
    elif data.preprocessing != model.preprocessing:
        raise InputError(
            f"data.preprocessing: {data.preprocessing} is not that of {model.model_name!r}, which is "
            f"{model.preprocessing}; make a data module for each model"
        )
    folder = to_path(output_dir, "output_dir")
    files, store_path = output_paths(model, data, folder)
    if not overwrite:  # before the tokenizer is loaded, which is of the same commit
        model.adopt_revision(recorded_provenance(files.values(), store_path))
        data.preprocessing = model.preprocessing
    with stopwatch("stimuli"):
        data.ids_in_folder = ids_in_folder(store_path.parent)
        data.setup("predict")
    data.output_dir = place_of(folder).local
    with stopwatch("weights"):  # a checkpoint is hashed
        return Job(model, data, precision, folder)


class Job:
    """Names and provenance of one model on one dataset.

    Args:
        model: The extractor.
        data: The stimuli, set up.
        precision: The trainer's.
        output_dir: Folder of all features.
    """

    def __init__(self, model: Extractor, data: StimulusDataModule, precision: str, output_dir: AnyPath) -> None:
        assert data.stimuli is not None, "data.setup() comes first"
        data.cut_shards(row_bytes=len(model.layers) * model.n_dim * 4)
        self.model, self.data = model, data
        self.stimulus_ids = data.stimuli["stimulus_id"].tolist()
        self.id_meaning = data.stimuli.attrs[ID_MEANING]
        self.root: str | None = data.stimuli.attrs.get(ROOT)
        self.done_at_start: int | None = None  # shards
        self.files, self.store_path = output_paths(model, data, output_dir)
        self.provenance: dict[str, Any] = {
            **model.provenance(),
            **data.provenance(),
            "precision": precision,
            "torch": str(torch.__version__),
        }
        self.repairable: list[int] = []  # rows that are bad in finished files, and can be read now
        self._changed: set[int] = set()  # those of them that a repair has computed of other files than today's

    def check_one_order(self) -> None:
        """See that the stimuli are those of all features in the folder.

        Raises:
            InputError: They are not.
        """
        own = {*self.files.values(), self.store_path}
        check_one_order(self.store_path.parent, self.stimulus_ids, own, self.data.source)

    def is_done(self) -> bool:
        """Whether all files are there with this provenance.

        Raises:
            InputError: One is there with another; its differing settings are named.
        """
        if not self.data.is_settled:
            self.provenance |= self.data.adopt(recorded_provenance(self.files.values()))
        finished = {
            pool: is_finished(file, features_provenance(self.provenance, pool), self.root)
            for pool, file in self.files.items()
        }
        bad = sorted({row for pool, is_there in finished.items() if is_there for row in self._check_file(pool)})
        if not all(finished.values()):
            return False
        self.repairable = self.data.readable(bad)
        return not self.repairable

    def _check_file(self, pool: str) -> list[int]:
        """See that a features file is of the stimuli as they are now; return the rows of which it has none.

        Raises:
            InputError: They have changed.
        """
        file = self.files[pool]
        features = load_features(file)
        inputs, metadata = inputs_of(features), features.metadata
        since = f"since {str(file)!r} was made"
        if inputs is None and metadata.get("n_bytes_sha256") != sizes_sha256(self.data.n_bytes):
            raise InputError(
                f"stimuli have changed {since}: some of their files have another size. Restore them, or pass "
                "--overwrite to compute all from scratch"
            )
        if inputs is not None:
            self._refuse(changed_rows(inputs, status_of(features) != BAD_INPUT, self.data), since)
        bad: list[int] = metadata["bad_input_rows"]
        return bad

    def _refuse(self, changed: NDArray[np.int64], since: str) -> None:
        if len(changed):
            raise InputError(
                f"stimuli have changed {since}, whose features are of their files as they were: "
                f"{name_some([str(self.stimulus_ids[row]) for row in changed])}. Restore the files, or pass "
                "--overwrite to compute all from scratch"
            )

    def is_complete(self) -> bool:
        """Whether the store has all rows, so that only finalizing is left.

        A store of other settings in which nothing is done yet is removed, to be made again. The caller has the lock.
        """
        if not is_store(self.store_path):
            return False
        try:
            store = self._resume()
        except RemoteError:
            raise
        except InputError:
            if Store(self.store_path).done_shards():
                raise
            remove_store(self.store_path)
            return False
        left = self.left(store)
        return len(left.done) == store.n_shards and not left.again

    def left(self, store: Store) -> Left:
        """What is left to compute: of finished features files the rows that can be read now, and could not before."""
        status = store.status()
        if not self.repairable:
            again = self.data.readable(np.flatnonzero(status == BAD_INPUT).tolist())
            return Left(store.done_shards(), by_shard(again, store.shard_rows))
        again = [row for row in self.repairable if status[row] in (MISSING, BAD_INPUT) or row in self._changed]
        return Left(set(range(store.n_shards)), by_shard(again, store.shard_rows))

    def _say_and_return_left(self, store: Store) -> Left:
        left = self.left(store)
        if rows := [row for rows in left.again.values() for row in rows]:
            ids = name_some([str(self.stimulus_ids[row]) for row in rows])
            logger.info(f"{len(rows)} stimuli that could not be decoded can be now, and are computed: {ids}")
        return left

    def open_store(self, trainer: Trainer, finalize: bool, overwrite: bool) -> Store:
        """The store of this job, created unless it is there; says what is done.

        Raises:
            InputError: It can't be written, has other settings, or the disk has no room for what is left to do.
        """
        if overwrite or not is_store(self.store_path):
            self._check_room(0, finalize, overwrite)
            self.provenance |= self.data.choose(trainer.strategy.root_device.type == "cuda")
            if overwrite:
                self.remove_output()
            self.done_at_start = 0
            try:
                return Store.create(self.store_path, self._spec())
            except RemoteError:
                raise
            except OSError as error:
                raise InputError(f"can't write {str(self.store_path)!r}: {error}") from error
        store = self._resume()
        done = self.done_at_start = len(store.done_shards())
        if not self.repairable:
            logger.info(f"resuming {store.path}: {done} of {store.n_shards} shards done, {store.n_shards - done} left")
        self._check_room(done, finalize, overwrite)
        return store

    def _check_room(self, done_shards: int, finalize: bool, overwrite: bool) -> None:
        files = list(self.files.values())
        store, features = self._bytes_to_write(done_shards, finalize, overwrite)
        check_room(
            self.store_path.parent,
            store,
            features,
            replaced=bytes_there([self.store_path, *files]) if overwrite else 0,
            advice="make room and run the same command again, or choose another --output_dir",
        )

    def _bytes_to_write(self, done_shards: int, finalize: bool, overwrite: bool) -> tuple[int, int]:
        """Of the store, and of the features files."""
        shape = len(self.stimulus_ids), len(self.model.layers), self.model.n_dim
        files = list(self.files.values()) if finalize else []
        left = [file for file in files if overwrite or self.repairable or not place_of(file).exists()]
        if self.repairable:
            n_shards = count_shards(shape[0], self.data.rows_a_shard)
            done_shards = max(done_shards, n_shards - len(by_shard(self.repairable, self.data.rows_a_shard)))
        store = store_bytes(*shape, self.data.rows_a_shard, len(self.files), done_shards)
        return store, len(left) * features_bytes(*shape)

    def _resume(self) -> Store:
        store = Store(self.store_path)
        self.provenance |= self.data.adopt(store.provenance)
        store.check_provenance(self.provenance, self.root)
        self._check_shape(store)
        if damaged := store.drop_damaged():
            logger.warning(f"{len(damaged)} shards of {store.path} were damaged on disk and are computed anew")
        store.repair_stimulus_ids(self.stimulus_ids)
        status = store.status()
        changed = changed_rows(store.inputs(), ~np.isin(status, (MISSING, BAD_INPUT)), self.data)
        self._changed = {*changed.tolist()} & {*self.repairable}
        self._refuse(
            np.array([row for row in changed if row not in self._changed]), f"since {str(store.path)!r} was begun"
        )
        return store

    def _check_shape(self, store: Store) -> None:
        """See that a store is as large as its provenance makes it, and has the names of the features files.

        Raises:
            InputError: It is not.
        """
        known, model = store.layout, self.model
        found = known.pools, known.layers, known.shape, known.shard_rows, known.notes["files"]
        shape = len(self.stimulus_ids), len(model.layers), model.n_dim
        expected = list(model.pools), list(model.layers), shape, self.data.rows_a_shard, self._file_names()
        if found != expected or {**known.extras, **model.extras} != known.extras:
            raise InputError(
                f"{str(store.path)!r} has other poolings, layers, shape or files than a run with its settings makes; "
                "its metadata are damaged: restore them, or pass --overwrite to compute all from scratch"
            )

    def predict(self, trainer: Trainer, finalize: bool, overwrite: bool) -> None:
        """Compute what is missing.

        Raises:
            InputError: Something is wrong with the machine or the output folder.
        """
        if place_of(self.store_path).local is not None:
            to_write = sum(self._bytes_to_write(0, finalize, overwrite))
            self.data.room_for_features = max(0, to_write - bytes_there([self.store_path]))
        writer = ActivationWriter(partial(self.open_store, trainer, finalize, overwrite), self._say_and_return_left)
        with ieee_float32() if self.provenance["precision"] == "32-true" else nullcontext():
            run_predict(trainer, self.model, self.data, [writer, Progress(writer)])

    def check_precision(self, trainer: Trainer) -> None:
        """Compute a few stimuli again in float32, unless an earlier run of this store has done so."""
        store = Store(self.store_path)
        if NOTE not in store.notes and not store.missing_rows():
            check_store(store, self.model, self.data, trainer)

    def dismiss_ranks(self, trainer: Trainer, reason: Exception) -> None:
        """Tell ranks that were not started by rank zero, and wait for it by now, why there is nothing to compute."""
        if trainer.world_size == 1 or not trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
            return

        def refuse() -> Store:
            raise reason

        with suppress(type(reason)):
            run_predict(trainer, self.model, self.data, [ActivationWriter(refuse)])

    @contextmanager
    def saying_how_far(self) -> Iterator[None]:
        """Have an interruption say how much is done."""
        try:
            yield
        except Interrupted as stop:
            with suppress(InputError):
                store = Store(self.store_path)
                done = len(store.done_shards())
                stop.how_far = f"{done} of {store.n_shards} shards are done"
                stop.is_stuck = self.done_at_start is None or done <= self.done_at_start
            raise

    def remove_output(self) -> None:
        """Delete this job's store and files.

        Raises:
            InputError: They may not be deleted, or there is a folder in the place of a file.
        """
        try:
            for file in self.files.values():
                place_of(file).remove_file()
            remove_store(self.store_path)
        except OSError as error:
            raise InputError(
                f"can't delete what is there: {error}; remove it, or choose another --output_dir"
            ) from None

    def remove_leftovers(self) -> None:
        """Delete the store of a run that was killed after its files were complete, or while it removed it."""
        if not place_of(self.store_path).remains():
            return
        with place_of(self.store_path).write_lock():
            store = Store(self.store_path) if is_store(self.store_path) else None
            if store is None:
                remove_store(self.store_path)
            elif not store.is_kept and not place_of(self.store_path).appears_verified and not store.missing_rows():
                finalize_locked(store, keep_store=False)  # the file may not have been read back yet
            elif not store.is_kept:
                store.remove()

    def report(self, was_done: bool = False) -> Extraction:
        """What is on disk now."""
        files = [file for file in self.files.values() if place_of(file).exists()]
        store = self.store_path if is_store(self.store_path) else None
        if files:
            found = [load_features(file) for file in files]
        elif store is not None:
            found = [load_features(store, pool) for pool in self.model.pools]
        else:
            return Extraction(files, store, [], [], was_done)
        metadata = found[0].metadata
        bad, not_finite = metadata["bad_input_rows"], metadata["not_finite_rows"]
        n_rotated = metadata["notes"].get("exif_rotations", 0) if files else Store(self.store_path).n_rotated()
        lost = (warning(each.metadata, each.layers, each.provenance["pool"]) for each in found)
        warnings = list(dict.fromkeys(sentence for sentence in lost if sentence))
        return Extraction(files, store, bad, not_finite, was_done, n_rotated, warnings)

    def _file_names(self) -> dict[str, str]:
        return {pool: file.name for pool, file in self.files.items()}

    def _spec(self) -> StoreSpec:
        notes = {
            "files": self._file_names(),
            "num_params": self.model.num_params,
            "stimulus_id_meaning": self.id_meaning,
            "root": self.root,
            "lit_extract": __version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return StoreSpec(
            self.model.pools,
            self.model.layers,
            self.model.n_dim,
            self.data.rows_a_shard,
            self.stimulus_ids,
            self.provenance,
            notes,
            {**self.model.extras, **dict.fromkeys(self.data.input_columns, "int64")},
        )
