"""One writer at a time of a remote path, where no lock ends with its process: a lease, which has to be renewed.

The lease is an object beside the target, which only one process can create, and which it then writes again and
again. A lease that was not renewed for a while is another's to take; one whose process is known to be dead, at once. So
a process that could not renew its lease (frozen, or without network) may have lost it. What keeps it from mixing its
rows into another's store is ``Store.check_current``.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import Text, shorten, validate_json
from lit_extract.storage.paths import RemoteError, read_files, remote_errors, remove_file

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

RENEWED_S = 20.0  # a lease is renewed so often
ALIVE_S = 60.0  # renewed since: its process lives
EXPIRED_S = 240.0  # not renewed since: it is another's to take
MAX_LEASE_BYTES = 10_000
SETTLED_S = 2.0  # two that take the same expired lease have both done so by then


class _Holder(TypedDict, total=False):
    """What a lease says of the process that holds it."""

    holder: Text
    machine: str
    process: int
    started: str | None


_HOLDER: TypeAdapter[_Holder] = TypeAdapter(_Holder)


@contextmanager
def lease(path: "UPath", target: "UPath") -> Iterator[None]:
    """Hold the right to write a remote target.

    Args:
        path: The object that stands for it.
        target: What it is about, for the error.

    Raises:
        InputError: Another process holds it, the message says which; or there is no writing there.
    """
    content = json.dumps(
        {"holder": f"process {os.getpid()} on {socket.gethostname()}", "id": uuid.uuid4().hex, **_me()}
    )
    _take(path, target, content.encode())
    ended = threading.Event()
    keeper = threading.Thread(
        target=_renew, args=(path, content.encode(), ended), name="lit-extract lease", daemon=True
    )
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(RemoteError):  # then it expires
            if _read(path) == content.encode():
                remove_file(path)


def lease_holder(path: "UPath") -> str | None:
    """Which process and host hold a lease; None when none does, or it has expired. Nothing is written.

    Without writing the server's clock is not known: the one of this machine may be off by some minutes.
    """
    try:
        if (content := _read(path)) is None or _is_dead(_fields(content)):
            return None
        with remote_errors(path):
            renewed = path.fs.modified(path.path)
    except FileNotFoundError:
        return None
    except RemoteError as error:
        return f"unknown: {one_line(error)}"
    age = (datetime.now(UTC) - renewed).total_seconds()
    return _holder(content) if age <= EXPIRED_S else None


def _take(path: "UPath", target: "UPath", content: bytes) -> None:
    is_waiting = False
    while not _create(path, content):
        if (found := _read(path)) is None:
            continue  # it has just been given back
        if (age := _age(path, found)) <= ALIVE_S:
            raise InputError(
                f"{str(target)!r} is being written by another run ({_holder(found)}, heard of {max(age, 0):.0f} s "
                "ago); wait for it, or stop it first. If it was killed, its lock expires in "
                f"{EXPIRED_S - age:.0f} s, or when you delete {str(path)!r}"
            )
        if age <= EXPIRED_S:
            if not is_waiting:
                logger.info("waiting for %s to expire: its run was last active %.0f s ago", path, age)
            is_waiting = True
            time.sleep(min(RENEWED_S, EXPIRED_S - age + 1))  # by then it was renewed, or nobody does it
            continue
        remove_file(path)
        if _create(path, content):
            time.sleep(SETTLED_S)
            if _read(path) == content:
                return


def _create(path: "UPath", content: bytes) -> bool:
    """Create the object, unless it is there; on S3 with ``If-None-Match: *``."""
    with remote_errors(path):
        try:
            path.fs.pipe_file(path.path, content, mode="create")
        except FileExistsError:
            return False
    return True


def _renew(path: "UPath", content: bytes, ended: threading.Event) -> None:
    """Write the lease again and again, as long as it is ours."""
    while not ended.wait(RENEWED_S):
        with suppress(RemoteError):  # the next time, perhaps
            if _read(path) != content:
                logger.warning("%s is no longer ours; another run took this one for dead", path)
                return
            with remote_errors(path):
                path.fs.pipe_file(path.path, content)


def _read(path: "UPath") -> bytes | None:
    return read_files(path.parent, [path.name], MAX_LEASE_BYTES).get(path.name)


def _fields(content: bytes) -> _Holder:
    """What a lease says; nothing if it is not one of ours, which counts as another's all the same."""
    with suppress(InputError):
        return validate_json(_HOLDER, content, "lease")
    return {}


def _holder(content: bytes) -> str:
    """Return which process and host hold a lease, as it may be printed."""
    return shorten(_fields(content).get("holder", "unknown"), 200)


def _age(path: "UPath", content: bytes) -> float:
    """Seconds since a lease was renewed, by the clock of the server alone; endless when its process is dead."""
    if _is_dead(_fields(content)):
        return float("inf")
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with remote_errors(path):
        path.fs.pipe_file(probe.path, b"what time is it?")
        try:
            now = path.fs.modified(probe.path)
        finally:
            remove_file(probe)
        try:
            return float((now - path.fs.modified(path.path)).total_seconds())
        except FileNotFoundError:
            return float("inf")


def _me() -> dict[str, Any]:
    """This process, so that another on the same machine can tell whether it lives."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # containers count their processes on their own
        return {"machine": machine, "process": os.getpid(), "started": _started(os.getpid())}
    return {}


def _is_dead(holder: _Holder) -> bool:
    """Whether the process of a lease was on this machine, and is no more."""
    me = _me()
    if not me or holder.get("machine") != me["machine"]:
        return False
    return _started(holder.get("process", 0)) != holder.get("started")


def _started(process: int) -> str | None:
    """When a process started, in ticks since the machine did; None when it has ended."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        return None if state in "ZX" else fields[18]
    return None
