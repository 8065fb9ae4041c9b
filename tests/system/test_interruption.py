"""Runs that are stopped, doubled, resumed otherwise or robbed of an image: real processes, real signals."""

import hashlib
import os
import shutil
import signal

import pytest
from helpers import runs

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_keeps_what_is_done(number, code, reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    with runs.predict(images, output, *runs.ONE_WORKER) as run:
        assert run.wait_until(lambda: len(runs.done_shards(output)) >= 3), run.output
        run.process.send_signal(number)
        assert run.wait() == code, run.output
        assert "Traceback" not in run.output
    done = runs.done_shards(output)
    assert 3 <= len(done) < runs.N_SHARDS
    assert not runs.features_file(output).exists()
    said = runs.complete(images, output, *runs.ONE_WORKER)
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
        assert f"started with other settings: {difference}. " in run.output
        assert "Traceback" not in run.output
    assert everything_in(runs.store_folder(unfinished)) == before


def everything_in(folder):
    """Each file with its content and the time it was changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in files}


@pytest.mark.parametrize(("damage", "options"), [("truncated", runs.ONE_RANK), ("deleted", runs.ONE_WORKER)])
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
