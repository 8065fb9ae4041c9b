"""``lit-extract verify``: a line for each features file, and the parity certificate when it is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_extract.common.errors import InputError, name_some
from lit_extract.common.untrusted import MAX_PATH_BYTES, shorten
from lit_extract.inspection.soundness import Soundness, check_soundness
from lit_extract.parity.certificate import RebuildSettings, describe, read_certificate, write_certificate
from lit_extract.storage.layout import FEATURES_SUFFIX
from lit_extract.storage.listing import features_below, is_folder, is_there
from lit_extract.storage.paths import local_path


def features_files(paths: Sequence[str]) -> list[Path]:
    """The files, and those below the folders, in order.

    Raises:
        InputError: One is not there, or remote, or a folder has none.
    """
    return list(dict.fromkeys(file for path in paths for file in _files_of(local_path(path, "files"))))


def _files_of(path: Path) -> Iterator[Path]:
    if not is_folder(path):
        if not is_there(path):
            raise InputError(f"files: no file {str(path)!r}")
        yield path
        return
    found = features_below(path, (FEATURES_SUFFIX,))
    if not found:
        raise InputError(f"files: no features file (.pt) below {str(path)!r}")
    yield from found


def verify(files: Sequence[str], parity: int | None, seed: int, where: RebuildSettings) -> int:
    """Check features files and print a line for each.

    Args:
        files: Features files, and folders of them.
        parity: How many stimuli to compute again; None: no certificate is made, those that are there are read.
        seed: Which stimuli.
        where: What a certificate needs that the files do not say.

    Returns:
        How many files something is wrong with, or can't be certified.

    Raises:
        InputError: No such file, or settings that make no sense.
    """
    if parity is None:
        if pointless := [name for name, value in asdict(where).items() if value]:
            raise InputError(f"{', '.join(pointless)}: only for a certificate; give --parity K, such as --parity 8")
    elif parity < 1:
        raise InputError(f"parity: {parity} stimuli; must be 1 or more")
    n_wrong = 0
    for file in features_files(files):
        is_sound, lines = report(file, parity, seed, where)
        n_wrong += not is_sound
        print("\n".join(lines), flush=True)
    return n_wrong


def report(file: Path, parity: int | None, seed: int, where: RebuildSettings) -> tuple[bool, list[str]]:
    """Whether a file is sound and, if that was asked for, certified; and what to say of it."""
    found = check_soundness(file)
    certificate: dict[str, Any] | None = None
    table: list[str] = []
    if not found.problems and parity is not None:
        from lit_extract.parity.certify import certify

        try:
            certificate = certify(file, parity, seed, where)
            write_certificate(file, certificate)
        except InputError as error:
            return False, [f"{_shown(file)}: NOT CERTIFIED: {error}"]
        table = describe(certificate)
    elif not found.problems:
        try:
            certificate = read_certificate(file)
        except InputError as error:
            found.problems.append(str(error))
    found.problems += [f"parity: {failure}" for failure in certificate["failures"]] if certificate else []
    return not found.problems, [summary(file, found, certificate), *table]


def summary(file: Path, found: Soundness, certificate: dict[str, Any] | None) -> str:
    """One line: all that is wrong, or what the file holds and how far that is proven."""
    if found.problems:
        return f"{_shown(file)}: WRONG: {'; '.join(found.problems)}"
    assert found.shape is not None
    n, layers, dim = found.shape
    parts = [f"{n} stimuli × {layers} layers × {dim} dimensions"]
    if found.not_finite:
        parts.append(f"{found.not_finite} rows not finite, as it says")
    if found.lost:
        parts.append(
            f"warning: what {found.precision} rounded away is as large as the differences between stimuli, in "
            f"{name_some(found.lost, 3)}; extract again with --trainer.precision 32-true --overwrite"
        )
    if certificate is not None:
        parts.append(f"parity of {len(certificate['stimuli'])} stimuli ({certificate['precision']} against float32)")
        parts += [f"beware: {remark}" for remark in certificate["remarks"]]
    return f"{_shown(file)}: sound: {'; '.join(parts)}"


def _shown(file: Path) -> str:
    """A file's path as a terminal may get it."""
    return shorten(str(file), MAX_PATH_BYTES)
