"""Check that all machines of a run write to the same folder, before anything is computed."""

import socket
import time
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Trainer

from lit_extract.common.errors import InputError, NothingLeft, name_some
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.store import Store

SECONDS_TO_APPEAR = 60.0  # for changes by other machines; NFS may answer from its cache as long


def check_shared(trainer: Trainer, path: AnyPath) -> None:
    """Check that every machine sees the store that rank zero has opened; call it in all ranks.

    Raises:
        InputError: In rank zero, if a machine does not see it.
        NothingLeft: In all other ranks, because rank zero reports it.
    """
    local = place_of(path).local
    if trainer.num_nodes == 1 or local is None:
        return
    store_id = trainer.strategy.broadcast(Store(path).layout.id if trainer.is_global_zero else None)
    is_blind = trainer.local_rank == 0 and not trainer.is_global_zero and not _sees(local, store_id)
    answers: list[str | None] = [None] * trainer.world_size
    dist.all_gather_object(answers, socket.gethostname() if is_blind else None)
    blind = [host for host in answers if host is not None]
    if blind and trainer.is_global_zero:
        raise InputError(
            f"output_dir: {str(local.parent)!r} on {socket.gethostname()} is another folder on {name_some(blind)}. "
            "Several machines need a shared folder: choose another --output_dir"
        )
    if blind:
        raise NothingLeft


def wait_for_shards(trainer: Trainer, store: Store) -> None:
    """Wait in rank zero until it sees the shards of other machines; a file system may answer from its cache."""
    end = time.monotonic() + SECONDS_TO_APPEAR
    while trainer.num_nodes > 1 and store.missing_rows() and time.monotonic() < end:
        time.sleep(1)


def _sees(store: Path, store_id: str | None) -> bool:
    """Return whether a store is the one that rank zero has opened.

    A missing folder is created and removed again, which asks the server of a network file system; a plain check may be
    answered from a stale cache.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(store.parents), store):
            if not folder.exists():
                with suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
    except OSError:
        return False
    finally:
        for folder in reversed(made):
            folder.rmdir()
    end = time.monotonic() + SECONDS_TO_APPEAR
    while not made:
        with suppress(InputError):
            if Store(store).layout.id == store_id:
                return True
        if time.monotonic() > end:
            break
        time.sleep(1)
    return False
