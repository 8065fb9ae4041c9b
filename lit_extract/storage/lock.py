"""One writer at a time."""

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import open_own, shorten
from lit_extract.storage.lease import lease, lease_holder
from lit_extract.storage.paths import AnyPath

if TYPE_CHECKING:
    from upath import UPath

LOCK_SUFFIX = ".lock"
NO_LOCKS = "LIT_EXTRACT_NO_LOCKS"  # environment variable: 1 goes without where a file system has no locks
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)  # all other errors are of the file system

_P = TypeVar("_P", Path, "UPath")


def write_lock(target: AnyPath) -> AbstractContextManager[None]:
    """Hold the right to write ``target``; it ends with the process, however that ends, or soon after if it is remote.

    Raises:
        InputError: Another process holds it, the message says which; there are no locks, or there is no writing there.
    """
    return _record_lock(target) if isinstance(target, Path) else lease(_lock_file(target), target)


@contextmanager
def _record_lock(target: Path) -> Iterator[None]:
    """A lock that is the process's own.

    A POSIX record lock, not the flock of the usual lock-file packages: that one is inherited by
    data-loading workers, which outlive a killed parent by seconds and would keep the next run out.
    """
    path, goes_without = _lock_file(target), False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise InputError(f"can't write {str(target)!r}: {error}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                if goes_without := os.environ.get(NO_LOCKS) == "1":
                    break
                raise InputError(
                    f"can't lock {str(path)!r}: {error.strerror}; its file system has no locks (as NFS without lockd, "
                    f"Lustre without -o flock). Choose an --output_dir on another one, or set {NO_LOCKS}=1 and see "
                    "yourself that no two runs write the same features"
                ) from None
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{str(target)!r} is being written by another run ({holder}); wait for it, or stop it first"
            ) from None
        if _is_current(path, descriptor):
            break
        os.close(descriptor)  # its last holder has just removed the file
    if goes_without:
        yield
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_holder(target: AnyPath) -> str | None:
    """Which process and host hold the lock on ``target``, without taking it; None when none does, or nobody knows.

    Not for the process that holds it: a POSIX record lock goes when its process closes the file, any time it does.
    """
    if not isinstance(target, Path):
        return lease_holder(_lock_file(target))
    try:
        descriptor = open_own(_lock_file(target), os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unknown: {error.strerror}"
    try:
        if sys.platform != "linux":
            return None  # other systems lay out what is asked in another way
        asked = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if _FLOCK.unpack(asked)[0] == fcntl.F_UNLCK:
            return None
        return _holder(descriptor)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)


_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of Linux: type, whence, start, length, process


def _lock_file(target: _P) -> _P:
    return target.with_name(f".{target.name}{LOCK_SUFFIX}")


def _holder(descriptor: int) -> str:
    """What the holder has written into a lock's file, as it may be printed."""
    return shorten(os.pread(descriptor, 1000, 0).decode(errors="replace") or "unknown", 200)


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
