"""Runs that are killed, doubled, resumed otherwise or robbed of an image: real processes, real signals."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack

import pytest
import runs

pytestmark = pytest.mark.slow

N_KILLS = 20
# With a worker, which outlives a killed parent; the undisturbed run decodes in its main process.
ONE_WORKER = (*runs.SMALL_SHARDS, "--trainer.devices", "1", "--data.num_workers", "1")
# About how long each moment lasts, in seconds; the kill falls somewhere in it.
LASTS = {"creating": 0.02, "filling": 0.15, "finalizing": 0.08, "removing": 0.005}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return runs.undisturbed(tmp_path_factory)


@pytest.fixture(scope="module")
def unfinished(reference, tmp_path_factory):
    """Output of a run that was killed after a few shards."""
    images, _ = reference
    output = tmp_path_factory.mktemp("unfinished") / "features"
    with runs.predict(images, output, *runs.ONE_RANK) as run:
        assert run.wait_until(lambda: len(runs.done_shards(output)) >= 3), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    assert len(runs.done_shards(output)) < runs.N_SHARDS
    return output


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
                run = this.enter_context(runs.predict(images, output, *ONE_WORKER))
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
    runs.complete(images, output, *ONE_WORKER)
    file = runs.features_file(output)
    runs.assert_same_features(file, undisturbed)
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == [file.name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_keeps_what_is_done(number, code, reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *ONE_WORKER) as run:
        assert run.wait_until(lambda: len(runs.done_shards(output)) >= 3), run.output
        run.process.send_signal(number)
        assert run.wait() == code, run.output
        assert "Traceback" not in run.output
    done = runs.done_shards(output)
    assert 3 <= len(done) < runs.N_SHARDS
    assert not runs.features_file(output).exists()
    said = runs.complete(images, output, *ONE_WORKER)
    assert f"{len(done)} of 32 shards done" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)


def test_a_second_run_on_the_same_store_stops_and_names_the_first(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *runs.ONE_RANK) as first:
        assert first.wait_until(lambda: len(runs.done_shards(output)) >= 2), first.output
        first.process.suspend()
        done = runs.done_shards(output)
        with (
            runs.predict(images, output, *runs.ONE_RANK) as second,
            runs.command(tmp_path / "finalize.log", "finalize", str(runs.store_folder(output))) as third,
        ):
            for other in (second, third):
                assert other.wait() == 2
                assert f"being written by another run (process {first.process.pid} on " in other.output
                assert "Traceback" not in other.output
        assert runs.done_shards(output) == done
        first.process.resume()
        assert first.wait() == 0, first.output
    runs.assert_same_features(runs.features_file(output), undisturbed)


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--data.batch_size", "32", "batch_size was 16, now 32"),
        ("--model.seed", "1", "seed was 0, now 1"),
        ("--trainer.precision", "bf16-true", "precision was '32-true', now 'bf16-true'"),
    ],
)
def test_resumed_with_another_setting_it_stops_and_changes_nothing(option, value, difference, reference, unfinished):
    images, _ = reference
    before = everything_in(runs.store_folder(unfinished))
    with runs.predict(images, unfinished, *runs.ONE_RANK, option, value) as run:
        assert run.wait() == 2
        assert f"begun with other settings: {difference}. " in run.output
        assert "Traceback" not in run.output
    assert everything_in(runs.store_folder(unfinished)) == before


def everything_in(folder):
    """Each file with its content and the time it was changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in files}


@pytest.mark.parametrize(("damage", "options"), [("truncated", runs.ONE_RANK), ("deleted", ONE_WORKER)])
def test_an_image_damaged_while_the_run_is_under_way(damage, options, reference, tmp_path):
    undisturbed_images, undisturbed = reference
    images, output = tmp_path / "images", tmp_path / "features"
    shutil.copytree(undisturbed_images, images, copy_function=os.link)
    victim = images / "01500.jpg"
    content, of_shard = victim.read_bytes(), 1500 // runs.SHARD_ROWS
    with runs.predict(images, output, *options) as run:
        assert run.wait_until(lambda: 0 in runs.done_shards(output)), run.output
        run.signal_all(signal.SIGSTOP)
        victim.unlink()
        if damage == "truncated":
            victim.write_bytes(content[: len(content) // 2])
        run.signal_all(signal.SIGCONT)
        assert run.wait() == 2, run.output
        assert "stimulus 01500.jpg (row 1500) can't be decoded" in run.output
        assert "Traceback" not in run.output
    assert set(runs.done_shards(output)) == set(range(of_shard)), "all that came before it, and nothing else"
    assert not runs.features_file(output).exists()
    victim.write_bytes(content)
    said = runs.complete(images, output, *options)
    assert f"{of_shard} of 32 shards done, {32 - of_shard} left" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)
