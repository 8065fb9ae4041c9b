"""The job that makes features: its names, its provenance, its existing output and its remaining rows."""

import logging
import os
import platform
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.common.progress import step
from lit_extract.common.timing import stopwatch
from lit_extract.data.base import Connection, StimulusDataModule
from lit_extract.data.plan import Plan
from lit_extract.datasets.table import ROOT
from lit_extract.jobs.job import Job
from lit_extract.jobs.outputs import check_same_stimuli, ids_in_folder, output_paths, recorded_provenance
from lit_extract.jobs.run_state import SWEEP
from lit_extract.modules.base import Extractor
from lit_extract.storage.disk import Size, bytes_there, check_room
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.features_content import sizes_sha256
from lit_extract.storage.finalize import check_ids_fit, finalize_locked, is_finished
from lit_extract.storage.layout import BAD_INPUT, CONTENT, INPUT_COLUMNS, MISSING, count_shards
from lit_extract.storage.places import PART_SUFFIX, AnyPath, RemoteError, place_of, to_path
from lit_extract.storage.provenance import CAPTIONS, features_provenance
from lit_extract.storage.repair import inputs_of, status_of
from lit_extract.storage.store import Store, StoreSpec, is_store, remove_store

logger = logging.getLogger(__name__)


class FeaturesJob(Job):
    """One model on one dataset, connected to each other; only the provenance of existing output is read."""

    def __init__(
        self,
        model: Extractor,
        data: StimulusDataModule,
        precision: str,
        output_dir: str,
        finalize: bool | None = None,
        overwrite: bool = False,
        on_gpu: bool = False,
        tag: str | None = None,
    ) -> None:
        if data.connection.preprocessing not in (None, model.preprocessing):
            raise InputError(
                f"data.preprocessing: {data.preprocessing} is not the preprocessing of {model.model_name!r}, which is "
                f"{model.preprocessing}; make a data module for each model"
            )
        folder = to_path(output_dir, "output_dir")
        self.model, self.overwrite, self.tag = model, overwrite, tag
        self.finalize = model.makes_files if finalize is None else finalize
        self.files, self.store_path = output_paths(model, data, folder, tag)
        recorded = {} if overwrite else recorded_provenance(self.files.values(), self.store_path)
        model.use_commit_of(recorded)  # before the tokenizer is loaded, which comes from the same commit
        with stopwatch("stimuli"), step(f"{data.dataset_name}: checking the {data.unit}"):
            data.connect(
                Connection(
                    model.preprocessing,
                    row_bytes=model.row_bytes,
                    on_gpu=on_gpu,
                    recorded=recorded,
                    ids_in_folder=ids_in_folder(self.store_path.parent),
                    output_dir=place_of(folder).local,
                )
            )
            data.setup("predict")
            model.take_longest(data.longest)
            data.connect(replace(data.connection, row_bytes=model.row_bytes))
        known = {"precision": precision, "torch": str(torch.__version__)}
        with stopwatch("weights"):  # a checkpoint is hashed
            super().__init__(data, {**model.provenance(), **data.provenance(), **known})
        self.size = Size(len(self.stimulus_ids), model.layer_shapes, len(model.pools), model.dtype_written)
        self.root: str | None = data.stimuli.attrs.get(ROOT)
        self._file_names = {pool: file.name for pool, file in self.files.items()}
        self.plan = data.plan
        self.repairable: list[int] = []  # rows that are bad in finished files, but readable now
        self._outdated: set[int] = set()  # repaired rows whose files have changed since

    def is_done(self) -> bool:
        """Return whether all files exist with this provenance; refuse changed stimuli, or others in the folder."""
        own = {*self.files.values(), self.store_path}
        check_same_stimuli(self.store_path.parent, self.data, own)
        if self.overwrite:
            return False
        for pool, file in self.files.items():
            is_finished(file, features_provenance(self.provenance, pool), self.root)  # raises for other settings
        there = {file: load_features(file) for file in self.files.values() if place_of(file).exists()}
        bad = {row for file, features in there.items() for row in self._bad_rows(file, features)}
        if len(there) < len(self.files):
            return False
        edited = {row for features in there.values() for row in self._edited_rows(features)}
        self.repairable = sorted({*self.data.readable(sorted(bad)), *edited})
        return not self.repairable

    def _edited_rows(self, features: Features) -> list[int]:
        """Return the rows of a file whose captions were edited later."""
        inputs = inputs_of(features)
        if not self.data.takes_changed or inputs is None:
            return []
        return self.data.changed(inputs, np.ones(len(inputs), dtype=np.bool_))

    def _bad_rows(self, file: AnyPath, features: Features) -> list[int]:
        """Return the bad rows of a file, after a check that the stimuli of the others have not changed.

        Changed stimuli are accepted if the data module computes them again.
        """
        inputs, metadata = inputs_of(features), features.metadata
        if inputs is not None and features.stimulus_ids != self.stimulus_ids:
            raise InputError(
                f"{str(file)!r} has the same settings, but other stimuli or another order. Pass --overwrite to "
                "replace it, or choose another --output_dir"
            )
        if inputs is not None and not self.data.takes_changed:
            self.refuse_changed(self.data.changed(inputs, status_of(features) != BAD_INPUT), file)
        elif inputs is None and metadata.get("n_bytes_sha256") != sizes_sha256(self.data.input_bytes):
            raise InputError(
                f"stimuli have changed since {str(file)!r} was written: the size of some files differs. Restore "
                "them, or pass --overwrite to compute all from scratch"
            )
        bad: list[int] = metadata["bad_input_rows"]
        return bad

    def open_store(self) -> Plan:
        """Create the store or resume an existing one; return the plan of what is left. The caller has the lock."""
        if self.finalize:
            check_ids_fit(self.stimulus_ids)
        resumed = None if self.overwrite else self._resumed()
        store = resumed or self._create()
        done, status = store.done_shards(), store.status()
        self.done_at_start = len(done)
        if self.repairable:  # finished files: nothing else is left, even if the store has no shards
            again = [row for row in self.repairable if status[row] in (MISSING, BAD_INPUT) or row in self._outdated]
            plan = self.plan.leaving(range(store.n_shards), again)
        else:
            again = self.data.readable(np.flatnonzero(status == BAD_INPUT).tolist())
            plan = self.plan.leaving(done, again)
        if resumed and plan.shards():
            self._check_room(len(done))
            if not self.repairable:
                left = store.n_shards - len(done)
                logger.info(f"resuming {store.path}: {len(done)} of {store.n_shards} shards done, {left} left")
        if again:
            named = name_some([str(self.stimulus_ids[row]) for row in again])
            edited = counted(len(again), "caption was edited", "captions were edited")
            readable = counted(len(again), "stimulus can be decoded now", "stimuli can be decoded now")
            logger.info(f"computing again: {edited if self.data.takes_changed else readable}: {named}")
        return plan

    def _create(self) -> Store:
        model = self.model
        notes = {
            **self.notes(),
            **model.notes,
            **({} if self.tag is None else {"tag": self.tag}),
            **({"sweep": True} if os.environ.get(SWEEP) else {}),
            "files": self._file_names,
            "num_params": model.num_params,
            "root": self.root,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
        }
        shape = model.pools, model.layers, model.layer_shapes, self.plan.shard_rows
        extras = {**model.extras, **dict.fromkeys(self.data.input_columns, "int64")}
        spec = StoreSpec(*shape, self.stimulus_ids, self.provenance, notes, extras, model.dtype_written)
        self._check_room(0)
        try:
            if self.overwrite:
                for file in self.files.values():
                    place_of(file).remove_file()
                remove_store(self.store_path)
            return Store.create(self.store_path, spec)
        except RemoteError:
            raise
        except OSError as error:
            raise InputError(f"can't write {str(self.store_path)!r}: {error}") from error

    def _resumed(self) -> Store | None:
        """Return the checked store; None if there is none. A store that does not match but is empty is removed."""
        if not is_store(self.store_path):
            return None
        store = Store(self.store_path)
        try:
            self._check_store(store)
        except RemoteError:
            raise
        except InputError:
            if store.done_shards():
                raise
            remove_store(self.store_path)
            return None
        return store

    def _check_store(self, store: Store) -> None:
        """Check that a store has these settings and unchanged stimuli, and repair damaged parts."""
        notes_captions = self.data.takes_changed and INPUT_COLUMNS[CONTENT] in store.extras
        old = {CAPTIONS: store.provenance.get(CAPTIONS)} if notes_captions else {}
        store.check_provenance({**self.provenance, **old}, self.root)
        known, model = store.layout, self.model
        form = known.n_stimuli, known.layer_shapes, known.dtype
        found = known.pools, known.layers, form, known.shard_rows, known.notes["files"]
        own_form = len(self.stimulus_ids), list(model.layer_shapes), model.dtype_written
        expected = list(model.pools), list(model.layers), own_form, self.plan.shard_rows, self._file_names
        if found != expected or {**known.extras, **model.extras} != known.extras:
            raise InputError(
                f"{str(store.path)!r} has poolings, layers, shapes or files that do not match its settings; its "
                "metadata are damaged: restore them, or pass --overwrite to compute all from scratch"
            )
        if damaged := store.drop_damaged():
            lost = counted(len(damaged), f"shard of {store.path} was", f"shards of {store.path} were")
            logger.warning(f"{lost} damaged on disk and will be computed again")
        store.repair_stimulus_ids(self.stimulus_ids)
        changed = self.data.changed(store.inputs(), ~np.isin(store.status(), (MISSING, BAD_INPUT)))
        if old and old[CAPTIONS] != self.provenance[CAPTIONS]:
            store.take_captions(self.provenance, changed)
            changed = []
        self._outdated = {*changed} & {*self.repairable}
        self.refuse_changed([row for row in changed if row not in self._outdated], store.path)

    def bytes_to_write(self, done_shards: int = 0) -> tuple[int, int]:
        """Return the bytes of the store and of the features files that are still to be written."""
        files = list(self.files.values())
        left = [file for file in files if self.overwrite or self.repairable or not place_of(file).exists()]
        if self.repairable:
            shards_to_write = len({row // self.plan.shard_rows for row in self.repairable})
            done_shards = max(done_shards, count_shards(self.plan.n_rows, self.plan.shard_rows) - shards_to_write)
        store = self.size.store(self.plan.shard_rows, done_shards)
        return store, len(left) * self.size.file() if self.finalize else 0

    def finalizing(self) -> tuple[int, Callable[[], int]]:
        """Return the bytes of all features files (0 if remote), and a function that counts existing ones."""
        files = [path for file in self.files.values() for path in (file, file.with_name(f".{file.name}{PART_SUFFIX}"))]
        is_local = place_of(self.store_path).local is not None
        return len(self.files) * self.size.file() if is_local else 0, lambda: bytes_there(files)

    def _check_room(self, done_shards: int) -> None:
        check_room(
            self.store_path.parent,
            *self.bytes_to_write(done_shards),
            replaced=bytes_there([self.store_path, *self.files.values()]) if self.overwrite else 0,
            advice="free disk space and run the same command again, or choose another --output_dir",
        )

    def count_done(self) -> tuple[int, int, str]:
        """Return the number of finished shards, of all shards, and their unit."""
        store = Store(self.store_path)
        return len(store.done_shards()), store.n_shards, "shards"

    def remove_leftovers(self) -> None:
        """Delete the store of a run that was killed after its files were complete, or while removing the store."""
        if not place_of(self.store_path).remains():
            return
        with place_of(self.store_path).write_lock():
            store = Store(self.store_path) if is_store(self.store_path) else None
            if store is None:
                remove_store(self.store_path)
            elif not store.is_kept and not place_of(self.store_path).appears_verified and not store.missing_rows():
                finalize_locked(store, keep_store=False)  # the file may not have been read back yet
            elif not store.is_kept:
                remove_store(self.store_path)
