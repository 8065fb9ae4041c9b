"""One job: one model on one dataset, from settings to features files."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_extract.common.errors import NothingLeft
from lit_extract.common.progress import step
from lit_extract.common.ranks import is_rank_zero
from lit_extract.common.signals import stoppable
from lit_extract.data.base import StimulusDataModule
from lit_extract.data.plan import Plan
from lit_extract.jobs.features_job import FeaturesJob
from lit_extract.jobs.float32_check import check_store
from lit_extract.jobs.outputs import check_pair, make_folder
from lit_extract.jobs.progress import Progress
from lit_extract.jobs.run import run_predict
from lit_extract.jobs.shared_folder import check_shared, wait_for_shards
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.modules.base import Extractor
from lit_extract.modules.precision import ieee_float32
from lit_extract.storage.disk import bytes_there
from lit_extract.storage.features import load_features
from lit_extract.storage.finalize import finalize_locked
from lit_extract.storage.folder import check_same_images
from lit_extract.storage.layout import ROTATED
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.repair import Rows
from lit_extract.storage.rounding import NOTE, warning
from lit_extract.storage.store import Store, is_store
from lit_extract.storage.writer import ActivationWriter


@dataclass(frozen=True)
class Extraction:
    """Result of a job."""

    files: list[AnyPath]  # the features files, one per pooling; empty if not finalized
    store: AnyPath | None  # the store, if it still exists
    bad_input_rows: list[int]  # rows whose image could not be decoded: NaN
    not_finite_rows: list[int]  # rows for which the model gave NaN or infinity
    was_done: bool = False  # the files existed already, with the same provenance
    n_rotated: int = 0  # images with an EXIF rotation, which is not applied
    warnings: list[str] = field(default_factory=list)  # if the precision erased differences between stimuli


def extract(
    model: Extractor,
    data: StimulusDataModule,
    trainer: Trainer | None = None,
    output_dir: str = "features",
    finalize: bool | None = None,
    keep_store: bool = False,
    overwrite: bool = False,
    tag: str | None = None,
) -> Extraction:
    """Extract features, or resume an earlier run with the same settings.

    Features of all images below a folder::

        from lit_extract import ImageFolderDataModule, VisionExtractor, extract, load_features

        done = extract(VisionExtractor("vit_base_patch16_224.mae"), ImageFolderDataModule("pictures"))
        features = load_features(done.files[0])

    Features of captions, from a CSV with ``stimulus_id`` and ``caption``::

        from lit_extract import CaptionDataModule, LanguageExtractor, extract

        done = extract(LanguageExtractor("gpt2", pool="last"), CaptionDataModule("captions.csv", "mine"))

    Args:
        model: The extractor.
        data: The stimuli; the extractor's preprocessing is used for them.
        trainer: The Trainer; default: :func:`predict_trainer` with its defaults, and 32-true for an untrained model,
            whose layers may differ by less than bf16 can represent.
        output_dir: Folder of the features, local or remote (s3://bucket/prefix); files go to <dataset>/<subset>/ in it.
        finalize: Turn the store into .pt files when all rows are done; default: yes, except for the pooling "tokens",
            whose store is kept.
        keep_store: Keep the store after the .pt files are made.
        overwrite: Start from scratch: delete an existing store and features files.
        tag: Name to add to the file names, so variants of one model can share a folder.

    Returns:
        ``files``, one per pooling, to open with :func:`load_features`; ``store``, if it still exists;
        ``bad_input_rows`` and ``not_finite_rows``, the rows to inspect; ``was_done``, true if the files already
        existed; ``warnings`` about the precision. It is empty on ranks other than zero.

    Raises:
        InputError: A setting, the dataset or the output folder is invalid.
        Interrupted: A signal stopped the run, which can be resumed; SIGINT raises it as a KeyboardInterrupt.
    """
    check_pair(model, data)
    trainer = trainer or predict_trainer(precision="32-true" if model.untrained else None)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    job = FeaturesJob(model, data, str(trainer.precision), output_dir, finalize, overwrite, on_gpu, tag)
    with stoppable(), ExitStack() as locks:
        if not is_rank_zero():
            with suppress(NothingLeft):  # rank zero reports it
                _compute(job, trainer, None)
            return Extraction([], None, [], [])
        with job.reporting_how_far():
            try:
                was_done = job.is_done()
                if not was_done:
                    make_folder(job.store_path.parent)
                    locks.enter_context(place_of(job.store_path).write_lock())
                plan = None if was_done else job.open_store()
            except Exception:
                _dismiss_ranks(job, trainer)
                raise
            if plan is not None and plan.shards():
                _compute(job, trainer, plan)
            else:
                _dismiss_ranks(job, trainer)
            if not was_done:
                _complete(job, trainer, keep_store)
            elif not keep_store:
                job.remove_leftovers()
        return _report(job, was_done)


def find_finished(
    model: Extractor, data: StimulusDataModule, precision: str, output_dir: str, tag: str | None = None
) -> Extraction | None:
    """Return the result of a finished job, else None; nothing is computed, written or removed."""
    job = FeaturesJob(model, data, precision, output_dir, tag=tag)
    return _report(job, was_done=True) if job.is_done() and not place_of(job.store_path).remains() else None


def _compute(job: FeaturesJob, trainer: Trainer, plan: Plan | None) -> None:
    """Compute the remaining rows, which rank zero knows."""
    writer = ActivationWriter()
    progress = plan and Progress(writer, plan, job.data.unit, lambda: Store(job.store_path).done_shards())

    def start(plan: Plan) -> None:
        check_shared(trainer, job.store_path)
        reserved = max(0, sum(job.bytes_to_write()) - bytes_there([job.store_path]))
        rows = job.model.pass_rows(trainer, job.data.tokens_a_row)
        job.data.connect(replace(job.data.connection, plan=plan, reserved_bytes=reserved, pass_rows=rows))
        at_once = -(-(rows or 1) // plan.shard_rows)  # shards that one pass through streamed blocks completes
        writer.open(Store(job.store_path), plan.left, job.data.input_bytes, at_once)

    callbacks = [_Agreement(plan, start), writer, *([progress] if progress else [])]
    with ieee_float32() if job.provenance["precision"] == "32-true" else nullcontext(), progress or nullcontext():
        run_predict(trainer, job.model, job.data, callbacks)
    if plan is not None:
        wait_for_shards(trainer, Store(job.store_path))


class _Agreement(Callback):
    """Callback that starts all ranks with the plan of rank zero, or ends them if there is nothing to compute."""

    def __init__(self, plan: Plan | NothingLeft | None, start: Callable[[Plan], None]) -> None:
        self.plan, self.start = plan, start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the plan before weights are loaded."""
        agreed = trainer.strategy.broadcast(self.plan)
        if isinstance(agreed, NothingLeft):
            raise agreed
        assert agreed is not None, "rank zero has a plan"
        self.start(agreed)


def _dismiss_ranks(job: FeaturesJob, trainer: Trainer) -> None:
    """Release the ranks that rank zero did not start, which wait for its plan; rank zero reports the reason."""
    if trainer.world_size == 1:
        return
    if trainer.num_nodes > 1 or trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        with suppress(NothingLeft):
            run_predict(trainer, job.model, job.data, [_Agreement(NothingLeft(), lambda _: None)])


def _complete(job: FeaturesJob, trainer: Trainer, keep_store: bool) -> None:
    """Compute a few stimuli again in float32, unless an earlier run did; make the features files."""
    store = Store(job.store_path)
    if NOTE not in store.notes and not store.missing_rows():
        with step(f"{job.model.model_name}: comparing a few {job.data.unit} with float32"):
            check_store(store, job.model, job.data, trainer)
    if job.finalize:
        with step(f"{job.model.model_name}: finalizing", *job.finalizing()):
            finalize_locked(store, keep_store or (bool(job.repairable) and store.is_kept))
    elif not job.model.makes_files and not store.is_kept and not store.missing_rows():
        check_same_images(Rows(store))
        store.keep()  # it is the output


def _report(job: FeaturesJob, was_done: bool) -> Extraction:
    """Return the result that is on disk now."""
    files = [file for file in job.files.values() if place_of(file).exists()]
    store = Store(job.store_path) if is_store(job.store_path) else None
    if files:
        found = [load_features(file) for file in files]
        n_rotated = found[0].metadata["notes"].get("exif_rotations", 0)
    elif store is not None:
        found = [load_features(store.path, pool) for pool in job.model.pools]
        n_rotated = int((store.inputs()[:, ROTATED] != 0).sum())
    else:
        return Extraction([], None, [], [], was_done)
    metadata = found[0].metadata
    lost = [warning(each.metadata, each.layers, each.provenance["pool"]) for each in found]
    return Extraction(
        files,
        store.path if store else None,
        metadata["bad_input_rows"],
        metadata["not_finite_rows"],
        was_done,
        n_rotated,
        list(dict.fromkeys(sentence for sentence in lost if sentence)),
    )
