"""One writer at a time of a remote path, where no lock ends with its process: a lease, which has to be renewed.

The lease is an object next to the target. Only one process can create it, and that process writes it again and again. A
lease that was not renewed for a while may be taken by another run; one whose process is known to be dead, at once. So a
process that could not renew its lease (frozen, or without network) may have lost it. What keeps its rows out of
another's store then is ``Store.check_current``.
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
from lit_extract.storage.places.base import RemoteError, remote_errors

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

RENEWED_S = 20.0  # a lease is renewed so often
ALIVE_S = 60.0  # renewed since: its process lives
EXPIRED_S = 240.0  # not renewed since: another run may take it
SETTLED_S = 2.0  # two that take the same expired lease have both done so by then


class _Holder(TypedDict, total=False):
    """The process that holds a lease; all but the name is missing where that is not known."""

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
        target: What may be written, for the error.

    Raises:
        InputError: Another process holds it, the message names it; or it can't be written.
    """
    name = f"process {os.getpid()} on {socket.gethostname()}"
    content = json.dumps({"holder": name, "id": uuid.uuid4().hex, **_identify(os.getpid())}).encode()
    _take(path, target, content)
    ended = threading.Event()
    keeper = threading.Thread(target=_renew, args=(path, content, ended), name="lit-extract lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(RemoteError):  # then it expires
            if _read(path) == content:
                _remove(path)


def lease_holder(path: "UPath") -> str | None:
    """Return process and host that hold a lease; None when none does, or it has expired. Nothing is written.

    Without writing the server's clock is not known: the one of this machine may be off by some minutes.
    """
    try:
        if (content := _read(path)) is None or _is_dead(_parse(content)):
            return None
        age = (datetime.now(UTC) - _renewed(path)).total_seconds()
    except FileNotFoundError:
        return None
    except RemoteError as error:
        return f"unknown: {one_line(error)}"
    return _name(content) if age <= EXPIRED_S else None


def _take(path: "UPath", target: "UPath", content: bytes) -> None:
    is_waiting = False
    while not _create(path, content):
        if (found := _read(path)) is None:
            continue  # it has just been given back
        if (age := _age(path, found)) <= ALIVE_S:
            raise InputError(
                f"{str(target)!r} is being written by another run ({_name(found)}, last active {max(age, 0):.0f} s "
                "ago); wait for it, or stop it first. If it was killed, its lock expires in "
                f"{EXPIRED_S - age:.0f} s, or when you delete {str(path)!r}"
            )
        if age <= EXPIRED_S:
            if not is_waiting:
                logger.info("waiting for %s to expire: its run was last active %.0f s ago", path, age)
            is_waiting = True
            time.sleep(min(RENEWED_S, EXPIRED_S - age + 1))  # by then it was renewed, or nobody does it
            continue
        _remove(path)
        if _create(path, content):
            time.sleep(SETTLED_S)
            if _read(path) == content:
                return


def _renew(path: "UPath", content: bytes, ended: threading.Event) -> None:
    """Write the lease again and again, as long as it is ours."""
    while not ended.wait(RENEWED_S):
        with suppress(RemoteError):  # the next time, perhaps
            if _read(path) != content:
                logger.warning("%s is no longer ours; another run took this one for dead", path)
                return
            with remote_errors(path):
                path.fs.pipe_file(path.path, content)


def _create(path: "UPath", content: bytes) -> bool:
    """Create the object, unless it exists; on S3 with ``If-None-Match: *``."""
    with remote_errors(path):
        try:
            path.fs.pipe_file(path.path, content, mode="create")
        except FileExistsError:
            return False
    return True


def _read(path: "UPath") -> bytes | None:
    with remote_errors(path), suppress(FileNotFoundError):
        return bytes(path.fs.cat_file(path.path))
    return None


def _remove(path: "UPath") -> None:
    with remote_errors(path), suppress(FileNotFoundError, KeyError):
        path.fs.rm_file(path.path)


def _renewed(path: "UPath") -> datetime:
    with remote_errors(path):
        renewed: datetime = path.fs.modified(path.path)
    return renewed


def _age(path: "UPath", content: bytes) -> float:
    """Return the seconds since a lease was renewed, by the clock of the server alone; inf when its process is dead."""
    if _is_dead(_parse(content)):
        return float("inf")
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with remote_errors(probe):
        probe.fs.pipe_file(probe.path, b"what time is it?")
    try:
        return (_renewed(probe) - _renewed(path)).total_seconds()
    except FileNotFoundError:
        return float("inf")
    finally:
        _remove(probe)


def _parse(content: bytes) -> _Holder:
    """Return what a lease says; nothing if it is not one of ours, which counts as another's all the same."""
    with suppress(InputError):
        return validate_json(_HOLDER, content, "lease")
    return {}


def _name(content: bytes) -> str:
    """Return process and host that hold a lease, as it may be printed."""
    return shorten(_parse(content).get("holder", "unknown"), 200)


def _identify(process: int) -> dict[str, Any]:
    """Identify a process of this machine, now or later; ``started`` is None when it has ended."""
    started = None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # each container counts its processes on its own
    except OSError:
        return {}  # no Linux
    with suppress(OSError):
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        started = None if state in "ZX" else fields[18]  # in ticks since the machine started
    return {"machine": machine, "process": process, "started": started}


def _is_dead(holder: _Holder) -> bool:
    """Return whether the process of a lease was on this machine, and has ended."""
    now = _identify(holder.get("process", 0))
    return bool(now) and holder.get("machine") == now["machine"] and holder.get("started") != now["started"]
