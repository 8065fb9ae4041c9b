"""What storage does with files and folders, wherever they are.

A folder that counts only as a whole has a mark: the file that is written last and deleted first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from lit_extract.common.errors import InputError, one_line

if TYPE_CHECKING:
    from upath import UPath

    AnyPath: TypeAlias = Path | UPath
else:
    AnyPath = Path  # universal_pathlib is an extra

Endings: TypeAlias = tuple[str, ...]

LOCK_SUFFIX = ".lock"
PART_SUFFIX = ".part"  # of a local file or folder that is being made or removed
SMALL, LARGE = 2**20, 50 * 2**20  # bytes that are fetched at a time: for small records; for all of a file


class RemoteError(InputError, OSError):
    """A remote path can't be used: no network, no such bucket, no permission and so on."""


# Packages whose errors are no OSErrors.
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs"}


class _MissingError(RemoteError, FileNotFoundError):
    """A remote file or bucket does not exist."""


@contextmanager
def remote_errors(path: AnyPath) -> Iterator[None]:
    """Turn whatever goes wrong in reaching a remote path into a RemoteError.

    Raises:
        RemoteError: The path can't be used.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in _CLIENTS and not isinstance(error, OSError):
            raise
        kind = _MissingError if isinstance(error, FileNotFoundError) else RemoteError
        raise kind(f"can't use {str(path)!r}: {one_line(error)}") from error


class File(NamedTuple):
    """Size of a file in bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float


class Place(ABC):
    """A file or a folder.

    Each method raises an OSError when it can't do what it says; a remote place always raises a RemoteError, which is an
    InputError too. Keys are relative paths with "/".
    """

    path: AnyPath
    local: Path | None  # the path, for what only a disk of this machine has: free room, mapped memory
    appears_verified: bool  # whether `write_verified` verifies a file before others see it

    # a file

    @abstractmethod
    def exists(self) -> bool:
        """Return whether a file or a local folder exists."""

    @abstractmethod
    def open_to_read(self, at_a_time: int | None = SMALL) -> AbstractContextManager[BinaryIO]:
        """Open a regular file for reading bytes.

        Args:
            at_a_time: Bytes that are fetched at a time of a remote file: SMALL, LARGE, 0 for exactly what is read, or
                None for all of it at once, which must fit the memory.

        Raises:
            FileNotFoundError: It does not exist.
        """

    @abstractmethod
    def write_verified(self, write: Callable[[BinaryIO], None], verify: Callable[[AnyPath], None]) -> None:
        """Write a file front to back, and read it back; nothing of it stays when either fails.

        Args:
            write: Writes the content.
            verify: Reads the file at a path; raises an OSError when that is not what was written.
        """

    @abstractmethod
    def remove_file(self) -> None:
        """Delete a file, if it exists."""

    def drop_uploads(self) -> None:  # noqa: B027 (a disk has none)
        """Drop what killed runs had uploaded of a file, or of files below a folder."""

    # a folder

    @abstractmethod
    def children(self) -> list[AnyPath]:
        """Return what lies directly in a folder, in any order; nothing if there is no folder."""

    @abstractmethod
    def list_files(self, folders_like: Endings, files_like: Endings = ()) -> tuple[dict[str, File], dict[AnyPath, str]]:
        """Return all files below a folder.

        Args:
            folders_like: Folders whose names end so are returned too, as files of no bytes: they may be empty.
            files_like: What is called so and is no file is returned as something that can't be read.

        Returns:
            The files by their keys, and the files and folders that can't be read, with the reason.

        Raises:
            NotADirectoryError: There is no folder.
        """

    @abstractmethod
    def read_files(self, keys: Sequence[str], limit: int, without_damaged: bool = False) -> dict[str, bytes]:
        """Return the content of small files by their keys, without those that do not exist.

        Args:
            keys: Which files.
            limit: Bytes that a local one may have at most.
            without_damaged: Leave out those that the disk can't read, that are larger, and what is no regular file.

        Raises:
            OSError: One can't be read.
        """

    @abstractmethod
    def write_file(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file: it appears when it is complete, in the place of what is there.

        Args:
            key: Where.
            pieces: Its content, each written before the next is asked for.

        Raises:
            OSError: It can't be written, or a link leads out of the folder.
        """

    @abstractmethod
    def file_sizes(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Return the bytes of each of these files that exists; of a remote folder also those of others."""

    @abstractmethod
    def set_aside(self, key: str) -> None:
        """Rename a damaged file, if it exists: ".corrupt" is appended to its name."""

    # a folder with a mark

    @abstractmethod
    def is_whole(self, mark: str) -> bool:
        """Return whether there is such a folder, not one that is being made or removed."""

    @abstractmethod
    def remains(self) -> bool:
        """Return whether there is such a folder, or part of one that was being made or removed."""

    @abstractmethod
    def create_folder(self, files: Mapping[str, bytes], mark: str, content: bytes) -> None:
        """Make such a folder of files by their keys, and then the mark with its content.

        Raises:
            OSError: There is one.
        """

    @abstractmethod
    def remove_folder(self, mark: str) -> None:
        """Delete such a folder, or what is left of it."""

    # one writer

    @abstractmethod
    def write_lock(self) -> AbstractContextManager[None]:
        """Hold the right to write this path; it ends with the process, or soon after if it is remote.

        Raises:
            InputError: Another process holds it; the message names it. Or the file system has no locks.
        """

    @abstractmethod
    def lock_holder(self) -> str | None:
        """Return process and host that hold the lock, without taking it; None when none does, or it can't be known.

        Not for the process that holds it: a POSIX record lock goes when its process closes the file, any time it does.
        """
