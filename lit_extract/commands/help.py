"""The help of predict and plan: examples, common settings, then the rest; without heavy imports."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lit_extract.commands.config import given_class, values_of
from lit_extract.commands.signatures import Setting, class_signature
from lit_extract.commands.spelling import PARTS, known_classes, settings_of_job, settings_of_trainer
from lit_extract.common.errors import InputError

_INTRODUCTIONS = {
    "predict": """Extract features of a dataset with a model, or caption its images. To resume an interrupted run, run
the same command again.""",
    "plan": """Estimate what a run will need: the size of the features, disk space, GPU memory and host memory, for the
model of a config or for all models of its kind in models.yml. No weights are loaded.""",
}
_EXAMPLES = {
    "predict": (
        "lit-extract predict --config nsd/vision --data.root /data/nsd \\\n      --model.name vit_base_patch16_224.mae",
        "lit-extract predict --config nsd/language --data.captions coco.csv \\\n"
        "      --data.prompt_name coco --model.name gpt2",
        "lit-extract predict --data ImageFolderDataModule --data.root pictures \\\n"
        "      --model VisionExtractor --model.name vit_tiny_patch16_224.augreg_in21k",
    ),
    "plan": (
        "lit-extract plan --config nsd/vision --data.root /data/nsd \\\n      --model.name vit_base_patch16_224.mae",
        "lit-extract plan --config nsd/vision --models --rows 73000",
        "lit-extract plan --config nsd/language --models --match bloom \\\n      --rows 73000 --card_memory 24",
    ),
}
# Their help here is the first sentence, of settings of a class that of the first class that has them.
_USUAL = (
    "--config --model.name --model.pool --model.layers --data.root --data.limit --data.batch_size --trainer.devices "
    "--output_dir --tag"
).split()
_EXIT_CODES = {
    "predict": "0 done; 2 wrong input; 3 done, but some rows are not finite or have no caption, or the precision is "
    "too low to tell the stimuli apart.",
    "plan": "0 all models fit; 2 wrong input; 3 some models do not fit or can't be planned.",
}
_OF_PARSER = {
    "--config": "YAML with settings: a file, or a shipped config such as nsd/vision (lit-extract configs lists them). "
    "May be given several times; options on the command line override it.",
    "--print_config": "Print all settings as YAML, without running anything.",
    "--help": "Print this help.",
}


def help_asked_for(command: str, args: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the help that a command line asks for; None if it asks for none, or for a class of another package.

    ``--data.help`` without a class prints the help of the class that the command line or its configs name.
    """
    if "--help" in args or "-h" in args:
        return "\n".join(_help(command, options))
    for part in PARTS:
        option = f"--{part}.help"
        is_bare = any(arg == option and after.startswith("-") for arg, after in pairwise([*args, "-"]))
        for name in [given_class(args, part)] if is_bare else values_of(args, (option,)):
            if name is None:
                raise InputError(f"{option}: needs the name of a class: {', '.join(known_classes(part))}")
            own = name.removeprefix("lit_extract.")
            return "\n".join(_help_of_class(part, own)) if own in known_classes(part) else None
    return None


def _help(command: str, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    known = {
        **_OF_PARSER,
        **{f"--{name}": _words(setting) for name, setting in settings_of_job().items()},
        **{option: settings["help"] for option, settings in options.items()},
        **{f"--trainer.{name}": _words(setting) for name, setting in settings_of_trainer().items()},
    }
    for part in PARTS:
        for name in known_classes(part):
            settings = class_signature(name).settings.items()
            known = {**{f"--{part}.{key}": _words(setting) for key, setting in settings}, **known}
    yield f"usage: lit-extract {command} [--config CONFIG] [--model CLASS] [--data CLASS] [--SETTING VALUE …]\n"
    yield from _wrapped(_INTRODUCTIONS[command], "")
    yield "\nexamples:"
    for example in _EXAMPLES[command]:
        yield f"  {example}"
    yield "\ncommon settings:"
    for option in _USUAL:
        yield from _item(option, re.split(r"(?<=[.]) ", known[option])[0])
    yield "\nother settings:"
    for option, words in known.items():
        if option not in _USUAL and option.partition(".")[0] not in ("--model", "--data"):
            yield from _item(option, words)
    for part in PARTS:
        yield f"\n--{part} CLASS; --{part}.help CLASS prints the settings of a class:"
        for name in known_classes(part):
            yield from _item(name, class_signature(name).summary)
    yield ""
    yield from _wrapped(f"exit code: {_EXIT_CODES[command]}", "")


def _help_of_class(part: str, name: str) -> Iterator[str]:
    signature = class_signature(name)
    yield f"--{part} {name}"
    yield from _wrapped(signature.summary, "")
    yield "\nsettings:"
    for setting, known in signature.settings.items():
        yield from _item(f"--{part}.{setting}", _words(known))


def _words(setting: Setting) -> str:
    """Return the help of a setting, with its default unless the help says it."""
    if setting.default is None:
        return f"{setting.help} (required)"
    is_said = setting.default == "None" or re.search(r"\bdefault\b", setting.help, re.IGNORECASE)
    return setting.help if is_said else f"{setting.help} (default: {setting.default.strip(chr(39))})"


def _item(name: str, words: str) -> Iterator[str]:
    yield f"  {name}"
    yield from _wrapped(words, " " * 8)


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
