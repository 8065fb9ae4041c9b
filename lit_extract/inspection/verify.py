"""``lit-extract verify``: check features files, and make parity certificates on request."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lit_extract.common.errors import InputError, counted
from lit_extract.common.untrusted import MAX_PATH_BYTES, shorten
from lit_extract.inspection.soundness import soundness_of
from lit_extract.parity.certificate import RebuildSettings, describe, read_certificate, write_certificate
from lit_extract.storage.layout import FEATURES_SUFFIX
from lit_extract.storage.listing import features_below
from lit_extract.storage.places import is_folder, is_there, local_path


def features_files(paths: Sequence[str]) -> list[Path]:
    """Return the given files and the files below the given folders, in order; raise InputError if one is missing."""
    found: dict[Path, None] = {}
    for path in (local_path(text, "files") for text in paths):
        if is_folder(path):
            below = features_below(path, (FEATURES_SUFFIX,))
            if not below:
                raise InputError(f"files: no features file (.pt) below {str(path)!r}")
            found |= dict.fromkeys(below)
        elif is_there(path):
            found[path] = None
        else:
            raise InputError(f"files: no file {str(path)!r}")
    return list(found)


def verify(files: Sequence[str], parity: int | None, seed: int, where: RebuildSettings) -> int:
    """Print a line for each features file, and return how many are wrong or can't be certified.

    Without ``parity``, no certificate is made; existing ones are read.

    Raises:
        InputError: No such file, or settings that do not apply.
    """
    if parity is None:
        if pointless := [name for name, value in asdict(where).items() if value]:
            raise InputError(f"{', '.join(pointless)}: only for a certificate; also pass --parity, such as --parity 8")
    elif parity < 1:
        raise InputError(f"parity: {parity} stimuli; must be 1 or more")
    n_wrong = 0
    for file in features_files(files):
        is_sound, lines = _report(file, parity, seed, where)
        n_wrong += not is_sound
        print("\n".join(lines), flush=True)
    return n_wrong


def _report(file: Path, parity: int | None, seed: int, where: RebuildSettings) -> tuple[bool, list[str]]:
    """Return whether a file is sound and, if asked for, certified; and the lines to print about it."""
    path = shorten(str(file), MAX_PATH_BYTES)
    found = soundness_of(file)
    if found.problems:
        return False, [f"{path}: WRONG: {'; '.join(found.problems)}"]
    try:
        if parity is None:
            certificate = read_certificate(file)
        else:
            from lit_extract.parity.certify import certify  # it imports torch

            certificate = certify(file, parity, seed, where)
            write_certificate(file, certificate)
    except InputError as error:
        return False, [f"{path}: {'WRONG' if parity is None else 'NOT CERTIFIED'}: {error}"]
    table = describe(certificate) if certificate is not None and parity is not None else []
    if certificate is not None and certificate["failures"]:
        failures = [f"parity: {failure}" for failure in certificate["failures"]]
        return False, [f"{path}: WRONG: {'; '.join(failures)}", *table]
    facts = found.facts
    if certificate is not None:
        precision, remarks = certificate["precision"], certificate["remarks"]
        stimuli = counted(len(certificate["stimuli"]), "stimulus", "stimuli")
        facts.append(f"parity of {stimuli} ({precision} against float32)")
        facts += [f"warning: {remark}" for remark in remarks]
    return True, [f"{path}: sound: {'; '.join(facts)}", *table]
