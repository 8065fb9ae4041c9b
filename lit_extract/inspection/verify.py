"""``lit-extract verify``: check features files, and make parity certificates on request."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lit_extract.common.errors import InputError, counted, name_some, printable
from lit_extract.common.untrusted import MAX_PATH_BYTES, shorten
from lit_extract.inspection.soundness import soundness_of
from lit_extract.parity.certificate import RebuildSettings, describe, read_certificate, write_certificate
from lit_extract.storage.folder import mixed_images
from lit_extract.storage.layout import FEATURES_SUFFIX, STORE_SUFFIX
from lit_extract.storage.listing import features_below
from lit_extract.storage.places import is_folder, is_there, local_path, place_of
from lit_extract.storage.store import Store


def features_files(paths: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Return the given files and the files below the given folders, in order; and why other paths can't be checked."""
    found: dict[Path, None] = {}
    problems: dict[str, str] = {}
    for text in paths:
        try:
            path = local_path(text, "files")
        except InputError:
            problems[text] = "it is remote; it must be a local path"
            continue
        if is_folder(path):
            _, unreadable = place_of(path).list_files((STORE_SUFFIX,), files_like=(FEATURES_SUFFIX,))
            problems |= {str(place): reason for place, reason in unreadable.items()}
            below = features_below(path, (FEATURES_SUFFIX,))
            if not below and not unreadable:
                problems[text] = _without_features(path)
            found |= dict.fromkeys(below)
        elif is_there(path):
            found[path] = None
        else:
            problems[text] = "no such file"
    return list(found), problems


def _without_features(folder: Path) -> str:
    """Return the reason why a folder has no features files, or a store is none."""
    if folder.suffix == STORE_SUFFIX:
        return f"it is a store, not a features file (.pt); {_next_step(folder)}"
    stores = features_below(folder, (STORE_SUFFIX,))
    if not stores:
        return "no features file (.pt) below it"
    others = f" (of {len(stores)}, which lit-extract status lists)" if stores[1:] else ""
    return f"no features file (.pt) below it, but the store {str(stores[0])!r}{others}; {_next_step(stores[0])}"


def _next_step(path: Path) -> str:
    """Return how a store gets its features files."""
    try:
        store = Store(path)
        done, n_shards = len(store.done_shards()), store.n_shards
    except InputError as error:
        return str(error)
    if done < n_shards:
        return f"it is unfinished ({done} of {n_shards} shards): the same predict command resumes it"
    return f"it is complete: lit-extract finalize {path} makes its features file"


def verify(files: Sequence[str], parity: int | None, seed: int, where: RebuildSettings) -> int:
    """Print a line for each features file, and return how many are wrong or can't be certified.

    Without ``parity``, no certificate is made; existing ones are read. A path that can't be checked is wrong too.

    Raises:
        InputError: There is nothing to check, or settings do not apply.
    """
    if parity is None:
        if pointless := [name for name, value in asdict(where).items() if value]:
            raise InputError(f"{', '.join(pointless)}: only for a certificate; also pass --parity, such as --parity 8")
    elif parity < 1:
        raise InputError(f"parity: {parity} stimuli; must be 1 or more")
    found, problems = features_files(files)
    if not found:
        raise InputError(f"files: {name_some([f'{path!r}: {reason}' for path, reason in problems.items()])}")
    for path, reason in problems.items():
        print(printable(f"{shorten(path, MAX_PATH_BYTES)}: NOT CHECKED: {reason}"), flush=True)
    n_wrong = len(problems)
    for file in found:
        is_sound, lines = _report(file, parity, seed, where)
        n_wrong += not is_sound
        print("\n".join(lines), flush=True)
    for folder in dict.fromkeys(file.parent for file in found):
        if problem := mixed_images(file for file in found if file.parent == folder):
            n_wrong += 1
            print(f"{shorten(str(folder), MAX_PATH_BYTES)}: WRONG: {shorten(problem, MAX_PATH_BYTES)}", flush=True)
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
