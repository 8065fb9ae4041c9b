"""Which layers and poolings: pure functions of what was asked for and what the model has."""

from collections.abc import Sequence
from typing import Literal

from lit_extract.common.errors import InputError, name_some


def select_blocks(layers: Literal["blocks"] | list[int], n_blocks: int) -> list[int]:
    """Indices of the wanted blocks, from 0 to ``n_blocks`` - 1, in the order asked for.

    Args:
        layers: "blocks" for all, or indices; -1 is the last block.
        n_blocks: How many the model has.

    Raises:
        InputError: An index out of range, the same block twice, or none.
    """
    if layers == "blocks":
        return list(range(n_blocks))
    if outside := [k for k in layers if not -n_blocks <= k < n_blocks]:
        raise InputError(
            f"model.layers: {name_some([str(k) for k in outside])} out of range; the model has {n_blocks} blocks, "
            f"{-n_blocks} to {n_blocks - 1}"
        )
    chosen = [k % n_blocks for k in layers]
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"model.layers: {layers} must name at least one block, and none twice")
    return chosen


def check_pools(pool: str | Sequence[str], known: Sequence[str], allowed: Sequence[str], reason: str) -> list[str]:
    """The wanted poolings as a list.

    Args:
        pool: One, or several.
        known: All that there are.
        allowed: Those that the model can give.
        reason: Why it can't give the others.

    Raises:
        InputError: An unknown pooling, one that the model can't give, the same twice, or none.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    if not pools or len(set(pools)) < len(pools) or not set(pools) <= set(known):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if refused := [p for p in pools if p not in allowed]:
        what = name_some([repr(p) for p in refused])
        raise InputError(f"model.pool: {reason}, so it can't give {what}; allowed: {', '.join(allowed)}")
    return pools
