"""The plan of a run, from rows to shards, batches and ranks: pure functions of integers.

Rows are cut into shards of a fixed number of rows, and shards into batches that never cross a shard. A batch has the
same rows on every rank and after every interruption, so its numbers are bitwise the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, takewhile

SHARD_BYTES = 128 * 2**20
SHARD_ROWS_AT_LEAST = 64  # fewer are not worth a share
EVEN_RANKS, UNEVEN_AT_MOST = 8, 0.05  # the GPUs of a machine; even for 8 is also even for 2 and 4
# Tokens per batch, padding included. They do not depend on the free memory, because the composition of a batch
# determines the last bits; a batch that does not fit is split. More tokens overflow the caches of a CPU: with 8192,
# each takes 1.0 to 1.5 times as long. On a GPU, more tokens need more memory and save little time.
TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 16384
# Maximum padding tokens of a batch: beyond it, another batch costs less than the padding. Without a limit, an eighth of
# all tokens of generated captions would be padding.
PADDING_AT_MOST = 128


@dataclass(frozen=True)
class Plan:
    """The shards and batches of a dataset, and the rows that are left to compute; the same for all ranks."""

    n_rows: int
    shard_rows: int
    batch_size: int  # maximum rows per batch; with lengths, maximum tokens per batch, padding included
    lengths: Sequence[int] | None = None  # tokens of each row, if rows are captions
    left: Mapping[int, Sequence[int]] = field(default_factory=dict)  # rows left of each shard; unlisted: all

    def leaving(self, done: Iterable[int], again: Iterable[int] = ()) -> "Plan":
        """Return this plan without the shards that are done, except for the rows to compute ``again``."""
        left: dict[int, list[int]] = {shard: [] for shard in done}
        shards = {shard: list(rows) for shard, rows in groupby(sorted(again), lambda row: row // self.shard_rows)}
        return replace(self, left={**left, **shards})

    def without_rows(self, done: Iterable[int]) -> "Plan":
        """Return this plan without some rows."""
        rows = set(done)
        shards = {row // self.shard_rows for row in rows}
        left = [row for row in range(self.n_rows) if row // self.shard_rows in shards and row not in rows]
        return self.leaving(shards, left)

    def shards(self, rank: int = 0, world_size: int = 1) -> list[Sequence[int]]:
        """Return the remaining rows of each shard of one rank: every ``world_size``-th shard with rows left."""
        starts = range(0, self.n_rows, self.shard_rows)
        left = [
            self.left.get(shard, range(start, min(start + self.shard_rows, self.n_rows)))
            for shard, start in enumerate(starts)
        ]
        return [rows for rows in left if rows][rank::world_size]

    def batches(self, rank: int = 0, world_size: int = 1) -> list[Sequence[int]]:
        """Return the global row indices of each remaining batch of one rank, shard after shard.

        With ``lengths``, a shard's longest rows come first, so a lack of memory shows at once. Batches are full, except
        for the last one of a shard and batches that would be padded too much.
        """
        batches: list[Sequence[int]] = []
        for rows in self.shards(rank, world_size):
            if self.lengths is None:
                batches += [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
            else:
                batches += _batches_by_length(rows, self.lengths, self.batch_size)
        return batches


def passes(batches: Sequence[Sequence[int]], shard_rows: int, n_rows: int) -> list[list[int]]:
    """Return groups of batches that pass the model together, as places among the ``batches`` of a rank.

    A group has at most ``n_rows`` rows, unless a single batch has more. Shards stay whole if they fit.
    """
    groups: list[list[int]] = []
    rows = n_rows  # of the last group; nothing is added once it is full
    for _, of_shard in groupby(enumerate(batches), lambda item: item[1][0] // shard_rows):
        sizes = {place: len(batch) for place, batch in of_shard}
        units = [[*sizes]] if sum(sizes.values()) <= n_rows else [[place] for place in sizes]
        for unit in units:
            size = sum(sizes[place] for place in unit)
            if rows + size > n_rows or not groups:
                groups.append([])
                rows = 0
            groups[-1] += unit
            rows += size
    return groups


def _batches_by_length(rows: Sequence[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return batches of similar length; a single row may have more tokens than the budget."""
    batches: list[list[int]] = []
    longest_first = sorted(rows, key=lambda row: -lengths[row])
    while longest_first:
        longest = lengths[longest_first[0]]
        fitting = longest_first[: max(1, token_budget // longest)]
        padding = accumulate(longest - lengths[row] for row in fitting)
        size = sum(1 for _ in takewhile(lambda tokens: tokens <= PADDING_AT_MOST, padding))
        batches.append(longest_first[:size])
        longest_first = longest_first[size:]
    return batches


def even_shard_rows(n_rows: int, batch_size: int, row_bytes: int, at_most: int) -> int:
    """Return the rows per shard: at most ``at_most`` and 128 MB of activations, with even shares for 8 ranks.

    They are a multiple of the batch size if that leaves even shares, at least one batch, and at most what ``n_rows``
    need. The activations of all layers take ``row_bytes`` per row.
    """
    most = max(batch_size, min(at_most, SHARD_BYTES // row_bytes))
    least = max(batch_size, min(SHARD_ROWS_AT_LEAST, most // 2))
    whole_batches = range(most // batch_size * batch_size, least - 1, -batch_size)
    sizes = [*whole_batches, *range(most, least - 1, -1)]
    even = (rows for rows in sizes if _unevenness(n_rows, rows) < UNEVEN_AT_MOST)
    rows: int = next(even, None) or min(sizes, key=lambda rows: _unevenness(n_rows, rows))
    return min(rows, max(1, -(-n_rows // batch_size)) * batch_size)


def _unevenness(n_rows: int, shard_rows: int) -> float:
    """Return the relative difference between the largest and smallest share of :data:`EVEN_RANKS` ranks."""
    n_shards = -(-n_rows // shard_rows)
    shares = [shard_rows * len(range(rank, n_shards, EVEN_RANKS)) for rank in range(EVEN_RANKS)]
    shares[(n_shards - 1) % EVEN_RANKS] -= n_shards * shard_rows - n_rows
    return (max(shares) - min(shares)) / max(1, min(shares))
