"""Allow one writer of a remote path at a time by a lease, which must be renewed: no remote lock ends with its process.

The lease is an object next to the target. Only one process can create it, and that process rewrites it regularly. A
lease that was not renewed for a while may be taken by another run. So a process that could not renew its lease (frozen,
or without network) may have lost it; ``Store.check_current`` then keeps it from writing into another run's store.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.host import describe_process
from lit_extract.common.untrusted import Text, shorten, validate_json
from lit_extract.storage.places.base import RemoteError, remote_errors

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

RENEWED_S = 15.0  # seconds between renewals
ALIVE_S = 45.0  # if renewed within this time, its process is alive
EXPIRED_S = 120.0  # if not renewed within this time, another run may take it
SETTLED_S = 2.0  # after this time, all runs that try to take the same expired lease have done so


class _Holder(TypedDict):
    holder: Text


_HOLDER: TypeAdapter[_Holder] = TypeAdapter(_Holder)


class Lease:
    """The right to write a remote target, represented by the object at ``path``."""

    def __init__(self, path: "UPath", target: "UPath") -> None:
        self.path, self.target = path, target
        self._key, self._files = path.path, path.fs

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the lease, and renew it until the block ends; see :meth:`Place.write_lock`."""
        content = json.dumps({"holder": describe_process(), "id": uuid.uuid4().hex}).encode()
        with remote_errors(self.path):
            self._take(content)
        ended = threading.Event()
        keeper = threading.Thread(target=self._renew, args=(content, ended), name="lit-extract lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            with suppress(RemoteError), remote_errors(self.path):  # else it expires
                if self._read() == content:
                    self._remove(self._key)

    def holder(self) -> str | None:
        """Return process and host that hold the lease; None if none does, or it has expired. Nothing is written.

        Without writing, the server's clock is not known, and the clock of this machine may be off by some minutes.
        """
        try:
            with remote_errors(self.path):
                if (content := self._read()) is None:
                    return None
                age = (datetime.now(UTC) - self._files.modified(self._key)).total_seconds()
        except FileNotFoundError:
            return None
        except RemoteError as error:
            return f"unknown: {one_line(error)}"
        return _name(content) if age <= EXPIRED_S else None

    def _take(self, content: bytes) -> None:
        while not self._create(content):
            if (found := self._read()) is None:
                continue  # it has just been released
            if (age := self._age()) <= ALIVE_S:
                raise InputError(
                    f"{str(self.target)!r} is being written by another run ({_name(found)}, last active "
                    f"{max(age, 0):.0f} s ago); wait for it, or stop it first. If it was killed, its lock expires in "
                    f"{EXPIRED_S - age:.0f} s, or when you delete {str(self.path)!r}"
                )
            if age <= EXPIRED_S:
                logger.info("waiting for %s to expire: its run was last active %.0f s ago", self.path, age)
                time.sleep(min(RENEWED_S, EXPIRED_S - age + 1))  # by then it is renewed, or nobody renews it
                continue
            self._remove(self._key)
            if self._create(content):
                time.sleep(SETTLED_S)
                if self._read() == content:
                    return

    def _renew(self, content: bytes, ended: threading.Event) -> None:
        """Renew the lease as long as it is ours."""
        while not ended.wait(RENEWED_S):
            with suppress(RemoteError), remote_errors(self.path):  # else perhaps next time
                if self._read() != content:
                    logger.warning("%s no longer belongs to this run; another run took this one for dead", self.path)
                    return
                self._files.pipe_file(self._key, content)

    def _create(self, content: bytes) -> bool:
        """Create the object, unless it exists; on S3 with ``If-None-Match: *``."""
        try:
            self._files.pipe_file(self._key, content, mode="create")
        except FileExistsError:
            return False
        return True

    def _read(self) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self._files.cat_file(self._key))
        return None

    def _remove(self, key: str) -> None:
        with suppress(FileNotFoundError, KeyError):
            self._files.rm_file(key)

    def _age(self) -> float:
        """Return the seconds since the lease was renewed, by the server's clock alone; inf if it is gone."""
        probe = f"{self._key}.{uuid.uuid4().hex}"
        self._files.pipe_file(probe, b"what time is it?")
        try:
            return float((self._files.modified(probe) - self._files.modified(self._key)).total_seconds())
        except FileNotFoundError:
            return float("inf")
        finally:
            self._remove(probe)


def _name(content: bytes) -> str:
    """Return process and host that hold a lease, in printable form; "unknown" if its content is not ours."""
    with suppress(InputError):
        return shorten(validate_json(_HOLDER, content, "lease")["holder"], 200)
    return "unknown"
