"""Whole runs on a folder of a network: one machine, and two that see it through caches of their own."""

import shutil
import socket
from contextlib import ExitStack

import pytest
from helpers import runs
from helpers.network_folder import mounted, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no network folder: {why_not()}"),
]

SETTINGS = ("--data.batch_size", "2", "--data.shard_rows", "2", "--data.num_workers", "0", "--trainer.strategy", "ddp")
# a machine: in a mount namespace of its own, a client's view of the folder is at the place that both machines name
MACHINE = ("unshare", "--mount", "bash", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "machine")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.write_images(tmp_path_factory.mktemp("data") / "images", 24, size=32)


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The features that one process makes on a disk."""
    output = tmp_path_factory.mktemp("reference") / "out"
    runs.complete(images, output, *SETTINGS, "--trainer.devices", "1")
    return runs.features_file(output)


def test_a_run_without_locks(images, reference, tmp_path):
    (tmp_path / "server").mkdir()
    with mounted(tmp_path / "server", tmp_path / "client", cached=20, locks=False) as folder:
        output = folder / "out"
        arguments = (*runs.predict_arguments(images, output), *SETTINGS, "--trainer.devices", "1")
        with runs.command(tmp_path / "refused.log", *arguments) as run:
            assert run.wait() == 2
            assert "its file system has no locks (like NFS without lockd, Lustre without -o flock)" in run.output
        with runs.python(tmp_path / "run.log", "-m", "lit_extract", *arguments, LIT_EXTRACT_NO_LOCKS="1") as run:
            assert run.wait() == 0, run.output
        runs.assert_same_features(runs.features_file(output), reference)
        assert [path.name for path in runs.features_file(output).parent.iterdir()] == [reference.name]


def test_two_machines_of_which_the_first_sees_late_what_the_second_has_written(images, reference, tmp_path):
    server, shared = tmp_path / "server", tmp_path / "shared"
    server.mkdir()
    shared.mkdir()
    # resumed with one shard: of all others the first machine has seen, and remembers, that they are missing
    runs.complete(images, server / "out", *SETTINGS, "--trainer.devices", "1", "--finalize", "false")
    for shard in runs.done_shards(server / "out").keys() - {0}:
        shutil.rmtree(runs.store_folder(server / "out") / "cls" / "c" / str(shard))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        # longer than the run takes: without waiting, the first machine would miss the shards of the second
        clients = [stack.enter_context(mounted(server, tmp_path / f"client-{node}", cached=60)) for node in (0, 1)]
        machines = [
            stack.enter_context(
                runs.python(
                    tmp_path / f"node-{node}.log",
                    *("-m", "lit_extract", *runs.predict_arguments(images, shared / "out"), *SETTINGS),
                    *("--trainer.num_nodes", "2", "--trainer.devices", "1"),
                    prefix=(*MACHINE, str(client), str(shared)),
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)},
                )
            )
            for node, client in enumerate(clients)
        ]
        assert [machine.wait() for machine in machines] == [0, 0], [machine.output for machine in machines]
        assert "(2 ranks): 22 of 22 images" in machines[0].output
        assert [*shared.iterdir()] == [], "only the machines see the folder there"
        runs.assert_same_features(runs.features_file(server / "out"), reference)
