"""The plan: literal tables, then every rule by brute force over small numbers."""

from itertools import chain, combinations, product

import numpy as np
import pytest

from lit_extract.data.plan import Plan, even_shard_rows
from lit_extract.storage.layout import count_shards

MB = 2**20


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]),
        ({"done": {1}}, [(0, 2), (2, 4), (8, 10), (10, 11)]),
        ({"rank": 0, "world_size": 2}, [(0, 2), (2, 4), (8, 10), (10, 11)]),
        ({"rank": 1, "world_size": 2}, [(4, 6), (6, 8)]),
        # the shards that are left are shared, not all of them: no rank idles while another has two
        ({"done": [0], "rank": 0, "world_size": 2}, [(4, 6), (6, 8)]),
        ({"done": [0], "rank": 1, "world_size": 2}, [(8, 10), (10, 11)]),
        ({"done": {0, 1, 2}}, []),
        ({"rank": 3, "world_size": 4}, []),
    ],
)
def test_plan_of_eleven_rows_in_shards_of_four_and_batches_of_two(settings, expected):
    settings = dict(settings)
    done = settings.pop("done", ())
    batches = Plan(11, shard_rows=4, batch_size=2).leaving(done).batches(**settings)
    assert batches == [range(*batch) for batch in expected]


def test_last_batch_of_a_shard_is_short_when_the_dataset_ends():
    assert Plan(10, shard_rows=9, batch_size=3).batches() == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]


def test_every_rule_by_brute_force():
    for n_rows, batch_size, batches_per_shard in product(range(10), (1, 2, 3), (1, 2)):
        shard_rows = batch_size * batches_per_shard
        n_shards = count_shards(n_rows, shard_rows)
        undisturbed = Plan(n_rows, shard_rows, batch_size).batches()
        all_done_sets = chain.from_iterable(combinations(range(n_shards), k) for k in range(n_shards + 1))
        for done, world_size in product(all_done_sets, (1, 2, 3)):
            shares = [
                Plan(n_rows, shard_rows, batch_size).leaving(done).batches(rank, world_size)
                for rank in range(world_size)
            ]
            batches = [batch for share in shares for batch in share]
            rows = sorted(row for batch in batches for row in batch)
            assert rows == [row for row in range(n_rows) if row // shard_rows not in done], "each row once, none done"
            assert set(batches) <= set(undisturbed), "whoever computes a batch, it has the same rows"
            assert all(batch[0] // shard_rows == batch[-1] // shard_rows for batch in batches), "one shard a batch"
            owners = [{batch[0] // shard_rows for batch in share} for share in shares]
            assert sum(map(len, owners)) == len(set().union(*owners)), "one rank a shard"
            assert max(map(len, owners)) - min(map(len, owners)) <= 1, "an even share"
            assert all(share == sorted(share, key=lambda batch: batch.start) for share in shares), "shard after shard"


@pytest.mark.parametrize(("n_rows", "shard_rows", "expected"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)])
def test_count_shards(n_rows, shard_rows, expected):
    assert count_shards(n_rows, shard_rows) == expected == len(Plan(n_rows, shard_rows, 1).shards())


NSD, BOLD5000, THINGS = 73_000, 4_916, 26_107
TINY, GIANT, LLAMA_70B = 12 * 192 * 4, 40 * 1536 * 4, 80 * 8192 * 4  # bytes a row


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "row_bytes", "expected"),
    [
        (NSD, 64, TINY, 384),  # 191 shards: with 512 or 448 some rank of 8 would have 5 % more than another
        (NSD, 64, GIANT, 384),
        (NSD, 1, MB, 128),
        (NSD, 100, TINY, 400),  # whole batches only
        (NSD, 4096, TINY, 4096),  # one batch at least
        (NSD, 8, 200 * MB, 8),
        (NSD, 1, 128 * MB, 1),
        (NSD, 1, 64 * MB, 2),
        (BOLD5000, 64, TINY, 309),  # no multiple of 64 is even
        (24, 64, TINY, 64),  # no larger than the dataset needs, in whole batches
        (24, 10, TINY, 30),
        (64, 64, TINY, 64),
        (300, 64, TINY, 64),  # not enough for 8 ranks: for as many as possible
        (1000, 64, TINY, 125),
        (0, 64, TINY, 64),
    ],
)
def test_rows_a_shard(n_rows, batch_size, row_bytes, expected):
    assert even_shard_rows(n_rows, batch_size, row_bytes, at_most=512) == expected


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize(
    ("batch_size", "row_bytes", "at_most"),
    [(64, TINY, 512), (64, GIANT, 512), (1, TINY, 2048), (1, LLAMA_70B, 2048)],
)
@pytest.mark.parametrize("n_rows", [4_900, BOLD5000, 6_000, THINGS, NSD])
def test_shares_of_ranks_are_even(n_rows, batch_size, row_bytes, at_most, world_size):
    rows = even_shard_rows(n_rows, batch_size, row_bytes, at_most)
    plan = Plan(n_rows, rows, batch_size)
    shares = [sum(map(len, plan.shards(rank, world_size))) for rank in range(world_size)]
    assert sum(shares) == n_rows
    assert max(shares) < 1.05 * min(shares)
    assert rows * row_bytes <= 128 * MB


def test_nsd_is_some_thousand_files():
    """A shard of a model with stages has up to ten."""
    assert count_shards(NSD, even_shard_rows(NSD, 64, TINY, 512)) * 10 < 2_000


@pytest.mark.parametrize(
    ("done", "again", "expected"),
    [
        ({0, 1, 2}, [], []),
        ({0, 1, 2}, [5], [[5]]),
        ({0, 1, 2}, [8, 0, 3, 1], [[0, 1], [3], [8]]),
        ({0}, [2], [[2], [4, 5], [6, 7], [8, 9]]),
    ],
)
def test_rows_that_are_computed_again_are_all_that_is_left_of_their_shard(done, again, expected):
    plan = Plan(10, 4, 2).leaving(done, again)
    assert [list(batch) for batch in plan.batches()] == expected
    halves = [plan.batches(rank, 2) for rank in (0, 1)]
    assert sorted(map(list, (batch for half in halves for batch in half))) == sorted(expected)
    assert not {row // 4 for batch in halves[0] for row in batch} & {row // 4 for batch in halves[1] for row in batch}


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([], [range(0, 4), range(4, 8), range(8, 10)]),
        ([1, 2, 4, 5, 6, 7], [[0, 3], range(8, 10)]),
        ([9], [range(0, 4), range(4, 8), [8]]),
        (range(10), []),
    ],
)
def test_rows_that_are_done_are_left_out_of_their_shards(done, expected):
    assert Plan(10, 4, 4).without_rows(done).batches() == expected


@pytest.mark.parametrize(
    ("lengths", "shard_rows", "budget", "expected"),
    [
        ([3, 1, 2], 3, 6, [[0, 2], [1]]),
        ([3, 1, 2, 5], 2, 6, [[0, 1], [3], [2]]),
        ([9, 1], 2, 4, [[0], [1]]),  # longer than the budget: alone
        ([2, 2, 2, 2], 4, 4, [[0, 1], [2, 3]]),
        ([100, 50, 50, 50, 50], 5, 10**6, [[0, 1, 2], [3, 4]]),  # a third row of 50 would make 150 tokens of padding
        ([300, 100, 100], 3, 10**6, [[0], [1, 2]]),
    ],
)
def test_batches_of_captions(lengths, shard_rows, budget, expected):
    assert Plan(len(lengths), shard_rows, budget, lengths).batches() == expected


def test_batches_of_captions_do_not_depend_on_ranks_and_done_shards():
    lengths = np.random.default_rng(0).integers(1, 60, 101).tolist()
    plan = Plan(101, 16, 200, lengths)
    whole = plan.batches()
    assert sorted(row for batch in whole for row in batch) == list(range(101))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 200 for batch in whole)
    ranks = [plan.leaving({0, 5}).batches(rank, 3) for rank in range(3)]
    left = [batch for batch in whole if batch[0] // 16 not in {0, 5}]
    assert sorted(batch for rank in ranks for batch in rank) == sorted(left)
