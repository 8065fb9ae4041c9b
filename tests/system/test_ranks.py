"""Two ranks in processes of their own: the same bytes as one, also when they are killed."""

import re
import signal
import socket
from contextlib import ExitStack

import psutil
import pytest
import torch
from helpers import runs

from lit_extract import ImageFolderDataModule, VisionExtractor, extract
from lit_extract.jobs.trainer import predict_trainer

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
        assert "(2 ranks): 1990 of 1990 images" in run.output
    runs.assert_same_features(runs.features_file(output), undisturbed)


def test_two_ranks_of_layers_that_differ_in_width_write_the_same_bytes_as_one(tmp_path):
    images = runs.write_images(tmp_path / "images", 24)
    found = {}
    for name, ranks in (("two", runs.TWO_RANKS), ("one", runs.ONE_RANK)):
        model = ("--model.name", "test_resnet.r160_in1k", "--model.pool", "avg", "--data.shard_rows", "4")
        runs.complete(images, tmp_path / name, *model, "--data.batch_size", "2", *ranks)
        (file,) = (tmp_path / name).rglob("*.pt")
        found[name] = torch.load(file, weights_only=True)["feats"]
    assert list(found["one"]) == list(found["two"])
    assert len({layer.shape for layer in found["one"].values()}) > 1
    assert all(torch.equal(layer, found["two"][name]) for name, layer in found["one"].items())


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
        assert run.wait() == 2
        assert "rank 1 was killed by SIGKILL" in run.output
        assert "run the same command again to resume" in run.output
        assert "[rank0]" not in run.output, "a traceback of rank zero"  # a worker of the killed rank may leave one
        _, alive = psutil.wait_procs(run.others(), timeout=30)
        assert alive == []
    done = runs.done_shards(output)
    assert 3 <= len(done) < runs.N_SHARDS
    assert not runs.features_file(output).exists()
    said = runs.complete(images, output, *runs.TWO_RANKS)
    assert f"{len(done)} of 32 shards done, {32 - len(done)} left" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)


@pytest.mark.long
def test_more_ranks_than_shards_left(reference, tmp_path):
    images, undisturbed = reference
    output = tmp_path / "features"
    runs.complete(images, output, *runs.ONE_RANK, "--finalize", "false")
    (runs.store_folder(output) / "cls" / "c" / "17" / "0" / "0").unlink()
    said = runs.complete(images, output, *runs.TWO_RANKS)
    assert "31 of 32 shards done, 1 left" in said
    assert "(2 ranks): 64 of 64 images" in said
    runs.assert_same_features(runs.features_file(output), undisturbed)


# Of a small dataset, with a model that is slow


EIGHT_SHARDS = (
    "--data.batch_size",
    "2",
    "--data.shard_rows",
    "4",
    "--trainer.devices",
    "2",
    "--trainer.strategy",
    "ddp",
)
NO_WORKER, ONE_WORKER = (("--data.num_workers", number) for number in "01")


@pytest.fixture
def images(tmp_path):
    return runs.write_images(tmp_path / "images", 32, size=32)


def asked_to_stop(images, output, *options, tell, code, name):
    """A run of two ranks that is told to stop while both are in their third batch, and does so at its end."""
    with runs.slow_predict(images, output, *EIGHT_SHARDS, *options, HELD_STEP="2") as run:
        assert run.wait_until(lambda: all(f"step 2 of rank {rank}" in run.output for rank in range(2))), run.output
        tell(run)
        assert run.wait() == code, run.output
        _, alive = psutil.wait_procs(run.others(), timeout=10)
        assert alive == []
        assert_stopped_after_a_batch(run.output, output, name)
        assert "Traceback" not in run.output


def assert_stopped_after_a_batch(said, output, name):
    assert [said.count(f"of rank {rank}\n") for rank in range(2)] == [3, 3], said
    assert len(runs.done_shards(output)) == 2
    assert f"stopped by {name}: 2 of 8 shards are done; run the same command again to resume" in said
    assert said.count("stopped by") == 1


def test_a_signal_to_all_processes_has_each_rank_finish_its_batch(images, tmp_path):
    interrupt = lambda run: run.signal_all(signal.SIGINT)  # noqa: E731
    asked_to_stop(images, tmp_path / "out", *ONE_WORKER, tell=interrupt, code=130, name="SIGINT")
    said = runs.complete(images, tmp_path / "out", *EIGHT_SHARDS, *ONE_WORKER)
    assert " of 8 shards done, " in said
    assert runs.features_file(tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_ends_the_other(images, tmp_path, rank):
    output = tmp_path / "out"
    with runs.slow_predict(images, output, *EIGHT_SHARDS, *NO_WORKER, SLOW_STEP="0.3") as run:
        assert run.wait_until(lambda: all(f"step 2 of rank {rank}" in run.output for rank in range(2))), run.output
        (second_rank(run) if rank else run.process).send_signal(signal.SIGTERM)
        assert run.wait() == 143, run.output
        assert re.search(r"stopped by SIGTERM: \d of 8 shards are done; run the same command", run.output)
        assert run.output.count("stopped by") == 1
        assert "Traceback" not in run.output
        assert psutil.wait_procs(run.others(), timeout=10)[1] == []
    assert 2 <= len(runs.done_shards(output)) < 8


@pytest.mark.long
def test_a_bad_image_of_the_second_rank_is_one_clear_error(images, tmp_path):
    victim = images / "00013.jpg"  # of shard 3, the second one of rank 1
    whole = victim.read_bytes()
    victim.write_bytes(bytes(len(whole)))
    with runs.slow_predict(images, tmp_path / "out", *EIGHT_SHARDS, *NO_WORKER, SLOW_STEP="0.5") as run:
        assert run.wait() == 2, run.output
        (said,) = run.said
        assert said.startswith("lit-extract: error: stimulus 00013.jpg (row 13) can't be decoded")
        _, alive = psutil.wait_procs(run.others(), timeout=10)
        assert alive == []
    done = runs.done_shards(tmp_path / "out")
    assert 1 in done
    assert 3 not in done
    victim.write_bytes(whole)
    assert f"{len(done)} of 8 shards done" in runs.complete(images, tmp_path / "out", *EIGHT_SHARDS, *NO_WORKER)


def two_tasks(stack, images, output, *options, **environment):
    """Two tasks of a SLURM job, as srun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for rank in range(2):
        variables = {**runs.slurm(output.parent, rank, 2), "MASTER_PORT": port, **environment}
        yield stack.enter_context(runs.slow_predict(images, output, *EIGHT_SHARDS, *NO_WORKER, *options, **variables))


def test_tasks_of_a_slurm_job_finish_their_batches_and_queue_it_again_once(images, tmp_path):
    output = tmp_path / "out"
    with ExitStack() as stack:
        first, second = two_tasks(stack, images, output, HELD_STEP="2")
        for task in (first, second):
            assert task.wait_until(lambda task=task: "step 2 of" in task.output), first.output + second.output
        first.process.send_signal(signal.SIGUSR1)
        second.process.send_signal(signal.SIGUSR1)
        assert (first.wait(), second.wait()) == (138, 0), first.output + second.output
        assert_stopped_after_a_batch(first.output + second.output, output, "SIGUSR1")
        assert "stopped" not in second.output
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("seed", "codes", "said"),
    [(0, (0, 0), "already done: "), (1, (2, 0), "made with other settings: seed was 1, now 0")],
)
def test_tasks_that_wait_for_rank_zero_hear_that_there_is_nothing_to_do(images, tmp_path, seed, codes, said):
    model = VisionExtractor("test_vit.r160_in1k", untrained=True, seed=seed)
    data = ImageFolderDataModule(str(images), batch_size=2, shard_rows=4, num_workers=0)
    extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), str(tmp_path / "out"))
    with ExitStack() as stack:
        first, second = two_tasks(stack, images, tmp_path / "out")
        assert (first.wait(), second.wait()) == codes, first.output + second.output
        assert said in first.output
        assert second.output == ""
