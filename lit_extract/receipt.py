"""Receipts: a job that is done says so at once, while nothing has changed that this hangs on.

Whether a job is done is decided from provenance, by what it would run with: seconds of imports. So the answer is kept,
with the state of everything that it was found from. A receipt counts for the same command in the same place, on the
same machine, with the same packages and code (all that is its name), and while the features files, their stimuli, the
weights and the settings files are what they were, and the hub names the same commit. Otherwise predict looks itself.
Nothing heavy is imported here, and whatever goes wrong is no receipt.
"""

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from lit_extract import __version__
from lit_extract.ranks import LAUNCHER
from lit_extract.timing import seconds_since_start

# What changes numbers, or reads the settings that do.
_PACKAGES = (
    *("torch", "torchvision", "transformers", "tokenizers", "sentencepiece", "safetensors", "gguf", "timm"),
    *("lightning", "numpy", "pandas", "pyarrow", "pillow", "h5py", "zarr", "jsonargparse", "pyyaml"),
)
_VARIABLES = re.compile(r"HOME|PYTHONPATH|CUDA_.*|NVIDIA_.*|(HF|HUGGINGFACE|TRANSFORMERS|TORCH|TIMM|XDG)_.*|.*_DATASET")
# Started by another program as one of several processes: they must not disagree on whether there is something to do.
_PROCESSES = ("WORLD_SIZE", "SLURM_NTASKS", LAUNCHER)
_NEVER = ("--overwrite", "--profile")
VARIABLE = "LIT_EXTRACT_RECEIPTS"  # "off" for none
# The clocks of file systems may be coarse.
SECONDS_APART = 2.0
# Of files named in the settings, the largest that is looked through for further names.
SETTINGS_BYTES = 2**16
DAYS_KEPT = 90

ABSENT = "absent"  # the state of what is not there


class HubRevision(NamedTuple):
    """Weights on the hub, and the commit that they were found to be of."""

    repository: str
    revision: str | None
    files: Sequence[str]
    commit: str


@dataclass(frozen=True)
class Basis:
    """What it hangs on whether a job is done.

    Args:
        files: Files and folders that were read, or looked for: settings, weights, indices.
        stimuli: Files and folders of the stimuli.
        hub: Weights on the hub.
    """

    files: Sequence[str | Path]
    stimuli: Sequence[str | Path] = ()
    hub: Sequence[HubRevision] = ()


@dataclass(frozen=True)
class Answer:
    """What a job that is done says.

    Args:
        lines: What it prints.
        code: Its exit code.
    """

    lines: Sequence[str]
    code: int


@dataclass(frozen=True)
class _Receipt:
    states: Mapping[str, str]
    stimuli: str | None  # a list of them, which models share
    states_of_stimuli: str
    answer: Mapping[str, Any]
    hub: Sequence[Sequence[Any]]


def name_of(args: Sequence[str]) -> str | None:
    """What the receipt of a command is called, here and now; None if it has none."""
    given = {part.partition("=")[0] for part in args}
    of_several = any(os.environ.get(variable, "1") != "1" for variable in _PROCESSES)
    if given & set(_NEVER) or of_several or os.environ.get(VARIABLE) == "off":
        return None
    package = Path(__file__).parent
    code = sorted(str(path) for path in package.rglob("*") if path.suffix in (".py", ".yml"))
    known = {
        "command": list(args),
        "folder": os.getcwd(),  # noqa: PTH109
        "environment": {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)},
        "machine": [platform.node(), platform.machine(), sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))],
        "python": [sys.version, sys.prefix],
        "packages": {name: _version(name) for name in _PACKAGES},
        "code": [__version__, code, _digest(map(state, code))],
    }
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def find(name: str | None) -> Answer | None:
    """The answer to a command, if it is known and nothing has changed since; None if predict has to look."""
    if name is None:
        return None
    try:
        receipt = _Receipt(**json.loads(_path(name).read_text(encoding="utf-8")))
        if any(state(path) != known for path, known in receipt.states.items()):
            return None
        if receipt.stimuli is not None:
            paths = _list_path(receipt.stimuli).read_text(encoding="utf-8").split("\0")
            if _digest(map(state, paths)) != receipt.states_of_stimuli:
                return None
        if any(_commit_now(HubRevision(*known)) != known[-1] for known in receipt.hub):
            return None
        return Answer(**receipt.answer)
    except (OSError, ValueError, TypeError, RuntimeError):
        return None


def leave(name: str | None, args: Sequence[str], basis: Basis, outputs: Mapping[str, str], answer: Answer) -> None:
    """Keep an answer, unless something that it hangs on has changed since this process was started.

    Args:
        name: What :func:`name_of` said when the process began.
        args: The command.
        basis: What the job was found from.
        outputs: State of each features file, taken when nobody else could write it.
        answer: What the same command says next time.
    """
    if name is None or not (seconds := seconds_since_start()):
        return
    begun = time.time() - seconds - SECONDS_APART
    inputs = {path: state(path) for path in map(str, [*basis.files, *_named_in(args)])}
    stimuli = sorted({str(path) for path in basis.stimuli})
    states = [state(path) for path in stimuli]
    if any(_changed_at(known) >= begun for known in (*inputs.values(), *states)):
        return
    listed, digest = "\0".join(stimuli), None
    with suppress(OSError, ValueError, RuntimeError):
        _folder().mkdir(parents=True, exist_ok=True)
        _forget_old(_folder())
        if stimuli:
            digest = _digest([listed])
            _write(_list_path(digest), listed)
        receipt = _Receipt({**inputs, **outputs}, digest, _digest(states), asdict(answer), list(basis.hub))
        _write(_path(name), json.dumps(asdict(receipt)))


def state(path: str | Path) -> str:
    """What tells one state of a file or folder from another, as Git does; :data:`ABSENT` when there is none.

    A folder's changes when something in it comes or goes.
    """
    try:
        now = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, 26,000 times)
    except OSError:
        return ABSENT
    return f"{now.st_ctime_ns} {now.st_mtime_ns} {now.st_size} {now.st_ino} {now.st_dev}"


def files_below(path: str | Path) -> list[str]:
    """A folder, and all folders and files below it; or the one file."""
    walked = os.walk(path, followlinks=True)
    return [str(path), *(str(Path(parent, name)) for parent, folders, files in walked for name in (*folders, *files))]


def _changed_at(known: str) -> float:
    return 0.0 if known == ABSENT else int(known.partition(" ")[0]) / 1e9


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-extract" / "finished"


def _path(name: str) -> Path:
    return _folder() / f"{name}.json"


def _list_path(digest: str) -> Path:
    return _folder() / f"{digest}.paths"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(states: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _forget_old(folder: Path) -> None:
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    for path in folder.iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def _commit_now(known: HubRevision) -> str:
    if re.fullmatch("[0-9a-f]{40}", known.revision or ""):
        return known.commit
    from lit_extract.hub import hub_commit

    return hub_commit(known.repository, known.revision, known.files)


def _named_in(args: Sequence[str]) -> set[str]:
    """Files that the settings name: configs, and what configs name in their turn."""
    found: set[str] = set()
    values = [part.partition("=")[2] if part.startswith("--") and "=" in part else part for part in args]
    while values:
        value = values.pop()
        with suppress(OSError, ValueError):  # too long for a path, or with a NUL
            path = Path(value).expanduser().absolute()
            if str(path) not in found and path.is_file():
                found.add(str(path))
                values += [text for given in _texts_in(path) for text in (given, str(path.parent / given))]
    return found


def _texts_in(path: Path) -> Iterator[str]:
    """All text values of a small YAML file."""
    import yaml

    if path.stat().st_size > SETTINGS_BYTES:
        return
    try:
        left = [yaml.safe_load(path.read_text(encoding="utf-8"))]
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
