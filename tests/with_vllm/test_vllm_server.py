"""The engine ``server``: a real ``vllm serve`` on this machine."""

import time

import pandas as pd
import pytest
from helpers.running import N_SHARDS, parts

from lit_extract.modules.prompts import read_prompts

CAPTIONS = ("--model.max_tokens", "12", "--model.concurrency", "2")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "captions.csv"


@pytest.fixture
def expected(undisturbed, complete, server):
    if not undisturbed.exists():
        complete(undisturbed, *CAPTIONS, engine=server.engine)
    return undisturbed


def test_captions_do_not_depend_on_how_many_are_under_way(expected, complete, server, tmp_path):
    captions = pd.read_csv(expected)
    assert captions["demo_id"].tolist() == list(range(24))
    assert captions["caption"].nunique() == 24
    many = tmp_path / "many.csv"
    complete(many, *CAPTIONS, "--model.concurrency", "24", "--data.shard_rows", "24", engine=server.engine)
    assert many.read_bytes() == expected.read_bytes()


def test_replies_are_labels_of_the_prompt(complete, server, tmp_path):
    output = tmp_path / "labels.csv"
    complete(output, "--model.prompt", "indoor", engine=server.engine)
    labels = pd.read_csv(output)
    assert set(labels["caption"]) <= set(read_prompts()["indoor"].choices)
    assert "status" not in labels


def test_killed_and_resumed_is_the_same_file(expected, predict, complete, server, tmp_path):
    output = tmp_path / "captions.csv"
    with predict(output, *CAPTIONS, engine=server.engine) as run:
        run.wait_until(lambda: len(parts(output)) >= 2)
        run.kill()
    done = parts(output)
    assert 2 <= len(done) < N_SHARDS
    assert f"{4 * len(done)} images done" in complete(output, *CAPTIONS, engine=server.engine)
    assert output.read_bytes() == expected.read_bytes()


def test_a_server_that_dies_halfway_and_comes_back(expected, predict, server, tmp_path):
    output = tmp_path / "captions.csv"
    with predict(output, *CAPTIONS, "--model.patience", "200", engine=server.engine) as run:
        run.wait_until(lambda: len(parts(output)) >= 2)
        server.kill()
        before = parts(output)
        assert len(before) < N_SHARDS
        assert not server.answers()
        time.sleep(3)
        assert run.process.poll() is None, run.output
        server.start()
        assert run.wait() == 0, run.output
    assert output.read_bytes() == expected.read_bytes()


def test_a_server_that_stays_away_is_said_and_what_is_done_is_safe(expected, predict, complete, server, tmp_path):
    output = tmp_path / "captions.csv"
    with predict(output, *CAPTIONS, "--model.patience", "2", engine=server.engine) as run:
        run.wait_until(lambda: len(parts(output)) >= 2)
        server.kill()
        assert run.wait() == 2, run.output
        assert f"no server answered at '{server.base_url}'" in run.output
        assert "Traceback" not in run.output
    done = parts(output)
    assert 2 <= len(done) < N_SHARDS
    printed = complete(output, *CAPTIONS, engine=server.engine, code=2)
    assert f"no server answered at '{server.base_url}'" in printed
    server.start()
    assert f"{4 * len(done)} images done" in complete(output, *CAPTIONS, engine=server.engine)
    assert output.read_bytes() == expected.read_bytes()


def test_a_model_that_the_server_does_not_have(complete, server, tmp_path, tiny_pixtral):
    printed = complete(tmp_path / "x.csv", "--model.name", "other", engine=server.engine, code=2)
    assert f"has no 'other'; it has {tiny_pixtral}" in printed
