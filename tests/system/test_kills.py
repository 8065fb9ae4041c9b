"""Twenty kills at random moments of a run's life, each survived without a wrong or a lost row."""

import random
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from helpers import runs

pytestmark = pytest.mark.slow

N_KILLS = 20
# About how long each moment lasts, in seconds; the kill falls somewhere in it.
LASTS = {"creating": 0.02, "filling": 0.15, "finalizing": 0.01, "removing": 0.005}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return runs.undisturbed(tmp_path_factory)


def one_life(randomness):
    """The moments at which to kill, while a store is made, filled, finalized and removed."""
    return ["creating", *["filling"] * randomness.randint(5, 8), "finalizing", "finalizing", "removing"]


def has_come(moment, run, output, resumed, shards):
    """Whether ``run`` is there; for "filling", whether it has ``shards`` shards done."""
    if moment == "creating":
        return output.exists()
    if moment == "filling":
        return len(runs.done_shards(output)) >= shards and (not resumed or resumed in run.output)
    finished = runs.features_file(output).exists()
    return finished or (moment == "finalizing" and runs.unfinished_file(output).exists())


def kill(run, alone):
    """SIGKILL to the whole run; or to its main process alone, with the workers frozen, so that they stay."""
    if not alone:
        run.signal_all(signal.SIGKILL)
        run.wait()
        return 0
    workers = run.others()
    for worker in workers:
        worker.suspend()
    run.process.kill()
    run.wait()
    return len(run.others())


def state_left(output, before, undisturbed):
    """What a kill has left, which must be whole: what was done before is still the same files."""
    if runs.features_file(output).exists():
        runs.assert_same_features(runs.features_file(output), undisturbed)
        return "removing"
    if not runs.store_folder(output).exists():
        assert not before
        return "creating"
    done = runs.done_shards(output)
    assert before.items() <= done.items()
    return "filling" if len(done) < runs.N_SHARDS else "finalizing"


@pytest.mark.timeout(1800)  # some thirty starts of a process, on whatever machine
def test_killed_at_twenty_random_moments_and_resumed(reference, tmp_path):
    images, undisturbed = reference
    output, randomness = tmp_path / "features", random.Random(20)
    left_in, outlived, life = Counter(), 0, one_life(randomness)
    with ExitStack() as killed_before:
        while left_in.total() < N_KILLS:
            moment, resumed = life.pop(0), ""
            before = runs.done_shards(output)
            n_left = runs.N_SHARDS - len(before)
            if runs.store_folder(output).exists() and n_left:
                resumed = f"{len(before)} of {runs.N_SHARDS} shards done, {n_left} left"
            elif moment == "filling" and not n_left:
                moment = "finalizing"
            shards = max(len(before) + randomness.randint(0, min(6, n_left - 1)) if n_left else 0, not resumed)
            with ExitStack() as this:
                run = this.enter_context(runs.predict(images, output, *runs.ONE_WORKER))
                came = run.wait_until(lambda: has_come(moment, run, output, resumed, shards), pause=0.001)  # noqa: B023
                assert came, run.output
                time.sleep(randomness.uniform(0, LASTS[moment]))
                outlived += kill(run, alone=randomness.random() < 0.5)
                assert resumed in run.output
                killed_before.close()  # until here its frozen worker could have been in the way
                killed_before.push(this.pop_all())
            left_in[state_left(output, before, undisturbed)] += 1
            if not life:
                assert_completes(images, output, undisturbed)
                shutil.rmtree(output)
                life = one_life(randomness)
        assert_completes(images, output, undisturbed)
    print(f"killed in {dict(left_in)}; {outlived} workers outlived their parent")
    assert left_in["filling"] >= 8
    assert left_in["finalizing"] >= 1
    assert outlived >= 3


def assert_completes(images, output, undisturbed):
    """The same command again gives the same features, and leaves nothing else behind."""
    runs.complete(images, output, *runs.ONE_WORKER)
    file = runs.features_file(output)
    runs.assert_same_features(file, undisturbed)
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == [file.name]
