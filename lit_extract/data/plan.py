"""Which rows go together, and who computes them: pure functions of integers.

Rows are cut into shards of a fixed number of rows, shards into batches that never cross a shard. A
batch is made of the same rows whichever rank computes it and however often the run was
interrupted, so its numbers are the same bits.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, takewhile
from types import MappingProxyType

SHARD_BYTES = 128 * 2**20
# A small model's 128 MB would be 14,000 rows: too few shards to share among ranks, too much to lose.
SHARD_ROWS_AT_MOST = 2048
# Tokens a batch. The activations of more fill the caches of a CPU: 8192 tokens take 1.0 to 1.5 times as long for each.
# On a GPU more take more memory and hardly less time.
TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 16384
# Tokens of padding a batch ends before it has: then another batch costs less than the padding does. Without a limit,
# an eighth of all tokens of generated captions would be padding.
PADDING_AT_MOST = 128


def default_shard_rows(n_rows: int, batch_size: int, row_bytes: int) -> int:
    """Rows a shard: about 128 MB of activations, at most 2,048 rows, a multiple of the batch size.

    Args:
        n_rows: Rows of the dataset; a shard is no larger than it must be for them.
        batch_size: Rows a batch.
        row_bytes: Bytes of one row's activations, of all layers.
    """
    rows = min(SHARD_ROWS_AT_MOST, SHARD_BYTES // row_bytes)
    return max(1, min(rows // batch_size, -(-n_rows // batch_size))) * batch_size


def default_token_budget(on_gpu: bool) -> int:
    """Tokens a batch, padding included: one number for each kind of device, whatever memory is free.

    Which captions share a batch decides their last bits; what does not fit is split.
    """
    return TOKENS_ON_GPU if on_gpu else TOKENS_ON_CPU


def check_shard_rows(batch_size: int, shard_rows: int | None) -> None:
    """Raise ValueError unless both are positive and shards hold whole batches."""
    if batch_size < 1:
        raise ValueError(f"data.batch_size: {batch_size} rows; must be 1 or more")
    if shard_rows is not None and (shard_rows < 1 or shard_rows % batch_size):
        raise ValueError(f"data.shard_rows: {shard_rows} rows; must be a multiple of data.batch_size ({batch_size})")


def cut(start: int, stop: int, size: int) -> list[range]:
    """Rows ``start`` to ``stop`` in runs of ``size``; the last may be shorter."""
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def plan_batches(
    n_rows: int,
    shard_rows: int,
    batch_size: int,
    done: Collection[int] = (),
    rank: int = 0,
    world_size: int = 1,
    again: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> list[Sequence[int]]:
    """The batches that one rank has left to do.

    Args:
        n_rows: Rows of the dataset.
        shard_rows: Rows a shard.
        batch_size: Rows a batch, at most; only the last batch of a shard has fewer.
        done: Numbers of the shards that are finished.
        rank: This process.
        world_size: How many processes share the work: each takes every ``world_size``-th shard left.
        again: By number of a finished shard, the rows of it that are to be computed again.

    Returns:
        Global row indices of each batch, shard after shard.
    """
    shards = shards_left(n_rows, shard_rows, done, rank, world_size, again)
    return [rows[first : first + batch_size] for rows in shards for first in range(0, len(rows), batch_size)]


def plan_token_batches(
    lengths: Sequence[int],
    shard_rows: int,
    token_budget: int,
    done: Collection[int] = (),
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """As :func:`plan_batches`, for rows of different length: by length within a shard, and little padding a batch.

    Args:
        lengths: Tokens of each row.
        shard_rows: Rows a shard.
        token_budget: Tokens a batch at most, padding included; a single row may have more.
        done: Numbers of the shards that are finished.
        rank: This process.
        world_size: How many processes share the work.

    Returns:
        Global row indices of each batch, the longest rows of a shard first: when they do not fit the
        device's memory, it shows at once.
    """
    batches: list[list[int]] = []
    for shard in shards_left(len(lengths), shard_rows, done, rank, world_size):
        longest_first = sorted(shard, key=lambda row: -lengths[row])
        while longest_first:
            rows = _rows_that_fit([lengths[row] for row in longest_first], token_budget)
            batches.append(longest_first[:rows])
            longest_first = longest_first[rows:]
    return batches


def _rows_that_fit(lengths: Sequence[int], token_budget: int) -> int:
    """How many rows, the longest first, make the next batch: at least one."""
    longest = lengths[0]
    rows = max(1, token_budget // longest)
    padding = accumulate(longest - length for length in lengths[:rows])
    return sum(1 for _ in takewhile(lambda tokens: tokens <= PADDING_AT_MOST, padding))


def shards_left(
    n_rows: int,
    shard_rows: int,
    done: Collection[int],
    rank: int,
    world_size: int,
    again: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> list[Sequence[int]]:
    """Rows of the shards that one rank has left to do: every ``world_size``-th of those with rows left."""
    finished = set(done)
    left = [
        again.get(number, () if number in finished else rows) for number, rows in enumerate(cut(0, n_rows, shard_rows))
    ]
    return [rows for rows in left if rows][rank::world_size]


def rows_to_shard_ends(batches: Sequence[Sequence[int]], shard_rows: int) -> list[int]:
    """For each batch of a rank's plan, its rows and those behind it of the same shard."""
    ends: list[int] = []
    following: int | None = None
    for batch in reversed(batches):
        shard = batch[0] // shard_rows
        ends.append(len(batch) + (ends[-1] if shard == following else 0))
        following = shard
    return ends[::-1]
