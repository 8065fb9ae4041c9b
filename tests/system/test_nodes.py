"""Several machines without srun: torchrun, and the same command on each; all of them are this one."""

import socket
from contextlib import ExitStack

import pytest
from helpers import runs

pytestmark = pytest.mark.slow

SETTINGS = ("--data.batch_size", "2", "--data.shard_rows", "4", "--data.num_workers", "0", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.write_images(tmp_path_factory.mktemp("data") / "images", 24, size=32)


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The features that one process makes."""
    output = tmp_path_factory.mktemp("reference") / "out"
    runs.complete(images, output, *SETTINGS, "--trainer.devices", "1")
    return runs.features_file(output)


@pytest.fixture
def start(tmp_path):
    """A function that starts a command for a machine; it is killed after the test, if it runs so long."""
    with ExitStack() as stack:
        yield lambda name, *arguments, **environment: stack.enter_context(
            runs.python(tmp_path / f"{name}.log", *arguments, **environment)
        )


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def by_torchrun(start, images, output, node, nodes, port, per_node=1):
    launcher = ("-m", "torch.distributed.run", "--nnodes", nodes, "--node_rank", node, "--nproc_per_node", per_node)
    meeting_place = ("--master_addr", "127.0.0.1", "--master_port", port)
    command = ("-m", "lit_extract", *runs.predict_arguments(images, output), *SETTINGS)
    trainer = ("--trainer.num_nodes", nodes, "--trainer.devices", per_node)
    return start(f"node-{node}", *map(str, (*launcher, *meeting_place, *command, *trainer)))


def by_hand(start, images, output, node, port, per_node=1):
    command = ("-m", "lit_extract", *runs.predict_arguments(images, output), *SETTINGS)
    trainer = ("--trainer.num_nodes", "2", "--trainer.devices", str(per_node))
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}
    return start(f"node-{node}", *command, *trainer, **variables)


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_torchrun(start, images, reference, port, tmp_path, nodes, per_node):
    output = tmp_path / "out"
    machines = [by_torchrun(start, images, output, node, nodes, port, per_node) for node in range(nodes)]
    assert [machine.wait() for machine in machines] == [0] * nodes, [machine.output for machine in machines]
    assert "(2 ranks): 24 of 24 images" in machines[0].output
    runs.assert_same_features(runs.features_file(output), reference)


@pytest.mark.parametrize("per_node", [1, 2])
def test_the_same_command_on_two_machines(start, images, reference, port, tmp_path, per_node):
    output = tmp_path / "out"
    first, second = (by_hand(start, images, output, node, port, per_node=per_node) for node in (0, 1))
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    assert f"({2 * per_node} ranks): " in first.output
    assert second.output == ""
    runs.assert_same_features(runs.features_file(output), reference)


def test_when_nothing_is_left_the_second_machine_hears_it(start, images, reference, port):
    output = reference.parents[2]
    first, second = (by_hand(start, images, output, node, port) for node in (0, 1))
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    assert "already done: " in first.output
    assert second.output == ""


def test_machines_that_do_not_know_each_other_are_refused(start, images, tmp_path):
    arguments = (*runs.predict_arguments(images, tmp_path / "out"), "--trainer.num_nodes", "2")
    run = start("alone", "-m", "lit_extract", *arguments, NODE_RANK="0", MASTER_PORT="29500")
    assert run.wait() == 2
    (said,) = run.said
    assert said.startswith("lit-extract: error: trainer.num_nodes: 2 machines need srun")
    assert "with MASTER_ADDR in its environment" in said
    assert not (tmp_path / "out").exists()


def test_machines_without_a_shared_folder_are_refused_by_the_first(start, images, port, tmp_path):
    outputs = [tmp_path / name / "disk" / "out" for name in ("first", "second")]
    (tmp_path / "second").mkdir()
    machines = [by_hand(start, images, output, node, port) for node, output in enumerate(outputs)]
    assert [machine.wait() for machine in machines] == [2, 0], [machine.output for machine in machines]
    where = str(runs.features_file(outputs[0]).parent)
    (said,) = machines[0].said
    assert said.startswith(f"lit-extract: error: output_dir: {where!r} on {socket.gethostname()} is another")
    assert machines[1].output == ""
    assert not runs.done_shards(outputs[0])
    assert not [*(tmp_path / "second").iterdir()], "what was made to ask the server is removed"
