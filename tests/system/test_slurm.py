"""The scripts of configs/slurm on a real SLURM, which runs on this machine for as long as these tests do."""

import re
import sys
from pathlib import Path

import pytest
from helpers import runs
from helpers.slurm_cluster import NODES, PACKAGES, Cluster, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no SLURM can be started ({PACKAGES}): {why_not()}"),
]

SCRIPTS = runs.REPOSITORY / "configs" / "slurm"
SLOW_PREDICT = Path(runs.__file__).with_name("slow_predict.py")
N_IMAGES, N_SHARDS = 160, 80
SETTINGS = ("--data.batch_size", "2", "--data.shard_rows", "2", "--data.num_workers", "0")
BY_RANK = [set(range(rank, N_SHARDS, 2)) for rank in (0, 1)]
HOW_FAR = re.compile(r"stopped by (\w+): (\d+) of 80 shards are done")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster; on PATH of its jobs is a lit-extract whose batches take SLOW_STEP seconds."""
    folder = tmp_path_factory.mktemp("slurm")
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "lit-extract"
    command.write_text(f'#!/bin/bash\nexec {sys.executable} {SLOW_PREDICT} "$@"\n')
    command.chmod(0o755)
    with Cluster(folder / "cluster") as cluster:
        cluster.environment |= {
            **runs.ENVIRONMENT,
            "PATH": f"{tools}:{Path(sys.executable).parent}:{cluster.environment['PATH']}",
            "PYTHONPATH": str(runs.REPOSITORY),
        }
        yield cluster


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.write_images(tmp_path_factory.mktemp("data") / "images", N_IMAGES, size=32)


@pytest.fixture(scope="module")
def interrupted(cluster, images, tmp_path_factory):
    """A job that needs more time than it gets, which starts now and is looked at last; it needs no processor."""
    output = tmp_path_factory.mktemp("interrupted") / "out"
    return two_nodes(cluster, images, output, "--time=3", SLOW_STEP="2.5"), output


@pytest.fixture(scope="module", autouse=True)
def reference(interrupted, images, tmp_path_factory):
    """The features that one process makes."""
    output = tmp_path_factory.mktemp("reference") / "out"
    runs.complete(images, output, *SETTINGS, "--trainer.devices", "1")
    return runs.features_file(output)


def two_nodes(cluster, images, output, *options, **variables):
    """Submit one model on two nodes, each with one task."""
    arguments = [*runs.predict_arguments(images, output)[1:], *SETTINGS]
    options = ("--time=10", "--ntasks-per-node=1", *options)
    return cluster.submit(SCRIPTS / "multi_node.sh", *arguments, options=options, **variables)


def array(cluster, images, output, *options, models=1, **variables):
    """Submit an array of so many tasks of the same model."""
    line = f"lit-extract {' '.join([*runs.predict_arguments(images, output), *SETTINGS])}\n"
    commands = output.with_name(f"{output.name}.txt")
    commands.write_text(line * models)
    options = ("--time=10", f"--array=1-{models}", *options)
    return cluster.submit(SCRIPTS / "array.sh", commands, options=options, **variables)


def n_done(output):
    return len(runs.done_shards(output))


def test_one_model_on_two_nodes_is_that_of_one_process(cluster, images, reference, tmp_path):
    job = two_nodes(cluster, images, tmp_path / "out")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert "(2 ranks): 160 of 160 images" in cluster.log(job)
    runs.assert_same_features(runs.features_file(tmp_path / "out"), reference)


def test_an_array_runs_the_commands_of_a_sweep(cluster, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.REPOSITORY)
    models, output, commands = tmp_path / "models.yml", tmp_path / "it's here", tmp_path / "commands.txt"
    names = ["test_vit.r160_in1k", "test_resnet.r160_in1k"]
    models.write_text(f"vision: [{', '.join(names)}]\n")
    configs = [runs.REPOSITORY / "configs" / name for name in ("demo/vision.yaml", "trainer/cpu.yaml")]
    options = [part for config in configs for part in ("--config", config)]
    subset = ("--data.query", "demo_id < 7 and image != 'x'", "--data.subset", "seven", "--model.pool", "avg")
    code, out, _ = cli(
        "sweep", *options, *subset, "--models", models, "--untrained", "--output_dir", output, "--dry_run"
    )
    assert code == 0
    commands.write_text(out)
    job = cluster.submit(SCRIPTS / "array.sh", commands, options=("--time=10", "--array=1-3"))
    states = [cluster.wait(f"{job}_{task}") for task in (1, 2, 3)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED"], [cluster.log(f"{job}_{task}") for task in (1, 2, 3)]
    assert "has no line 3" in cluster.log(f"{job}_3")
    found = sorted(file.name for file in (output / "demo" / "seven-untrained").glob("*.pt"))
    assert found == sorted(f"{name}_pool-avg-untrained.pt" for name in names)


@pytest.mark.long
def test_cancelled_all_ranks_finish_their_batches(cluster, images, tmp_path):
    output = tmp_path / "out"
    job = two_nodes(cluster, images, output, SLOW_STEP="1")
    cluster.wait_until(job, lambda: n_done(output) >= 4)
    cluster.tool("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    done = n_done(output)
    assert 4 <= done < N_SHARDS
    ((name, said),) = HOW_FAR.findall(cluster.log(job))
    assert (name, done - int(said)) in {("SIGTERM", 0), ("SIGTERM", 1)}, "the other rank may count a moment later"
    assert "Traceback" not in cluster.log(job)
    assert not [process for process in cluster.processes(SLURM_JOB_ID=job) if process.is_running()]


@pytest.mark.long
def test_a_job_whose_node_dies_is_resumed_on_another(cluster, images, reference, tmp_path):
    output = tmp_path / "out"
    job = f"{array(cluster, images, output, f'--nodelist={NODES[2]}', SLOW_STEP='0.1')}_1"
    cluster.wait_until(job, lambda: n_done(output) >= 4)
    cluster.kill_node(NODES[2])
    done = n_done(output)
    cluster.wait_until(job, lambda: cluster.job(job)["Restarts"] == "1")
    cluster.tool("scontrol", "update", f"jobid={job}", "reqnodelist=")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["NodeList"] == NODES[0]
    assert f"resuming {runs.store_folder(output)}: {done} of 80 shards done" in cluster.log(job)
    runs.assert_same_features(runs.features_file(output), reference)


@pytest.mark.long
def test_when_a_rank_dies_the_others_finish_their_shares(cluster, images, tmp_path):
    output = tmp_path / "out"
    job = two_nodes(cluster, images, output, SLOW_STEP="0.3")
    cluster.wait_until(job, lambda: BY_RANK[1] & {*runs.done_shards(output)} and n_done(output) >= 4)
    (second,) = cluster.processes(SLURM_JOB_ID=job, SLURM_PROCID="1")
    second.kill()
    assert cluster.wait(job) == "FAILED"
    done = {*runs.done_shards(output)}
    assert BY_RANK[0] <= done, "rank zero has finished its share"
    assert not BY_RANK[1] <= done
    said = cluster.log(job)
    assert "lit-extract: error: another rank ended; see its own output, or that of srun, for the reason" in said, said
    assert f"srun: error: {NODES[1]}: task 1: Killed" in said
    assert "run the same command again to resume" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_of_two_tasks_of_the_same_model_one_is_refused_and_the_other_one_queued_again_when_it_is_warned(
    cluster, images, reference, tmp_path
):
    output = tmp_path / "out"
    array_job = array(cluster, images, output, models=2, SLOW_STEP="0.2")
    jobs = [f"{array_job}_{task}" for task in (1, 2)]
    cluster.wait_until(array_job, lambda: any(cluster.job(job)["JobState"] == "FAILED" for job in jobs))
    refused, job = sorted(jobs, key=lambda job: cluster.job(job)["JobState"] != "FAILED")
    said = cluster.log(refused)
    assert re.search(r"is being written by another run \(process \d+ on .+\); wait for it", said), said
    cluster.wait_until(job, lambda: n_done(output) >= 2)
    cluster.tool("scancel", "--signal=USR1", job)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert cluster.job(job)["Restarts"] == "1"
    said = cluster.log(job)
    assert f"job {job} is queued again" in said
    ((_, done),) = HOW_FAR.findall(said)
    assert f"resuming {runs.store_folder(output)}: {done} of 80 shards done" in said
    runs.assert_same_features(runs.features_file(output), reference)


def test_a_job_that_needs_more_time_than_it_gets_is_queued_until_it_is_done(cluster, interrupted, reference):
    job, output = interrupted
    assert cluster.wait(job, seconds=400) == "COMPLETED", cluster.log(job)
    said = cluster.log(job)
    assert said.count("is queued again") == int(cluster.job(job)["Restarts"]) >= 1, said
    stops = [(name, int(done)) for name, done in HOW_FAR.findall(said)]
    assert {name for name, _ in stops} == {"SIGUSR1"}
    gained = [done for _, done in stops]
    assert gained == sorted({*gained}), "each start has finished shards"
    found = [int(done) for done in re.findall(r"resuming .*: (\d+) of 80 shards done", said)]
    # the other rank may finish its batch a moment after rank zero has counted
    assert [before <= now <= before + 1 for before, now in zip(gained, found, strict=True)] == [True] * len(gained)
    runs.assert_same_features(runs.features_file(output), reference)
