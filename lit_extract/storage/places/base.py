"""The interface by which storage uses files and folders, local or remote."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, TypeAlias

from lit_extract.common.errors import InputError, one_line

if TYPE_CHECKING:
    from upath import UPath

    AnyPath: TypeAlias = Path | UPath
else:
    AnyPath = Path  # universal_pathlib is an extra

LOCK_SUFFIX = ".lock"
PART_SUFFIX = ".part"  # of a local file or folder that is being made or removed
SMALL, LARGE = 2**20, 50 * 2**20  # bytes fetched at a time: for small records; for a whole file

# Packages whose errors are not OSErrors.
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs"}


class RemoteError(InputError, OSError):
    """A remote path can't be used: no network, no such bucket, no permission and so on."""


class _MissingError(RemoteError, FileNotFoundError):
    """A remote file or bucket does not exist."""


@contextmanager
def remote_errors(path: AnyPath) -> Iterator[None]:
    """Turn any failure to reach a remote path into a RemoteError."""
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


Listing: TypeAlias = tuple[dict[str, File], dict[AnyPath, str]]
Endings: TypeAlias = tuple[str, ...]


class Place(Protocol):
    """A file or a folder. Keys are paths of files below a folder, with "/".

    A folder that counts only as a whole has a mark: the file that is written last and deleted first.

    All methods raise OSError for what can't be read or written; for a remote path, this is a RemoteError.
    """

    local: Path | None  # the path, for what only a local disk offers: free space, mapped memory
    appears_verified: bool  # whether `write_verified` verifies a file before others see it

    def exists(self) -> bool:
        """Return whether a file exists."""

    def open_to_read(self, at_a_time: int | None = SMALL) -> AbstractContextManager[BinaryIO]:
        """Open a regular file for reading bytes.

        For a remote file, ``at_a_time`` is the number of bytes fetched at a time: SMALL, LARGE, 0 for exactly the bytes
        that are read, or None for the whole file at once, which must fit into memory.
        """

    def write_verified(self, write: Callable[[BinaryIO], None], verify: Callable[[AnyPath], None]) -> None:
        """Write a file front to back, and read it back; ``verify`` raises OSError if it is not what was written.

        If either fails, nothing of the file remains.
        """

    def remove_file(self) -> None:
        """Delete a file, if it exists."""

    def drop_uploads(self) -> None:
        """Delete unfinished uploads of killed runs, of a file or of files below a folder."""

    def children(self) -> list[AnyPath]:
        """Return the files and folders directly in a folder, in any order; none if there is no folder."""

    def list_files(self, folders_like: Endings, files_like: Endings = ()) -> Listing:
        """Return all files below a folder, and the files and folders that can't be read, with the reason.

        Folders whose names end in one of ``folders_like`` are listed as files of 0 bytes, as they may be empty. A name
        that ends in one of ``files_like`` and is not a file is returned as one that can't be read. If there is no
        folder, NotADirectoryError is raised.
        """

    def read_files(self, keys: Sequence[str], limit: int, without_damaged: bool = False) -> dict[str, bytes]:
        """Return the content of the small files that exist.

        A local file may have ``limit`` bytes. ``without_damaged`` also leaves out files that the disk can't read, that
        are larger, or that are not regular files.
        """

    def write_file(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file, which appears only when it is complete; each piece is written before the next is requested."""

    def file_sizes(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Return the bytes of each of these files that exists; for a remote folder, other files are included."""

    def set_aside(self, key: str) -> None:
        """Append ".corrupt" to the name of a damaged file, if it exists."""

    def is_whole(self, mark: str) -> bool:
        """Return whether a folder with this mark exists; one that is being made or removed does not count."""

    def remains(self) -> bool:
        """Return whether a folder exists, or a part of one that was being made or removed."""

    def create_folder(self, files: Mapping[str, bytes], mark: str, content: bytes) -> None:
        """Create a folder with files, and with a mark that has ``content``; fail if the folder exists."""

    def remove_folder(self, mark: str) -> None:
        """Delete a folder, or its remains."""

    def write_lock(self) -> AbstractContextManager[None]:
        """Hold the right to write this path; it ends with the process, or soon after it if the path is remote.

        An InputError names the process that holds the right already; it is also raised if a file system has no locks.
        """

    def lock_holder(self) -> str | None:
        """Return process and host that hold the lock, without taking it; None if none holds it, or it is not known.

        The process that holds the lock must not call this: it loses a POSIX record lock whenever it closes the file.
        """
