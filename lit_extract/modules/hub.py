"""Find the commit of a repository on the Hugging Face hub. No torch here."""

from collections.abc import Sequence
from pathlib import Path

from lit_extract.common.errors import InputError, one_line

COMMIT = "[0-9a-f]{40}"


def hub_commit(repository: str, revision: str | None, files: Sequence[str]) -> str:
    """Return the commit of a revision, from the hub, else from the local cache.

    The revision is a branch, tag or commit, by default the main branch. A cache with one of the ``files`` has the
    repository.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().model_info(repository, revision=revision, timeout=10).sha)
        except Exception as error:  # no network, gated, absent: the cache may still have it
            reason = f"{type(error).__name__}: {one_line(error)}"
    for name in files:
        try:
            cached = try_to_load_from_cache(repository, name, revision=revision)
        except HFValidationError as error:
            raise InputError(f"model.name: {repository!r} is not a valid name on the hub: {one_line(error)}") from None
        if isinstance(cached, str):
            return Path(cached).parent.name
    raise InputError(
        f"model.name: {repository!r} (revision {revision or 'main'}) can't be downloaded, and is not in the hub's "
        "cache; check the name; without a network, give --model.checkpoint; for a gated model, accept the conditions "
        f"on its page and log in with hf auth login ({reason})"
    )
