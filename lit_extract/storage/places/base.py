"""What storage does with files and folders, wherever they are."""

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
SMALL, LARGE = 2**20, 50 * 2**20  # bytes that are fetched at a time: for small records; for all of a file

# Packages whose errors are no OSErrors.
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs"}


class RemoteError(InputError, OSError):
    """A remote path can't be used: no network, no such bucket, no permission and so on."""


class _MissingError(RemoteError, FileNotFoundError):
    """A remote file or bucket does not exist."""


@contextmanager
def remote_errors(path: AnyPath) -> Iterator[None]:
    """Turn whatever goes wrong in reaching a remote path into a RemoteError."""
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

    All methods raise an OSError for what can't be read or written; of a remote path it is a RemoteError.
    """

    local: Path | None  # the path, for what only a disk of this machine has: free room, mapped memory
    appears_verified: bool  # whether `write_verified` verifies a file before others see it

    def exists(self) -> bool:
        """Return whether a file exists."""

    def open_to_read(self, at_a_time: int | None = SMALL) -> AbstractContextManager[BinaryIO]:
        """Open a regular file for reading bytes.

        Of a remote file ``at_a_time`` bytes are fetched at a time: SMALL, LARGE, 0 for exactly what is read, or None
        for all of it at once, which must fit the memory.
        """

    def write_verified(self, write: Callable[[BinaryIO], None], verify: Callable[[AnyPath], None]) -> None:
        """Write a file front to back, and read it back: ``verify`` raises an OSError when it is not what was written.

        Nothing of the file stays when either fails.
        """

    def remove_file(self) -> None:
        """Delete a file, if it exists."""

    def drop_uploads(self) -> None:
        """Drop what killed runs have uploaded of a file, or of files below a folder."""

    def children(self) -> list[AnyPath]:
        """Return what lies directly in a folder, in any order; nothing if there is no folder."""

    def list_files(self, folders_like: Endings, files_like: Endings = ()) -> Listing:
        """Return all files below a folder, and the files and folders that can't be read, with the reason.

        Folders whose names end as ``folders_like`` are files of no bytes here: they may be empty. What ends as
        ``files_like`` and is no file is returned as something that can't be read. No folder: NotADirectoryError.
        """

    def read_files(self, keys: Sequence[str], limit: int, without_damaged: bool = False) -> dict[str, bytes]:
        """Return the content of small files, without those that do not exist.

        A local one may have ``limit`` bytes. ``without_damaged`` also leaves out those that the disk can't read, that
        are larger, and what is no regular file.
        """

    def write_file(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file, which appears when it is complete; each piece is written before the next is asked for."""

    def file_sizes(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Return the bytes of each of these files that exists; of a remote folder also those of others."""

    def set_aside(self, key: str) -> None:
        """Append ".corrupt" to the name of a damaged file, if it exists."""

    def is_whole(self, mark: str) -> bool:
        """Return whether there is a folder with this mark, not one that is being made or removed."""

    def remains(self) -> bool:
        """Return whether there is a folder, or part of one that was being made or removed."""

    def create_folder(self, files: Mapping[str, bytes], mark: str, content: bytes) -> None:
        """Make a folder of files and a mark with its content, unless there is one."""

    def remove_folder(self, mark: str) -> None:
        """Delete a folder, or what is left of it."""

    def write_lock(self) -> AbstractContextManager[None]:
        """Hold the right to write this path; it ends with the process, or soon after if it is remote.

        An InputError names the process that holds it already. A file system without locks is one, too.
        """

    def lock_holder(self) -> str | None:
        """Return process and host that hold the lock, without taking it; None when none does, or it can't be known.

        Not for the process that holds it: a POSIX record lock goes when its process closes the file, any time it does.
        """
