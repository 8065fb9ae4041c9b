"""Two ranks in processes of their own: the same bytes as one, also when they are killed."""

import signal

import psutil
import pytest
import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return runs.undisturbed(tmp_path_factory)


def second_rank(run):
    """The process of rank 1, once it has been launched."""
    for process in run.others():
        try:
            if process.environ().get("LOCAL_RANK") == "1":
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


def test_two_ranks_write_disjoint_shards_and_the_same_bytes_as_one(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *runs.TWO_RANKS) as run:
        assert run.wait_until(lambda: 1 in runs.done_shards(output)), run.output
        second = second_rank(run)
        second.suspend()
        frozen_at = set(runs.done_shards(output))
        # Rank 0 finishes its share and then waits; nothing of rank 1's is done by anyone else.
        of_first, of_second = set(range(0, runs.N_SHARDS, 2)), set(range(1, runs.N_SHARDS, 2))
        assert run.wait_until(lambda: of_first <= set(runs.done_shards(output))), run.output
        assert set(runs.done_shards(output)) & of_second == frozen_at & of_second
        assert not of_second <= frozen_at, "rank 1 was frozen too late to show anything"
        second.resume()
        assert run.wait() == 0, run.output
        assert "(rank 0 of 2): 1024 of 1024 images" in run.output
    runs.assert_same_features(runs.features_file(output), undisturbed)


def test_begun_with_two_ranks_and_killed_then_finished_with_one(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *runs.TWO_RANKS) as run:
        assert run.wait_until(lambda: len(runs.done_shards(output)) >= 9), run.output
        run.signal_all(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    done = runs.done_shards(output)
    assert 9 <= len(done) < runs.N_SHARDS
    assert not runs.features_file(output).exists()
    said = runs.complete(images, output, *runs.ONE_RANK)
    assert f"{len(done)} of 32 shards done, {32 - len(done)} left" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)


def test_when_one_rank_is_killed_the_run_ends_and_leaves_no_process(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *runs.TWO_RANKS, "--data.num_workers", "1") as run:
        assert run.wait_until(lambda: len(runs.done_shards(output)) >= 3), run.output
        assert len(run.others()) == 3, "rank 1 and two workers"
        second_rank(run).kill()
        assert run.wait() != 0
        _, alive = psutil.wait_procs(run.others(), timeout=30)
        assert alive == []
    done = runs.done_shards(output)
    assert 3 <= len(done) < runs.N_SHARDS
    assert not runs.features_file(output).exists()
    said = runs.complete(images, output, *runs.TWO_RANKS)
    assert f"{len(done)} of 32 shards done, {32 - len(done)} left" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)


def test_more_ranks_than_shards_left(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    runs.complete(images, output, *runs.ONE_RANK, "--finalize", "false")
    (runs.store_folder(output) / "cls" / "c" / "17" / "0" / "0").unlink()
    said = runs.complete(images, output, *runs.TWO_RANKS)
    assert "31 of 32 shards done, 1 left" in said
    assert "(rank 0 of 2): 64 of 64 images" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)
