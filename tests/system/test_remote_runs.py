"""Runs that write to S3 and are killed, shared by ranks or robbed of the server: real processes."""

import signal

import psutil
import pytest
from helpers import runs, s3_server
from s3fs import S3FileSystem

pytestmark = pytest.mark.slow

N_IMAGES, N_SHARDS = 200, 25
SHARDS = ("--data.batch_size", "8", "--data.shard_rows", "8", "--data.num_workers", "1")
ONE_RANK = (*SHARDS, "--trainer.devices", "1")
TWO_RANKS = (*SHARDS, "--trainer.devices", "2", "--trainer.strategy", "ddp")
FILE = "folder/all-untrained/test_vit.r160_in1k_pool-cls-untrained"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Images, and their features made locally."""
    folder = tmp_path_factory.mktemp("reference")
    images = runs.write_images(folder / "images", N_IMAGES, size=64)
    runs.complete(images, folder / "features", *ONE_RANK)
    return images, runs.features_file(folder / "features")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with s3_server.server(tmp_path / "server.log") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        S3FileSystem(use_listings_cache=False).mkdir(s3_server.BUCKET)
        yield running
    S3FileSystem.clear_instance_cache()


class Output:
    """A folder on the server."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.files = S3FileSystem(use_listings_cache=False)
        self.address = f"s3://{s3_server.BUCKET}/features"

    def predict(self, images, *options):
        return runs.predict(images, self.tmp_path / "run", *options, "--output_dir", self.address)

    def complete(self, images, *options):
        with self.predict(images, *options) as run:
            assert run.wait() == 0, run.output
            return run.output

    def names(self):
        return [name.partition("/features/")[2] for name in self.files.find(self.address)]

    def done(self):
        """Numbers of the shards that are there."""
        return {int(name.split("/")[-3]) for name in self.names() if ".zarr/cls/c/" in name}

    def assert_same_features(self, expected):
        assert self.names() == [f"{FILE}.pt"]
        copy = self.tmp_path / "copy.pt"
        self.files.get_file(f"{self.address}/{FILE}.pt", str(copy))
        runs.assert_same_features(copy, expected)


@pytest.fixture
def output(server, tmp_path):
    return Output(tmp_path)


def test_killed_and_resumed(reference, output):
    images, expected = reference
    with output.predict(images, *ONE_RANK) as run:
        assert run.wait_until(lambda: len(output.done()) >= 3, pause=0.1), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    done = output.done()
    assert 3 <= len(done) < N_SHARDS
    assert f"{FILE}.pt" not in output.names()
    with output.predict(images, *ONE_RANK) as run:
        assert run.wait() == 2, run.output
        assert "If it was killed, its lock expires in" in run.output
    (lock,) = (name for name in output.names() if name.endswith(".lock"))
    output.files.rm_file(f"{output.address}/{lock}")
    said = output.complete(images, *ONE_RANK)
    assert f"{len(done)} of {N_SHARDS} shards done, {N_SHARDS - len(done)} left" in said
    output.assert_same_features(expected)


def test_two_ranks_and_a_server_that_pauses(reference, output, server):
    """A few seconds without an answer are not the end of a run."""
    images, expected = reference
    with output.predict(images, *TWO_RANKS) as run:
        assert run.wait_until(lambda: len(output.done()) >= 3, pause=0.1), run.output
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(psutil.TimeoutExpired):
            run.process.wait(timeout=8)
        server.process.send_signal(signal.SIGCONT)
        assert run.wait() == 0, run.output
        assert "(2 ranks): 200 of 200 images" in run.output
    output.assert_same_features(expected)


def test_a_server_that_goes_away_ends_the_run_in_one_message(reference, output, server):
    images, _ = reference
    with output.predict(images, *ONE_RANK) as run:
        assert run.wait_until(lambda: len(output.done()) >= 3, pause=0.1), run.output
        server.stop()
        assert run.wait() == 2, run.output
    assert run.output.count("lit-extract: error: can't use 's3://bucket/features/") == 1, run.output
    assert "Could not connect to the endpoint" in run.output
    assert "finished shards are safe: fix that and run the same command again" in run.output
    assert "Traceback" not in run.output
    assert "Unclosed" not in run.output
