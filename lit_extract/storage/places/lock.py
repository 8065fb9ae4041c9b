"""Allow one writer at a time for a path of this machine."""

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_extract.common.errors import InputError
from lit_extract.common.host import describe_process
from lit_extract.common.untrusted import open_own, shorten
from lit_extract.storage.places.base import LOCK_SUFFIX

NO_LOCKS = "LIT_EXTRACT_NO_LOCKS"  # environment variable: 1 to run without locks if the file system has none
_TAKEN = (errno.EACCES, errno.EAGAIN)  # all other errors are about the file system
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of Linux: type, whence, start, length, process


@contextmanager
def record_lock(target: Path) -> Iterator[None]:
    """Hold a lock that belongs to this process alone.

    This is a POSIX record lock, not the flock of the usual lock-file packages: data-loading workers inherit a flock,
    outlive a killed parent by seconds, and would keep the next run out.
    """
    path = _lock_file(target)
    descriptor = _lock(path, target)
    if descriptor is None:
        yield
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, describe_process().encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, target: Path) -> int | None:
    """Return the descriptor of the locked file; None if there are no locks and the user chose to run without."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise InputError(f"can't write {str(target)!r}: {error}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.ESTALE:  # another machine has just removed the file, as its last holder
                os.close(descriptor)
                continue
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise InputError(
                    f"{str(target)!r} is being written by another run ({holder}); wait for it, or stop it first"
                ) from None
            path.unlink(missing_ok=True)
            if os.environ.get(NO_LOCKS) == "1":
                return None
            raise InputError(
                f"can't lock {str(path)!r}: {error.strerror}; its file system has no locks (like NFS without lockd, "
                f"Lustre without -o flock). Choose an --output_dir elsewhere, or set {NO_LOCKS}=1 and make sure "
                "that no two runs write the same features"
            ) from None
        with suppress(FileNotFoundError):
            # taking the lock gets the file's state from the server; stat of the path may come from a cache
            if (found := os.fstat(descriptor)).st_nlink and os.path.samestat(path.stat(), found):
                return descriptor
        os.close(descriptor)  # its last holder has just removed the file


def record_lock_holder(target: Path) -> str | None:
    """Return the process and host that hold the lock on a path; see :meth:`Place.lock_holder`."""
    try:
        descriptor = open_own(_lock_file(target), os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unknown: {error.strerror}"
    try:
        if sys.platform != "linux":
            return None  # other systems have another struct flock
        asked = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return None if _FLOCK.unpack(asked)[0] == fcntl.F_UNLCK else _holder(descriptor)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)


def _lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}{LOCK_SUFFIX}")


def _holder(descriptor: int) -> str:
    """Return the holder's description from the lock file, in printable form."""
    return shorten(os.pread(descriptor, 1000, 0).decode(errors="replace") or "unknown", 200)
