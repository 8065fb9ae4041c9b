"""Files and folders of this machine, with pathlib."""

# ruff: noqa: D102 (base.py describes each method)

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lit_extract.common.errors import InputError
from lit_extract.common.files import replacing
from lit_extract.common.untrusted import open_regular, read_regular
from lit_extract.storage.places.base import PART_SUFFIX, SMALL, AnyPath, Endings, File, Listing
from lit_extract.storage.places.lock import record_lock, record_lock_holder

# Errors of a disk that can't read a file, or of something else in its place; other errors do not concern the file.
DAMAGE = {errno.EIO, errno.EBADMSG, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; False for a path that is impossible or can't be accessed."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises for a name of more than 255 bytes)


def is_there(path: Path) -> bool:
    """Return whether anything exists at a path; False for a path that is impossible or can't be accessed."""
    return os.path.exists(path)  # noqa: PTH110 (as above)


_SILLY = ".nfs"  # prefix of a removed file that is still open, on NFS


class LocalPlace:
    """A file or folder of this machine."""

    appears_verified = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.local: Path | None = path
        self._part = path.with_name(path.name + PART_SUFFIX) if path.name else path

    def exists(self) -> bool:
        return is_there(self.path)

    @contextmanager
    def open_to_read(self, at_a_time: int | None = SMALL) -> Iterator[BinaryIO]:
        with open_regular(self.path) as file:
            yield file

    def write_verified(self, write: Callable[[BinaryIO], None], verify: Callable[[AnyPath], None]) -> None:
        """Write a part, verify it while it is flushed to the disk, then rename it."""
        part = self.path.with_name(f".{self.path.name}{PART_SUFFIX}")
        part.unlink(missing_ok=True)  # of a killed run; a link would be written through
        try:
            with part.open("wb") as out, ThreadPoolExecutor(1, "lit-extract sync") as thread:
                write(out)
                out.flush()
                on_disk = thread.submit(os.fsync, out.fileno())
                verify(part)
                on_disk.result()
            part.replace(self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def remove_file(self) -> None:
        self.path.unlink(missing_ok=True)

    def drop_uploads(self) -> None:
        """Do nothing: there are none."""

    def children(self) -> list[AnyPath]:
        try:
            return list(self.path.iterdir()) if is_folder(self.path) else []
        except OSError as error:
            raise InputError(f"can't list {str(self.path)!r}: {error.strerror}") from None

    def list_files(self, folders_like: Endings, files_like: Endings = ()) -> Listing:
        """Return all files below a folder; links are followed, circular ones once."""
        if not is_folder(self.path):
            raise NotADirectoryError(f"{str(self.path)!r} is not a folder")
        found: dict[str, File] = {}
        unreadable: dict[AnyPath, str] = {}
        seen: set[tuple[int, int]] = set()
        folders = [self.path]
        while folders:  # os.walk recurses, and a folder may be too deep for that
            folder = folders.pop()
            try:
                about = folder.stat()
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
                children = list(os.scandir(folder))
            except FileNotFoundError:  # a run has just removed it
                continue
            except OSError as error:
                unreadable[folder] = error.strerror or str(error)
                continue
            for child in children:
                path = Path(child)
                try:
                    about = child.stat()
                except OSError as error:  # removed a moment ago, or a link to nowhere or to itself
                    if child.is_symlink() and child.name.endswith(files_like):
                        unreadable[path] = f"it is a link that leads to no file ({error.strerror})"
                    continue
                is_file, is_dir = stat.S_ISREG(about.st_mode), stat.S_ISDIR(about.st_mode)
                if is_dir:
                    folders.append(path)
                if is_file or child.name.endswith(folders_like):
                    found[path.relative_to(self.path).as_posix()] = File(about.st_size * is_file, about.st_mtime)
                elif child.name.endswith(files_like) and not is_dir:
                    unreadable[path] = "it is a pipe, a device or a socket, not a regular file"
        return found, unreadable

    def read_files(self, keys: Sequence[str], limit: int, without_damaged: bool = False) -> dict[str, bytes]:
        found = {}
        for key in keys:
            try:
                found[key] = read_regular(self.path / key, limit)
            except OSError as error:
                is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
                if not is_missing and not (without_damaged and error.errno in DAMAGE):
                    raise
        return found

    def write_file(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        file = self.path / key
        self._refuse_way_out(file)
        with replacing(file) as partial, partial.open("xb") as out:
            out.writelines(pieces)

    def _refuse_way_out(self, file: Path) -> None:
        """Raise OSError for a file that a link puts outside this folder."""
        if not file.parent.resolve().is_relative_to(self.path.resolve()):
            raise OSError(errno.ELOOP, f"a link leads out of {str(self.path)!r}", str(file))

    def file_sizes(self, keys: Iterable[str]) -> Mapping[str, int]:
        sizes = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                found = os.stat(self.path / key)  # noqa: PTH116 (half the time of Path.stat, for each shard)
                if stat.S_ISREG(found.st_mode):
                    sizes[key] = found.st_size
        return sizes

    def set_aside(self, key: str) -> None:
        file = self.path / key
        if file.exists():
            self._refuse_way_out(file)
            file.replace(file.with_name(f"{file.name}.corrupt"))

    # A folder is made under another name and then renamed, and renamed before it is deleted, so it needs no mark.

    def is_whole(self, mark: str) -> bool:
        return is_there(self.path)

    def remains(self) -> bool:
        return is_there(self.path) or is_there(self._part)

    def create_folder(self, files: Mapping[str, bytes], mark: str, content: bytes) -> None:
        _clear(self._part)
        for key, each in {**files, mark: content}.items():
            LocalPlace(self._part).write_file(key, [each])
        self._part.rename(self.path)

    def remove_folder(self, mark: str) -> None:
        _clear(self._part)
        if self.path.exists():
            self.path.rename(self._part)
            _clear(self._part)

    def write_lock(self) -> AbstractContextManager[None]:
        return record_lock(self.path)

    def lock_holder(self) -> str | None:
        return record_lock_holder(self.path)


def _clear(path: Path) -> None:
    """Delete a file or folder; for a link, only the link.

    If another process of this machine has a file open, NFS keeps it under another name, and with it the folder, until
    that process is done; the next run deletes both.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        left = [file.name for file in path.rglob("*") if not file.is_dir()]
        if not left or not all(name.startswith(_SILLY) for name in left):
            with suppress(FileNotFoundError):
                shutil.rmtree(path)  # raises what keeps it
    else:
        path.unlink(missing_ok=True)
