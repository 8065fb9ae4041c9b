"""Runs of the command line with the real engine, on a tiny Pixtral; only where vLLM is installed (make test-vllm)."""

import importlib.util
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.running import DEMO_IMAGES, ENGINE_OPTIONS, SHARD_ROWS, Run, Server

# Without vLLM there is nothing to collect here: `make test` is of everything else.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*"]


@pytest.fixture(scope="session")
def tiny_pixtral(tmp_path_factory):
    from helpers.tiny_pixtral import make

    return make(tmp_path_factory.mktemp("model") / "tiny-pixtral")


@pytest.fixture
def predict(tmp_path, tiny_pixtral):
    """A context manager that runs ``lit-extract predict`` on the demo photographs, and leaves no process behind."""

    @contextmanager
    def run(output, *options, engine=("--model.engine_options", ENGINE_OPTIONS)):
        log = tmp_path / f"{time.monotonic_ns()}.log"
        command = (sys.executable, "-m", "lit_extract", "predict", "--config", "configs/demo/captions.yaml")
        settings = ("--model.name", tiny_pixtral, "--data.shard_rows", SHARD_ROWS, "--output", output)
        process = Run(log, *command, *settings, *engine, *options)
        try:
            yield process
        finally:
            process.kill()

    return run


@pytest.fixture
def complete(predict):
    """Runs ``lit-extract predict`` to its end, and returns what it printed."""

    def run(output, *options, code=0, **arguments):
        with predict(output, *options, **arguments) as process:
            assert process.wait() == code, process.output
            return process.output

    return run


@pytest.fixture
def photographs(tmp_path):
    """A copy of the demo photographs, to be damaged."""
    return Path(shutil.copytree(DEMO_IMAGES, tmp_path / "photographs"))


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_pixtral):
    served = Server(tiny_pixtral, tmp_path_factory.mktemp("server"))
    try:
        served.start()
        yield served
    finally:
        served.kill()
