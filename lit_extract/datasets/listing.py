"""Contents of folders."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import shorten

_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # Python's stand-ins for other bytes in a name; not writable as text


def files_below(base: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, in no order.

    Links are followed, except links to a parent folder. A hidden folder is returned itself, instead of its files.
    """
    return [os.path.relpath(path, base) for path in _walk(str(base))]


def entries_of(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None


def packed_in(base: Path, places: Iterable[Path]) -> list[str]:
    """Return the archives in some folders that have no folder of the same name, relative to ``base``."""
    there = [place for place in places if place.is_dir()]
    archives = [path for place in there for path in entries_of(place) if path.suffix == ".zip"]
    waiting = [path for path in archives if not path.name.startswith(".") and not path.with_suffix("").is_dir()]
    return sorted(path.relative_to(base).as_posix() for path in waiting)


def finding(what: str, names: Sequence[str]) -> str:
    """Return a sentence about names found in a folder: their number, and the first few."""
    return f"{what}: {len(names):,} ({name_some([shorten(name) for name in names])})"


def check_utf8(paths: Iterable[str]) -> None:
    """Raise InputError unless all names are UTF-8."""
    if wrong := [repr(os.fsencode(path)) for path in paths if _NOT_UTF8.search(path)]:
        raise InputError(f"data.root: names that are not UTF-8: {name_some(sorted(wrong))}; rename the files")


def _walk(base: str) -> Iterator[str]:
    left: list[tuple[str, tuple[str, ...]]] = [(base, ())]
    while left:
        folder, above = left.pop()
        real = os.path.realpath(folder)
        if real in above:
            continue
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir() and not entry.name.startswith("."):
                        left.append((entry.path, (*above, real)))
                    else:
                        yield entry.path
        except OSError as error:
            raise _unreadable(folder, error) from None


def _unreadable(folder: str | Path, error: OSError) -> InputError:
    return InputError(f"data.root: can't read the folder {str(folder)!r}: {error.strerror}")
