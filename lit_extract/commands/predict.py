"""``lit-extract predict``: a LightningCLI that shows what concerns prediction, and nothing of training."""

import inspect
import logging
import re
from argparse import ArgumentError
from contextlib import redirect_stdout
from pathlib import Path
from pydoc import locate
from typing import Any, Literal, Self

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

import lit_extract.modules.language
import lit_extract.modules.vision  # noqa: F401  (so that help and errors know the classes)
from lit_extract.captioning.captioner import Captioner
from lit_extract.captioning.job import Captions, caption
from lit_extract.commands.arguments import FLAG, in_order, parse, refuse_null
from lit_extract.commands.config import check_files
from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError, name_some, one_line, wrong_setting
from lit_extract.common.timing import seconds_since_start, stopwatch
from lit_extract.common.untrusted import shorten
from lit_extract.data.base import StimulusDataModule
from lit_extract.jobs.cluster import plugins_of_cluster
from lit_extract.jobs.extraction import Extraction, extract, find_finished
from lit_extract.modules.base import Extractor, Predictor
from lit_extract.storage import rounding
from lit_extract.storage.features import load_features
from lit_extract.storage.store import Store

FAILURES_SHOWN = 10

Precision = Literal["bf16-true", "bf16-mixed", "32-true"]


def predict_trainer(
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Precision | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """A Trainer for prediction.

    Args:
        accelerator: "gpu", "cpu" or "auto".
        devices: How many devices, which ones, or "auto" for all; several share the work (DDP).
        num_nodes: Machines that share the work.
        strategy: Lightning's strategy for several devices; "auto" is DDP.
        precision: "bf16-true", "bf16-mixed" or "32-true"; default: bf16-true on a GPU and on a CPU with
            AMX, 32-true elsewhere and for an untrained model, whose layers may differ by less than bf16 holds.
        callbacks: Further Lightning callbacks.

    Raises:
        InputError: Lightning refuses the settings, on this machine or altogether.
    """
    _check_counts(devices, num_nodes)
    try:
        with plugins_of_cluster(num_nodes) as plugins:
            return Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                precision=precision or default_precision(accelerator),
                callbacks=callbacks,
                plugins=plugins,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,  # the data module's plan keeps two ranks out of one shard
            )
    except InputError:
        raise
    except (
        MisconfigurationException,
        RuntimeError,  # of SLURM's variables
        ValueError,
        TypeError,
    ) as error:  # a GPU that is not there, say
        settings = f"accelerator {accelerator!r}, devices {devices!r}, strategy {strategy!r}, precision {precision!r}"
        raise InputError(f"trainer: Lightning refuses {settings}: {one_line(error)}") from error


MAX_DEVICES, MAX_NODES = 1024, 100_000  # more than there are; Lightning makes a list of them


def _check_counts(devices: int | str | list[int], num_nodes: int) -> None:
    count = int(devices) if isinstance(devices, str) and re.fullmatch("[0-9]{1,20}", devices) else devices
    count = len(count) if isinstance(count, list | str) else count
    if count > MAX_DEVICES or num_nodes > MAX_NODES:
        raise InputError(
            f"trainer: devices {shorten(devices)} and num_nodes {shorten(num_nodes)} must be {MAX_DEVICES} and "
            f"{MAX_NODES:,} at most"
        )


def make_callbacks(callbacks: list[Any] | None) -> list[Callback]:
    """Make the callbacks that a config names.

    Raises:
        InputError: One refuses its settings.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    try:
        made: list[Callback] = parser.instantiate_classes(Namespace(callbacks=callbacks or [])).callbacks  # type: ignore[no-untyped-call]
    except Exception as error:  # of the callbacks' own code
        raise InputError(f"trainer.callbacks: {one_line(error)}") from error
    return made


def default_precision(accelerator: str) -> Precision:
    """bf16-true where the hardware multiplies bf16 matrices faster than float32 ones."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-true" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    has_amx = cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "bf16-true" if has_amx else "32-true"


class PredictCLI(LightningCLI):
    """The predict command: model, data and trainer from YAML and options, then :func:`extract` or :func:`caption`."""

    prog = "lit-extract predict"
    description = """Extract features of a dataset with a model, or caption its images. Begin with a config and override
what differs: 'lit-extract predict --config configs/nsd/vision.yaml --model.name vit_base_patch16_224.mae'. The
settings of the model and the data depend on their class: --model.help VisionExtractor (or LanguageExtractor,
Captioner) and --data.help NSDDataModule (or CaptionDataModule, ImageSourceDataModule, …) show them. A run that was
interrupted goes on when the same command is given again. Exit code: 0 done, 2 something to mend, 3 done but some rows
are not finite or have no caption, or when the precision has rounded away what differs between stimuli."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            model_class=Predictor,
            datamodule_class=StimulusDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=predict_trainer,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            parser_kwargs={
                "prog": self.prog,
                "description": self.description,
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=args,
        )

    @classmethod
    def read(cls, args: list[str]) -> Self:
        """Return the settings of a command line, with the model, the data and the trainer that they make.

        Raises:
            InputError: Something is wrong with them.
        """
        try:
            return cls(args)
        except (ArgumentError, ValueError) as error:
            if (wrong := wrong_setting(error)) is None:
                raise
            raise wrong from None

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add no --seed_everything."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of a job; link the preprocessing that the model hands to its data."""
        parser.add_function_arguments(extract, skip={"model", "data", "trainer", "overwrite"})
        parser.add_argument("--output", type=str | None, help="Captions only: the CSV or Parquet to make.")
        overwrite = "Start from scratch: delete an existing store or features files."
        parser.add_argument("--overwrite", **FLAG, help=overwrite)
        profile = "Print at the end where the time went. On a GPU nothing overlaps then, which takes longer."
        parser.add_argument("--profile", **FLAG, help=profile)
        parser.link_arguments("model.preprocessing", "data.init_args.preprocessing", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As LightningCLI, which would warn about the arguments of the outer command; their order does not matter."""
        assert isinstance(args, list)
        given = in_order(args)
        check_files(given)
        self.config = config = parse(parser, given)
        refuse_null(vars(config), extract, "")
        refuse_null(config.trainer, predict_trainer, "trainer.")
        for key in ("model", "data"):
            refuse_null(config[key].get("init_args") or {}, locate(config[key].class_path), f"{key}.")  # type: ignore[arg-type]
        config["seed_everything"] = False  # the one seed that matters is the untrained model's

    def before_instantiate_classes(self) -> None:
        """Make the callbacks; run an untrained model in float32 unless asked otherwise.

        bf16 may erase what differs between its stimuli.
        """
        settings = self.config.model.get("init_args") or {}
        if (settings.get("untrained") or self.config.get("untrained")) and self.config.trainer.precision is None:
            self.config.trainer.precision = "32-true"
        self.config.trainer.callbacks = make_callbacks(self.config.trainer.callbacks)

    def run(self) -> Extraction | Captions:
        """Extract or caption with the parsed settings."""
        config = self.config_init
        stopwatch.synchronizes = config["profile"]
        features = {name: config[name] for name in ("output_dir", "finalize", "keep_store")}
        if isinstance(self.model, Captioner):
            given = {name: value != _DEFAULTS[name] for name, value in features.items()}
            _refuse_settings(given, "features", "captions")
            return caption(self.model, self.datamodule, self.trainer, config["output"], config["overwrite"])
        _refuse_settings({"output": config["output"] is not None}, "captions", "features (see --output_dir)")
        return extract(self.model, self.datamodule, self.trainer, **features, overwrite=config["overwrite"])


_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(extract).parameters.items()}


def _refuse_settings(given: dict[str, bool], theirs: str, ours: str) -> None:
    if wrong := [f"--{name}" for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(wrong)}: for {theirs} only; this model makes {ours}")


def answer_if_done(args: list[str]) -> tuple[list[str], int] | None:
    """Return what ``lit-extract predict`` would print and its exit code, if nothing is left of it to do; else None.

    Raises:
        InputError: As predict.
    """
    with redirect_stdout(None):
        cli = PredictCLI.read(args)
        config, model = cli.config_init, cli.model
        if not isinstance(model, Extractor) or config["overwrite"] or not config["finalize"] or config["keep_store"]:
            return None
        done = find_finished(model, cli.datamodule, str(cli.trainer.precision), config["output_dir"])
    return None if done is None else _summarize_features(done)


def main(args: list[str]) -> int:
    """Run ``lit-extract predict`` with the given arguments; return the exit code."""
    stopwatch.seconds["imports"] = seconds_since_start()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # of loading weights; the run has its own
    with stopwatch("settings"):
        cli = PredictCLI.read(args)
    if cli.trainer.global_rank != 0:
        cli.run()
        return exit_codes.DONE
    done = cli.run()
    lines, code = _summarize_captions(done) if isinstance(done, Captions) else _summarize_features(done)
    print("\n".join(lines))
    if cli.config["profile"]:
        print("\n".join(stopwatch.report()))
    return code


def _summarize_captions(captions: Captions) -> tuple[list[str], int]:
    lines = [f"{'already done: ' if captions.was_done else ''}{captions.file}"]
    lines.append(f"  {captions.n_rows - len(captions.failed)} of {captions.n_rows} images have a caption")
    if captions.n_rotated:
        lines.append(_rotated(captions.n_rotated))
    if captions.cut_off:
        lines.append(f"  warning: {captions.cut_off} captions are cut off, as they are longer than --model.max_tokens")
    if captions.failed:
        lines.append(f"  warning: {len(captions.failed)} images failed; the same command tries them again:")
    lines += [f"    {stimulus}: {reason}" for stimulus, reason in list(captions.failed.items())[:FAILURES_SHOWN]]
    return lines, exit_codes.LOOK if captions.failed else exit_codes.DONE


def _rotated(n_images: int) -> str:
    return f"  {n_images} images have an EXIF rotation, which is not applied"


def _summarize_features(extraction: Extraction) -> tuple[list[str], int]:
    lines = []
    for file in extraction.files:
        features = load_features(file)
        n, layers, dim = features.shape
        lines.append(f"{'already done: ' if extraction.was_done else ''}{file}")
        lines.append(f"  {n} stimuli × {layers} layers × {dim} dimensions, float32")
        lines.append(f"  layers {features.layers[0]} … {features.layers[-1]}")
        lines.append(f"  {rounding.describe(features.metadata, features.layers, features.provenance['pool'])}")
    if not extraction.files and (store := extraction.store) is not None:
        lines.append(f"all rows are in {store}; lit-extract finalize {store} makes the features files")
        for pool in Store(store).pools:
            features = load_features(store, pool)
            lines.append(f"  {pool}: {rounding.describe(features.metadata, features.layers, pool)}")
    lines += [f"  warning: {warning}" for warning in extraction.warnings]
    if extraction.n_rotated:
        lines.append(_rotated(extraction.n_rotated))
    for rows, what in (
        (extraction.bad_input_rows, "could not be decoded and are NaN"),
        (extraction.not_finite_rows, "have NaN or infinite activations"),
    ):
        if rows:
            lines.append(f"  warning: {len(rows)} rows {what}: {name_some([str(row) for row in rows], 10)}")
    is_good = not (extraction.bad_input_rows or extraction.not_finite_rows or extraction.warnings)
    return lines, exit_codes.DONE if is_good else exit_codes.LOOK
