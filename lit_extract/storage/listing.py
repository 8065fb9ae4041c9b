"""All files below a folder, local or remote, with size and time: what a survey needs, at once."""

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_extract.common.errors import InputError
from lit_extract.storage.layout import FEATURES_SUFFIX, GROUP_KEY, STORE_SUFFIX
from lit_extract.storage.paths import AnyPath, remote_errors

if TYPE_CHECKING:
    from upath import UPath


class File(NamedTuple):
    """Size in bytes, and when it was written, in seconds since 1970."""

    n_bytes: int
    modified: float


def list_files(root: AnyPath, folders_like: tuple[str, ...]) -> tuple[dict[str, File], dict[AnyPath, str]]:
    """All files below a folder.

    Links are followed, in circles once. A remote folder takes one listing.

    Args:
        root: The folder.
        folders_like: Folders whose names end so are told too, as files of no bytes: they may be empty.

    Returns:
        The files by their path relative to ``root``, and what can't be read, with the reason: folders, and what is no
        file though it is called like features.

    Raises:
        RemoteError: A remote folder can't be reached.
    """
    return _local_files(root, folders_like) if isinstance(root, Path) else (_remote_files(root), {})


def _local_files(root: Path, folders_like: tuple[str, ...]) -> tuple[dict[str, File], dict[AnyPath, str]]:
    found: dict[str, File] = {}
    unreadable: dict[AnyPath, str] = {}
    seen: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            children = list(os.scandir(folder))
        except FileNotFoundError:  # a run has just removed it
            continue
        except OSError as error:
            unreadable[folder] = error.strerror or str(error)
            continue
        for child in children:
            try:
                stat = child.stat()
                if child.is_dir():
                    folders.append(Path(child))
                if child.is_file() or child.name.endswith(folders_like):
                    key = Path(child).relative_to(root).as_posix()
                    found[key] = File(stat.st_size if child.is_file() else 0, stat.st_mtime)
                elif child.name.endswith(FEATURES_SUFFIX) and not child.is_dir():
                    unreadable[Path(child)] = "it is a pipe, a device or a socket, not a regular file"
            except OSError as error:  # the same, or a link to nowhere or to itself
                if child.is_symlink() and child.name.endswith(FEATURES_SUFFIX):
                    unreadable[Path(child)] = f"it is a link that leads to no file ({error.strerror})"
    return found, unreadable


def _remote_files(root: "UPath") -> dict[str, File]:
    prefix = root.path.rstrip("/") + "/"
    with remote_errors(root):
        try:
            found = root.fs.find(prefix, detail=True)
        except FileNotFoundError:
            found = {}
    files = {}
    for name, info in found.items():
        written = info.get("LastModified") or info.get("mtime") or 0.0  # of S3, of others
        modified = written.timestamp() if isinstance(written, datetime) else float(written)
        files[name.removeprefix(prefix)] = File(int(info["size"]), modified)
    return files


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; a path that can't be, or can't be looked at, is none."""
    try:
        return path.is_dir()
    except OSError:  # a name of more than 255 bytes, no permission
        return False


def is_there(path: Path) -> bool:
    """Return whether there is anything; at a path that can't be, or can't be looked at, there is not."""
    try:
        return path.exists()
    except OSError:
        return False


def refuse_plain_folder(path: AnyPath, setting: str) -> None:
    """Refuse a folder that is no store, though there may be features in it.

    Raises:
        InputError: It is one; the message names the first of the features files or stores in it.
    """
    if not isinstance(path, Path) or not is_folder(path) or path.suffix == STORE_SUFFIX or is_there(path / GROUP_KEY):
        return
    wanted = (STORE_SUFFIX,) if setting == "store" else (FEATURES_SUFFIX, STORE_SUFFIX)
    inside = features_below(path, wanted)
    hint = f"give one of the {len(inside)} in it, such as {str(inside[0])!r}" if inside else "there are none in it"
    raise InputError(
        f"{setting}: {str(path)!r} is a folder, not {' or '.join(f'a {suffix}' for suffix in wanted)}; {hint}"
    )


def features_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Features files, stores or both below a local folder, in order, by their names; not those inside of stores."""
    found, _ = _local_files(folder, (STORE_SUFFIX,))
    paths = [Path(key) for key in found]
    return sorted(
        folder / path
        for path in paths
        if path.suffix in suffixes
        and not path.name.startswith(".")
        and not any(parent.suffix == STORE_SUFFIX for parent in path.parents)
    )
