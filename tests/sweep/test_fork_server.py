"""What a fork server starts is like what is started alone: environment, numbers, output, exit code, signals, end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import runs

from lit_extract.features import load_features
from lit_extract.sweep.fork_server import Forked, ForkServer, is_there

PREDICT = [sys.executable, "-m", "lit_extract", "predict"]


def wait_until_forked(child):
    while child.pid is None:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.1)


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def started_otherwise():
    raise AssertionError("the server is there")


def program(code):
    """What starts a process without a fork server."""
    return lambda: subprocess.Popen([sys.executable, "-c", code])


def ask(server, log, *arguments, otherwise=started_otherwise, **environment):
    log.write_text("the command\n")
    return server.start([*PREDICT, *map(str, arguments)], {**os.environ, **environment}, log, otherwise)


@pytest.fixture
def start(server, tmp_path):
    """A function that has the server start a command; it returns the process and its log."""

    def run(*arguments, **environment):
        child = ask(server, tmp_path / "log", *arguments, **environment)
        assert isinstance(child, Forked)
        return child, tmp_path / "log"

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
    wait_until_forked(child)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in log.read_text()
    assert not is_there(child.pid)
    child.send_signal(signal.SIGTERM)  # what is gone does not hear it
    again, log = start(*job(images, tmp_path / "ours"), OMP_NUM_THREADS="1")
    assert again.wait() == 0
    assert "resuming" in log.read_text()


def test_one_that_is_killed_says_so(start, images, tmp_path):
    child, _ = start(*job(images, tmp_path / "ours"))
    wait_until_forked(child)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_other_programs_are_not_for_it(server, tmp_path):
    other = server.start([sys.executable, "child.py"], os.environ, tmp_path / "log", lambda: "started alone")
    assert other == "started alone"


def test_when_the_server_is_killed_its_process_ends_and_others_are_started_without_it(images, tmp_path):
    with ForkServer() as server:
        child = ask(server, tmp_path / "log", *job(images, tmp_path / "ours"))
        wait_until(lambda: runs.done_shards(tmp_path / "ours"))
        wait_until_forked(child)
        server._process.kill()
        wait_until(lambda: not is_there(child.pid))
        assert child.wait() == -signal.SIGKILL
        assert ask(server, tmp_path / "log", "--help", otherwise=lambda: "started alone") == "started alone"


def test_a_server_that_ends_before_it_has_forked_is_done_without(tmp_path):
    alone = program("import time; time.sleep(0.1); raise SystemExit(3)")
    with ForkServer() as server:
        child = ask(server, tmp_path / "log", "--help", otherwise=alone)
        server._process.kill()
        assert child.wait() == 3
        assert (tmp_path / "log").read_text() == "the command\n"
        assert ask(server, tmp_path / "log", "--help", otherwise=alone).wait() == 3


def test_a_signal_reaches_who_is_started_instead(tmp_path):
    alone = program("import time; time.sleep(60)")
    with ForkServer() as server:
        child = ask(server, tmp_path / "log", "--help", otherwise=alone)
        server._process.kill()
        server._process.wait()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) in (-signal.SIGINT, 130)


def test_a_signal_during_the_imports_ends_it_at_once(tmp_path):
    with ForkServer() as server:
        child = ask(server, tmp_path / "log", "--help")
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM
        assert child.pid is None
        server._process.wait(10)
    assert (tmp_path / "log").read_text() == "the command\n"


@pytest.mark.parametrize(("before", "can"), [("pass", True), ("torch._C._cuda_getDeviceCount()", False)])
def test_forks_of_what_has_touched_the_gpus_are_not_used(before, can):
    # Also where there is no GPU: torch knows that forks are useless once somebody has counted them.
    script = f"import torch; {before}; from lit_extract.sweep import fork_server as s; print(s.forks_can_use_gpus())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{can}\n"


def test_it_ends_with_its_sweep(tmp_path):
    with ForkServer() as server:
        assert ask(server, tmp_path / "log", "--help").wait() == 0
    assert not is_there(server._process.pid)
    with ForkServer() as server:
        assert ask(server, tmp_path / "log", "--help").wait() == 0
        server._line.end.close()  # as when the sweep is killed
        server._process.wait(30)
