"""What a nursery starts is like what is started alone: its environment, numbers, output, exit code, signals, end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import runs

from lit_extract.features import load_features
from lit_extract.sweep.nursery import Hatched, Nursery, is_there

PREDICT = [sys.executable, "-m", "lit_extract", "predict"]


@pytest.fixture(scope="module")
def nursery():
    """One that is ready."""
    with Nursery() as nursery:
        wait_until(nursery._is_willing)
        yield nursery


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def start(nursery, tmp_path):
    """A function that has the nursery start a command; it returns the process and its log."""

    def run(*arguments, **environment):
        log = tmp_path / "log"
        log.write_text("the command\n")
        child = nursery.start([*PREDICT, *map(str, arguments)], {**os.environ, **environment}, log)
        assert isinstance(child, Hatched)
        return child, log

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.write_images(tmp_path_factory.mktemp("images") / "images", 200)


def job(images, output):
    options = ("--data.root", images, "--output_dir", output, "--data.batch_size", "4", "--data.shard_rows", "4")
    return "--config", runs.REPOSITORY / "configs/folder/vision.yaml", *runs.MODEL, *options, "--data.num_workers", "0"


def feats(folder):
    (file,) = folder.rglob("*.pt")
    return load_features(file).feats.numpy().tobytes()


def test_it_computes_the_same_bytes_with_its_imports_behind_it(start, images, tmp_path):
    child, log = start(*job(images, tmp_path / "ours"), "--profile", OMP_NUM_THREADS="1")
    assert child.wait() == 0
    said = log.read_text()
    assert said.startswith("the command\n")
    assert "s before the first batch (imports 0." in said
    command = [*PREDICT, *map(str, job(images, tmp_path / "alone"))]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    assert feats(tmp_path / "ours") == feats(tmp_path / "alone")


def test_two_ranks_of_it_finish(start, images, tmp_path):
    ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    child, log = start(*job(images, tmp_path / "ours"), *ranks, OMP_NUM_THREADS="1")
    assert child.wait() == 0, log.read_text()
    one, _ = start(*job(images, tmp_path / "one"), OMP_NUM_THREADS="1")
    assert one.wait() == 0
    assert feats(tmp_path / "ours") == feats(tmp_path / "one")


def test_environment_and_exit_code_are_its_own(start, tmp_path):
    config = ("--config", runs.REPOSITORY / "configs/nsd/vision.yaml")
    child, log = start(*config, *runs.MODEL, "--output_dir", tmp_path, NSD_DATASET=str(tmp_path / "nowhere"))
    assert child.wait() == 2
    assert f"the environment variable NSD_DATASET: '{tmp_path / 'nowhere'}' is not a folder" in log.read_text()
    assert "NSD_DATASET" not in os.environ


def test_a_signal_stops_it_in_order_and_the_next_one_is_started_all_the_same(start, images, tmp_path):
    child, log = start(*job(images, tmp_path / "ours"), OMP_NUM_THREADS="1")
    wait_until(lambda: len(runs.done_shards(tmp_path / "ours")) >= 2)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in log.read_text()
    assert not is_there(child.pid)
    child.send_signal(signal.SIGTERM)  # of what is gone nobody hears
    again, log = start(*job(images, tmp_path / "ours"), OMP_NUM_THREADS="1")
    assert again.wait() == 0
    assert "resuming" in log.read_text()


def test_one_that_is_killed_says_so(start, images, tmp_path):
    child, _ = start(*job(images, tmp_path / "ours"))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_other_programs_are_not_for_it(nursery, tmp_path):
    assert nursery.start([sys.executable, "child.py"], os.environ, tmp_path / "log") is None


def test_when_the_nursery_is_killed_its_process_ends_and_others_are_started_without_it(images, tmp_path):
    with Nursery() as nursery:
        assert nursery.start([*PREDICT, "--help"], os.environ, tmp_path / "log") is None, "it is not ready yet"
        wait_until(nursery._is_willing)
        (tmp_path / "log").touch()
        child = nursery.start([*PREDICT, *map(str, job(images, tmp_path / "ours"))], os.environ, tmp_path / "log")
        wait_until(lambda: runs.done_shards(tmp_path / "ours"))
        nursery._process.kill()
        wait_until(lambda: not is_there(child.pid))
        assert child.wait() == -signal.SIGKILL
        assert nursery.start([*PREDICT, "--help"], os.environ, tmp_path / "log") is None


def test_it_ends_with_its_sweep():
    with Nursery() as nursery:
        pid = nursery._process.pid
        wait_until(nursery._is_willing)
    assert not is_there(pid)
    with Nursery() as nursery:
        pid = nursery._process.pid
        wait_until(nursery._is_willing)
        nursery._line.end.close()  # as when the sweep is killed
        nursery._process.wait(30)
    assert not is_there(pid)
