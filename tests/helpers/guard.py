"""Runs a reader on a file that may be damaged or hostile, and sees that nothing but an answer comes of it.

Allowed: the right content, or one InputError. Not allowed: another exception, more than 10 s or 500 MB, a process
that is started, a connection, a file written outside the given folder, a module that the project does not depend on.
"""

import atexit
import importlib.metadata
import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import hypothesis

from lit_extract.common.errors import InputError

MAX_SECONDS = 10
SECONDS_TO_DRAW = 30  # a report: dozens of figures, each as PNG, PDF and SVG
MAX_BYTES = 500 * 10**6
_HARD_LIMIT = 4 * 2**30  # address space; what wants more fails before it takes the machine along

TALLY = "LIT_EXTRACT_FUZZ_TALLY"  # make fuzz: a file to which each process adds its counts; examples are random
RIGHT, REFUSED, OTHER = "right", "refused", "other"
counts: Counter[tuple[str, str]] = Counter()  # (what was read, outcome), for the table at the end

_allowed_folders: list[str] | None = None  # None: nothing is watched
_offences: list[str] = []

_PROCESSES = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "subprocess.Popen",
    "pty.spawn",
)
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "urllib.Request")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
_RELATIVE = ("os.remove", "os.rmdir", "os.mkdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooLong(BaseException):
    """The time is over. No Exception, so that no reader takes it for damage."""


def _known_modules() -> frozenset[str]:
    return frozenset({*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), "lit_extract", "tests"})


_KNOWN = _known_modules()


def _is_inside(path: object) -> bool:
    if isinstance(path, int):  # an open file
        return True
    try:
        place = os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError):
        return False
    allowed = [*(_allowed_folders or []), "/dev/null", "/dev/shm", "/proc/self"]
    return any(place == folder or place.startswith(folder + "/") for folder in allowed)


def _watch(event: str, arguments: tuple) -> None:
    if _allowed_folders is None:
        return
    if event in _PROCESSES or event in _NETWORK:
        _offences.append(f"{event} {arguments!r}"[:200])
    elif event == "import":
        top = str(arguments[0]).partition(".")[0]
        if top not in _KNOWN and not top.startswith("_"):
            _offences.append(f"import {arguments[0]!r}")
    elif event == "open":
        path, mode, flags = arguments
        writes = bool(flags & _WRITES) if isinstance(flags, int) and flags else bool(set(str(mode)) & set("wax+"))
        if writes and not _is_inside(path) and "__pycache__" not in str(path):
            _offences.append(f"open {path!r} for writing")
    elif event in _CHANGES:
        paths = [part for part in arguments if isinstance(part, str | bytes | os.PathLike)]
        if event in _RELATIVE and arguments[-1] >= 0:  # to an open folder, as shutil.rmtree does it
            folder = Path(f"/proc/self/fd/{arguments[-1]}").readlink()
            paths = [folder / os.fsdecode(path) for path in paths]
        if not all(_is_inside(path) for path in paths) and not any("__pycache__" in str(path) for path in paths):
            _offences.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_watch)


def fuzzed(examples: int) -> hypothesis.settings:
    """How a test tries: so many examples, always the same; with ``make fuzz`` others each time."""
    return hypothesis.settings(
        max_examples=examples,
        derandomize=TALLY not in os.environ,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@atexit.register
def _add_to_tally() -> None:
    if TALLY in os.environ and counts:
        with Path(os.environ[TALLY]).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([what, result, n]) + "\n" for (what, result), n in counts.items())


@contextmanager
def watched(folder: Path, seconds: int = MAX_SECONDS):
    """Note what happens outside ``folder`` and the folder for temporary files."""
    global _allowed_folders
    _offences.clear()
    _allowed_folders = [os.path.realpath(folder), os.path.realpath(tempfile.gettempdir())]
    if str(folder).startswith(_allowed_folders[1]):  # pytest's own folder lies there: only the test's own part of it
        _allowed_folders.pop()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_kilobytes("VmSize") * 1024 + _HARD_LIMIT, hard))
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _allowed_folders = None


def _too_long(*_: object) -> None:
    raise TooLong


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def outcome(what: str, folder: Path, read: Callable[[], object], is_right: Callable[[object], bool]) -> str:
    """Read something, and count what came of it.

    Args:
        what: What is read, for the table.
        folder: Where files may be written.
        read: The reader; called once.
        is_right: Whether what it returns is the right content of what it was given.

    Returns:
        "right" or "refused"; all else is an AssertionError, and counts as "other".
    """
    try:
        result = _outcome(what, folder, read, is_right)
    except BaseException:
        counts[what, OTHER] += 1
        raise
    counts[what, result] += 1
    return result


def _outcome(what: str, folder: Path, read: Callable[[], object], is_right: Callable[[object], bool]) -> str:
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak of what follows
    before, seconds = _kilobytes("VmRSS"), SECONDS_TO_DRAW if what == "report" else MAX_SECONDS
    try:
        with watched(folder, seconds):
            content = read()
    except InputError as error:
        text = str(error)
        assert text.strip(), f"{what}: the error says nothing"
        assert len(text) < 5000, f"{what}: an error of {len(text)} characters"
        assert not any(mark in text for mark in "\0\x1b"), f"{what}: the error has control characters: {text!r}"
        text.encode()  # it can be printed
        result = REFUSED
    except TooLong:
        raise AssertionError(f"{what}: it took more than {seconds} s") from None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        assert is_right(content), f"{what}: accepted, but wrong: {content!r:.500}"
        result = RIGHT
    grown = (_kilobytes("VmHWM") - before) * 1024
    assert grown <= MAX_BYTES, f"{what}: {grown / 1e6:.0f} MB"
    assert not _offences, f"{what}: {_offences}"
    return result
