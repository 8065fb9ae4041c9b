"""The engine in this process: real vLLM, a tiny Pixtral with random weights, the demo photographs."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from helpers import one_by_one
from helpers.running import DEMO_IMAGES, ENVIRONMENT, N_SHARDS, parts

from lit_extract.modules.prompts import read_prompts

PHOTOGRAPHS = pd.read_csv(DEMO_IMAGES / "photographs.csv")
CAPTIONS = ("--model.max_tokens", "12")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Where the captions of a run that no one disturbed are, once there has been one."""
    return tmp_path_factory.mktemp("undisturbed") / "captions.csv"


@pytest.fixture
def expected(undisturbed, complete):
    if not undisturbed.exists():
        complete(undisturbed, *CAPTIONS)
    return undisturbed


def test_captions_are_what_vllm_replies_about_each_image_alone(expected, tiny_pixtral):
    captions = pd.read_csv(expected)
    assert captions["demo_id"].tolist() == list(range(24))
    assert captions.columns.tolist() == [*PHOTOGRAPHS.columns, "caption", "model", "prompt", "status"]
    assert captions["caption"].nunique() == 24, "equal captions would hide a permutation"
    prompt = read_prompts()["caption"].text
    images = [str(DEMO_IMAGES / path) for path in captions["path"]]
    command = [sys.executable, one_by_one.__file__, str(tiny_pixtral), prompt, *images]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout.splitlines()[-1])
    assert captions["caption"].tolist() == [text.strip() for text in alone]


def test_killed_and_resumed_is_the_same_file(expected, predict, complete, tmp_path):
    output = tmp_path / "captions.csv"
    with predict(output, *CAPTIONS) as run:
        run.wait_until(lambda: len(parts(output)) >= 2)
        run.kill()
    done = parts(output)
    assert 2 <= len(done) < N_SHARDS
    assert not output.exists()
    with predict(output, *CAPTIONS) as run:
        run.wait_until(lambda: len(parts(output)) > len(done))
        assert parts(output).items() >= done.items(), "nothing is captioned twice"
        assert run.wait() == 0, run.output
        assert f"resuming {output}: {4 * len(done)} images done, {24 - 4 * len(done)} left\n" in run.output
    assert output.read_bytes() == expected.read_bytes()
    assert not output.with_name("captions.csv.parts").exists()
    assert "already done" in complete(output, *CAPTIONS)


@pytest.mark.parametrize("prompt", ["motion", "indoor", "scene"])
def test_replies_are_labels_of_the_prompt(complete, tmp_path, prompt):
    output = tmp_path / "labels.parquet"
    complete(output, "--model.prompt", prompt)
    labels = pd.read_parquet(output)
    assert set(labels["caption"]) <= set(read_prompts()[prompt].choices)
    assert labels.columns.tolist() == [*PHOTOGRAPHS.columns, "caption", "model", "prompt"], "all is ok: no status"


def test_choices_of_a_prompt_of_ones_own(complete, tmp_path):
    output = tmp_path / "labels.csv"
    choices = ["ja", "nein", 'weiß nicht, "vielleicht"', "東京"]
    question = "Is this, perhaps, a photograph?"
    complete(output, "--model.prompt", question, "--model.choices", json.dumps(choices), "--model.temperature", "1")
    labels = pd.read_csv(output)
    assert set(labels["caption"]) <= set(choices)
    assert labels["caption"].nunique() > 1, "one label for all would show nothing"
    assert set(labels["prompt"]) == {question}


def test_images_that_fail_are_recorded_and_done_again_when_mended(expected, complete, photographs, tmp_path):
    output = tmp_path / "captions.csv"
    broken, missing = photographs / PHOTOGRAPHS["path"][5], photographs / PHOTOGRAPHS["path"][6]
    whole = broken.read_bytes(), missing.read_bytes()
    broken.write_bytes(whole[0][: len(whole[0]) // 2])
    missing.unlink()
    settings = (*CAPTIONS, "--data.root", photographs)
    printed = complete(output, *settings, code=3)
    assert "22 of 24 images have a caption" in printed
    captions = pd.read_csv(output, keep_default_na=False)
    assert captions["caption"][[5, 6]].tolist() == ["", ""]
    assert captions["status"][5].startswith(f"failed: {broken}: OSError: ")
    assert "FileNotFoundError" in captions["status"][6]
    rest = [row for row in range(24) if row not in (5, 6)]
    reference = pd.read_csv(expected)["caption"]
    assert captions["caption"][rest].tolist() == reference[rest].tolist()

    broken.write_bytes(whole[0])
    missing.write_bytes(whole[1])
    before = parts(output)
    printed = complete(output, *settings)
    assert "22 images done, 2 left, 2 of them again because they failed" in printed
    assert len(before) == N_SHARDS
    assert output.read_bytes() == expected.read_bytes()


def test_an_image_that_vllm_refuses_takes_no_other_with_it(complete, photographs, tmp_path):
    from PIL import Image

    output = tmp_path / "captions.csv"
    large = photographs / PHOTOGRAPHS["path"][2]
    Image.open(large).resize((1024, 1024)).save(large)  # 64 × 64 patches, more than the context holds
    options = "{enforce_eager: true, dtype: float32, max_model_len: 2048}"
    settings = (*CAPTIONS, "--data.root", photographs, "--data.query", "demo_id < 4")
    complete(output, *settings, engine=("--model.engine_options", options), code=3)
    captions = pd.read_csv(output, keep_default_na=False)
    assert [bool(text) for text in captions["caption"]] == [True, True, False, True]
    assert "2048" in captions["status"][2]
    reduced = tmp_path / "reduced.csv"
    complete(reduced, *settings, "--model.max_image_size", "512", engine=("--model.engine_options", options))
    assert pd.read_csv(reduced)["caption"].notna().all()
