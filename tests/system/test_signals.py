"""Asked to stop by real signals: a batch is finished, the rest is left, and the exit code says why."""

import signal
import textwrap
from pathlib import Path

import psutil
import pytest
from helpers import runs

from lit_extract.common import signals

pytestmark = pytest.mark.slow

HOW_TO_RESUME = "run the same command again to resume"
START = """
import os, sys, time
from lit_extract.common import signals

def say(text):
    print(text, flush=True)

"""


@pytest.fixture
def script(tmp_path):
    """A function that runs a script that may use ``say`` and ``signals``; a context manager that gives the Run."""

    def run(text, **environment):
        return runs.python(tmp_path / "log", "-c", START + textwrap.dedent(text), **environment)

    return run


def wait_for(run, text):
    assert run.wait_until(lambda: text in run.output), run.output


def _status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _has(pid, name, number):
    return int(_status(pid).get(name, "0"), 16) >> (number - 1) & 1


def deliver(run, number):
    """Send a signal, and wait until the process has it: another one would be lost beside it."""
    run.process.send_signal(number)
    run.wait_until(lambda: not _has(run.process.pid, "ShdPnd", number))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_the_loop_it_interrupts(script, number, code):
    with script("with signals.stoppable(True):\n  say('ready'); time.sleep(60)") as run:
        wait_for(run, "ready\n")
        run.process.send_signal(number)
        assert run.wait() == code
        assert run.output == f"ready\nlit-extract: stopped by {number.name}; {HOW_TO_RESUME}\n"


FINISHING = """
with signals.stoppable(True):
    signals.DUPLICATES_WITHIN = APART
    signals.SECONDS_FOR_A_BATCH = AT_MOST
    with signals.deferred():
        say("ready")
        while signals.requested() is None:
            time.sleep(0.01)
        say("asked")
        time.sleep(SECONDS)
        say("finished")
    raise signals.Interrupted(signals.requested())
"""


def finishing(apart, at_most, seconds):
    return FINISHING.replace("APART", str(apart)).replace("AT_MOST", str(at_most)).replace("SECONDS)", f"{seconds})")


def test_a_batch_is_finished(script):
    with script(finishing(apart=60, at_most=60, seconds=1)) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGTERM)
        wait_for(run, "asked")
        run.process.send_signal(signal.SIGTERM)  # as from a scheduler and from a launcher
        assert run.wait() == 143
        assert run.output.startswith("ready\nasked\nfinished\nlit-extract: stopped by SIGTERM")


def test_a_second_signal_ends_it_at_once(script):
    with script(finishing(apart=0, at_most=60, seconds=60)) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGTERM)
        wait_for(run, "asked")
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130


def test_a_batch_that_takes_too_long_is_interrupted(script):
    with script(finishing(apart=60, at_most=1, seconds=60)) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert run.output == f"ready\nasked\nlit-extract: stopped by SIGTERM; {HOW_TO_RESUME}\n"


def test_a_second_signal_ends_it_also_while_nothing_of_python_runs(script):
    text = """
        import zlib
        noise = os.urandom(200_000_000)
        with signals.stoppable(True):
            signals.DUPLICATES_WITHIN = 0
            say("ready")
            zlib.compress(noise, 9)
            say("compressed")
    """
    with script(text) as run:
        wait_for(run, "ready\n")
        before = run.process.cpu_times().user
        assert run.wait_until(lambda: run.process.cpu_times().user > before + 0.2)  # it compresses
        deliver(run, signal.SIGTERM)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert run.output == "ready\n"


def test_from_python_a_second_signal_interrupts_and_ctrl_c_is_a_keyboard_interrupt(script):
    text = """
        try:
            with signals.stoppable():
                signals.DUPLICATES_WITHIN = 0
                with signals.deferred():
                    say("ready")
                    while signals.requested() is None:
                        time.sleep(0.01)
                    say("asked")
                    time.sleep(60)
        except KeyboardInterrupt:
            say("caught")
        import signal
        say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    with script(text) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGINT)
        wait_for(run, "asked")
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0
        assert run.output == f"ready\nasked\nlit-extract: stopped by SIGINT; {HOW_TO_RESUME}\ncaught\nTrue\n"


WORKERS = """
import multiprocessing

def work():
    signals.ignore_in_worker(0)
    say(f"worker {os.getpid()}")
    time.sleep(60)

with signals.stoppable(True):
    worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    worker.start()
    with signals.deferred():
        say("deferred")
        while signals.requested() is None:
            time.sleep(0.01)
        worker.join(1)
        say(f"alive {worker.is_alive()}")
    worker.kill()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_leaves_workers_to_their_parent(script, number):
    with script(WORKERS) as run:
        wait_for(run, "deferred")
        wait_for(run, "worker")
        run.signal_all(number)
        assert run.wait() == 0
        assert run.output.endswith("alive True\n")


def test_workers_end_with_a_parent_that_was_killed(script):
    with script(WORKERS) as run:
        wait_for(run, "worker")
        (worker,) = run.others()
        run.process.kill()
        run.wait()
        assert psutil.wait_procs([worker], timeout=10)[1] == []


@pytest.fixture
def slurm(tmp_path):
    """A folder with a scontrol that writes down what it is asked, and SLURM's variables of the one task of a job."""
    return tmp_path, runs.slurm(tmp_path)


@pytest.mark.parametrize(
    ("more", "job"),
    [({}, "4711"), ({"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}, "4700_3")],
)
def test_under_slurm_usr1_queues_the_job_again(script, slurm, more, job):
    folder, variables = slurm
    with script("with signals.stoppable(True):\n  say('ready'); time.sleep(60)", **variables, **more) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 128 + signal.SIGUSR1
        assert f"stopped by SIGUSR1; {HOW_TO_RESUME}\nlit-extract: job {job} is queued again\n" in run.output
    assert (folder / "asked").read_text() == f"requeue {job}\n"


def test_a_job_that_can_not_be_queued_again_says_so(script, slurm):
    folder, variables = slurm
    (folder / "code").write_text("1")
    with script("with signals.stoppable(True):\n  say('ready'); time.sleep(60)", **variables) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 138
        assert "could not queue job 4711 again" in run.output


def test_term_under_slurm_queues_nothing(script, slurm):
    folder, variables = slurm
    with script("with signals.stoppable(True):\n  say('ready'); time.sleep(60)", **variables) as run:
        wait_for(run, "ready\n")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
    assert not (folder / "asked").exists()


# Of the whole command


SMALL = ("--data.batch_size", "2", "--data.shard_rows", "4", "--data.num_workers", "0", "--trainer.devices", "1")


@pytest.fixture
def slow(tmp_path, image_folder):
    """A function that runs predict on seven images, two shards of two batches each, slowed down or held at a step."""

    def run(load=0, step=0, held=None, **environment):
        delays = {"SLOW_LOAD": str(load), "SLOW_STEP": str(step), "HELD_STEP": str(held)}
        return runs.slow_predict(image_folder, tmp_path / "out", *SMALL, **delays, **environment)

    return run


def test_while_the_model_is_loaded(slow, tmp_path):
    with slow(load=60) as run:
        wait_for(run, "loading\n")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert f"stopped by SIGTERM: 0 of 2 shards are done; {HOW_TO_RESUME}" in run.output
        assert "Traceback" not in run.output
    with slow() as run:
        assert run.wait() == 0, run.output
        assert "0 of 2 shards done, 2 left" in run.output


def test_while_python_is_still_importing(tmp_path, image_folder):
    with runs.predict(image_folder, tmp_path / "out", *SMALL) as run:
        assert run.wait_until(lambda: _has(run.process.pid, "SigCgt", signal.SIGTERM))
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert run.output.endswith(f"lit-extract: stopped by SIGTERM; {HOW_TO_RESUME}\n")
        assert run.output.count("\n") <= 2, "what will run, and that it was stopped"
    assert not (tmp_path / "out").exists()


def test_the_batch_in_hand_is_finished(slow, tmp_path):
    with slow(held=1) as run:
        wait_for(run, "step 1")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert "step 2" not in run.output
        assert f"stopped by SIGTERM: 1 of 2 shards are done; {HOW_TO_RESUME}" in run.output
    assert [path.name for path in (tmp_path / "out").glob("*/*/.*.lock")] == []


def test_rows_of_a_shard_that_is_not_complete_are_computed_again(slow):
    with slow(held=2) as run:
        wait_for(run, "step 2")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143
        assert "step 3" not in run.output
        assert f"stopped by SIGTERM: 1 of 2 shards are done; {HOW_TO_RESUME}" in run.output
    with slow() as run:
        assert run.wait() == 0, run.output
        assert "1 of 2 shards done, 1 left" in run.output
        assert run.output.count("step") == 2


def test_under_slurm_the_batch_in_hand_is_finished_and_no_checkpoint_saved(slow, slurm, tmp_path):
    folder, variables = slurm
    with slow(held=1, **variables) as run:
        wait_for(run, "step 1")
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 138, run.output
        assert f"stopped by SIGUSR1: 1 of 2 shards are done; {HOW_TO_RESUME}" in run.output
    assert (folder / "asked").read_text() == "requeue 4711\n"
    assert list(tmp_path.rglob("*.ckpt")) == list(Path().glob("*.ckpt")) == []


def test_while_finalizing(tmp_path, script, make_store):
    store, _ = make_store()
    text = f"""
        from lit_extract.storage import finalize
        from lit_extract.cli import main

        def read_back(file):
            say("written")
            time.sleep(60)

        finalize.read_through = read_back
        sys.exit(main(["finalize", {str(store.path)!r}]))
    """
    with script(text) as run:
        wait_for(run, "written")
        assert (tmp_path / ".m_pool-cls.pt.part").exists()
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 143, run.output
        assert run.output == f"written\nlit-extract: stopped by SIGTERM; {HOW_TO_RESUME}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "m_pool-cls.zarr"]
    with runs.command(tmp_path / "log", "finalize", str(store.path)) as run:
        assert run.wait() == 0


def test_without_a_finished_shard_the_job_is_not_queued_again(slow, slurm):
    folder, variables = slurm
    for load, held, text in ((60, None, "loading\n"), (0, 0, "step 0")):
        with slow(load=load, held=held, **variables) as run:
            wait_for(run, text)
            run.process.send_signal(signal.SIGUSR1)
            assert run.wait() == 138, run.output
            assert "not queued again: no shard was finished" in run.output
            assert "--data.shard_rows" in run.output
    assert not (folder / "asked").exists()


def test_in_a_sweep_that_has_finished_another_model_it_is(slow, slurm):
    folder, variables = slurm
    with slow(held=0, **variables, **{signals.PROGRESS: "1"}) as run:
        wait_for(run, "step 0")
        run.process.send_signal(signal.SIGUSR1)
        assert run.wait() == 138, run.output
    assert (folder / "asked").read_text() == "requeue 4711\n"
