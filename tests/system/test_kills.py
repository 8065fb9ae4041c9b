"""Twenty kills at random moments of a run's life, each survived without a wrong or a lost row."""

import random
import shutil
import signal
import time
from collections import Counter

import psutil
import pytest
from helpers import runs

pytestmark = pytest.mark.long

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
    """SIGKILL to the whole run; or to its main process alone, with which the kernel ends its workers."""
    if alone:
        run.process.kill()
    else:
        run.signal_all(signal.SIGKILL)
    run.wait()
    assert psutil.wait_procs(run.others(), timeout=30)[1] == []


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
    left_in, life = Counter(), one_life(randomness)
    while left_in.total() < N_KILLS:
        moment, resumed = life.pop(0), ""
        before = runs.done_shards(output)
        n_left = runs.N_SHARDS - len(before)
        if runs.store_folder(output).exists() and n_left:
            resumed = f"{len(before)} of {runs.N_SHARDS} shards done, {n_left} left"
        elif moment == "filling" and not n_left:
            moment = "finalizing"
        shards = max(len(before) + randomness.randint(0, min(6, n_left - 1)) if n_left else 0, not resumed)
        with runs.predict(images, output, *runs.ONE_WORKER) as run:
            came = run.wait_until(lambda: has_come(moment, run, output, resumed, shards), pause=0.001)  # noqa: B023
            assert came, run.output
            time.sleep(randomness.uniform(0, LASTS[moment]))
            kill(run, alone=randomness.random() < 0.5)
            assert resumed in run.output
        left_in[state_left(output, before, undisturbed)] += 1
        if not life:
            assert_completes(images, output, undisturbed)
            shutil.rmtree(output)
            life = one_life(randomness)
    assert_completes(images, output, undisturbed)
    print(f"killed in {dict(left_in)}")
    assert left_in["filling"] >= 8
    assert left_in["finalizing"] >= 1


def assert_completes(images, output, undisturbed):
    """The same command again gives the same features, and leaves nothing else behind."""
    runs.complete(images, output, *runs.ONE_WORKER)
    file = runs.features_file(output)
    runs.assert_same_features(file, undisturbed)
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == [file.name]
