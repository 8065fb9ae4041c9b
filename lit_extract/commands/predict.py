"""``lit-extract predict``: a LightningCLI with the settings of prediction only, none of training."""

import inspect
import logging
from argparse import ArgumentError
from contextlib import redirect_stdout
from pydoc import locate
from typing import Self

import torch
import torch.distributed as dist
from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

import lit_extract.modules.language
import lit_extract.modules.text_encoder
import lit_extract.modules.transformers_vision
import lit_extract.modules.vision
import lit_extract.modules.vision_language  # noqa: F401  (so that help and errors know the classes)
from lit_extract.captioning.captioner import Captioner
from lit_extract.captioning.job import Captions, caption
from lit_extract.commands.arguments import in_order, parse, refuse_null
from lit_extract.commands.config import check_files, with_found_configs
from lit_extract.commands.options import NOT_FROM_EXTRACT, PREDICT_OPTIONS
from lit_extract.common import exit_codes
from lit_extract.common.console import quiet
from lit_extract.common.errors import InputError, counted, name_some, one_line, printable, wrong_setting
from lit_extract.common.ranks import is_rank_zero
from lit_extract.common.timing import seconds_since_start, stopwatch
from lit_extract.data.base import StimulusDataModule
from lit_extract.jobs.extraction import Extraction, extract, find_finished
from lit_extract.jobs.run_state import Outcome, record
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.modules.base import Extractor, Predictor
from lit_extract.storage import rounding
from lit_extract.storage.features import load_features
from lit_extract.storage.layout import layers_in_words, shapes_in_words
from lit_extract.storage.store import Store

FAILURES_SHOWN = 10


class PredictCLI(LightningCLI):
    """The predict command: make model, data and trainer from settings, then run :func:`extract` or :func:`caption`."""

    prog = "lit-extract predict"  # commands/help.py has its help
    options = PREDICT_OPTIONS

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
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=args,
        )

    @classmethod
    def read(cls, args: list[str]) -> Self:
        """Return the settings of a command line, with the model, the data and the trainer made from them."""
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
        parser.add_function_arguments(extract, skip=set(NOT_FROM_EXTRACT))
        for name, settings in self.options.items():
            parser.add_argument(name, **settings)
        parser.link_arguments("model.preprocessing", "data.init_args.preprocessing", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse arguments in any order; unlike LightningCLI, do not warn about those of the outer command."""
        assert isinstance(args, list)
        given = with_found_configs(in_order(args))
        check_files(given)
        self.config = config = parse(parser, given)
        refuse_null(vars(config), extract, "")
        refuse_null(config.trainer, predict_trainer, "trainer.")
        for key in ("model", "data"):
            refuse_null(config[key].get("init_args") or {}, locate(config[key].class_path), f"{key}.")  # type: ignore[arg-type]
        config["seed_everything"] = False  # the one seed that matters is the untrained model's

    def before_instantiate_classes(self) -> None:
        """Make the callbacks; run an untrained model in float32 unless a precision is given.

        In bf16 the differences between its stimuli may be lost.
        """
        settings = self.config.model.get("init_args") or {}
        if (settings.get("untrained") or self.config.get("untrained")) and self.config.trainer.precision is None:
            self.config.trainer.precision = "32-true"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--callbacks", type=list[Callback])
        given = Namespace(callbacks=self.config.trainer.callbacks or [])  # type: ignore[no-untyped-call]
        try:
            self.config.trainer.callbacks = parser.instantiate_classes(given).callbacks
        except Exception as error:  # of the callbacks' own code
            raise InputError(f"trainer.callbacks: {one_line(error)}") from error

    def run(self) -> Extraction | Captions:
        """Extract or caption with the parsed settings."""
        config = self.config_init
        if config["profile"] and torch.cuda.is_available():
            stopwatch.synchronize = torch.cuda.synchronize
        features = {name: config[name] for name in ("output_dir", "finalize", "keep_store", "tag")}
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


def answer_if_done(args: list[str]) -> Outcome | None:
    """Return the outcome of ``lit-extract predict`` if nothing is left to do; else None."""
    with redirect_stdout(None), quiet():
        cli = PredictCLI.read(args)
        config, model = cli.config_init, cli.model
        asks_for_files = config["finalize"] is not False and not config["keep_store"]
        if not isinstance(model, Extractor) or config["overwrite"] or not asks_for_files:
            return None
        where = config["output_dir"], config["tag"]
        done = find_finished(model, cli.datamodule, str(cli.trainer.precision), *where)
    return None if done is None else _outcome(done, *_summarize_features(done))


def main(args: list[str]) -> int:
    """Run ``lit-extract predict`` with the given arguments; return the exit code."""
    try:
        return _run(args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # its threads, left running, can abort the process while it exits


def _run(args: list[str]) -> int:
    stopwatch.seconds["imports"] = seconds_since_start()
    disable_progress_bar()  # of loading weights; the run has its own
    with stopwatch("settings"):
        cli = PredictCLI.read(args)
    if cli.config["quiet"]:
        logging.getLogger("lit_extract").setLevel(logging.WARNING)
    elif is_rank_zero():
        enable_progress_bars()  # of downloads, which only a terminal has
    if cli.trainer.global_rank != 0:
        cli.run()
        return exit_codes.DONE
    done = cli.run()
    lines, code = _summarize_captions(done) if isinstance(done, Captions) else _summarize_features(done)
    print("\n".join(lines))
    record(outcome=_outcome(done, lines, code))
    if cli.config["profile"]:
        print("\n".join(stopwatch.report()))
    return code


def _outcome(done: Captions | Extraction, lines: list[str], code: int) -> Outcome:
    """Return the outcome of a completed run, for the sweep that started it."""
    if code == exit_codes.LOOK:
        found = [line.removeprefix("  warning: ") for line in lines if line.startswith("  warning: ")]
        return Outcome("bad rows", printable("; ".join(found)), code)
    return Outcome("already done" if done.was_done else "done", "", code)


def _summarize_captions(captions: Captions) -> tuple[list[str], int]:
    lines = [f"{'already done: ' if captions.was_done else ''}{captions.file}"]
    lines.append(f"  {captions.n_rows - len(captions.failed)} of {captions.n_rows} images have a caption")
    if captions.n_rotated:
        lines.append(_rotated(captions.n_rotated))
    if captions.cut_off:
        cut_off = counted(captions.cut_off, "caption is cut off, as it is", "captions are cut off, as they are")
        lines.append(f"  warning: {cut_off} longer than --model.max_tokens")
    if captions.failed:
        failed = counted(len(captions.failed), "image failed", "images failed")
        lines.append(f"  warning: {failed}; run the same command to try again:")
    lines += [f"    {stimulus}: {reason}" for stimulus, reason in list(captions.failed.items())[:FAILURES_SHOWN]]
    return lines, exit_codes.LOOK if captions.failed else exit_codes.DONE


def _rotated(n_images: int) -> str:
    return f"  {counted(n_images, 'image has', 'images have')} an EXIF rotation, which is not applied"


def _summarize_features(extraction: Extraction) -> tuple[list[str], int]:
    lines = []
    for file in extraction.files:
        features = load_features(file)
        lines.append(f"{'already done: ' if extraction.was_done else ''}{file}")
        layers, shapes = features.layers, shapes_in_words(features.layer_shapes)
        stimuli = counted(len(features.stimulus_ids), "stimulus", "stimuli")
        in_layers = counted(len(layers), "layer")
        lines.append(f"  {stimuli} × {in_layers} × {shapes} dimensions, {features.dtype}")
        lines.append(f"  layers {layers_in_words(layers)}")
        lines.append(f"  {rounding.describe(features.metadata, layers, features.provenance['pool'])}")
    if not extraction.files and (store := extraction.store) is not None:
        lines.append(f"all rows are in {store}; lit-extract finalize {store} makes the features files")
        for pool in Store(store).pools:
            features = load_features(store, pool)
            lines.append(f"  {pool}: {rounding.describe(features.metadata, features.layers, pool)}")
    lines += [f"  warning: {warning}" for warning in extraction.warnings]
    if extraction.n_rotated:
        lines.append(_rotated(extraction.n_rotated))
    for rows, what in (
        (extraction.bad_input_rows, ("row could not be decoded and is NaN", "rows could not be decoded and are NaN")),
        (extraction.not_finite_rows, ("row has NaN or infinite activations", "rows have NaN or infinite activations")),
    ):
        if rows:
            lines.append(f"  warning: {counted(len(rows), *what)}: {name_some([str(row) for row in rows], 10)}")
    is_good = not (extraction.bad_input_rows or extraction.not_finite_rows or extraction.warnings)
    return lines, exit_codes.DONE if is_good else exit_codes.LOOK
