"""Captions of widely varying length through runs that are killed, and through two ranks: the same bytes."""

import random
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from helpers import runs
from helpers.language_models import save_captions, save_model

pytestmark = pytest.mark.slow

N_CAPTIONS, SHARD_ROWS = 3000, 50
N_SHARDS = 60
SHARDS = ("--data.shard_rows", str(SHARD_ROWS))
PLAN = ("--data.token_budget", "160", *SHARDS)
TRAINER = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
TWO_RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def predict(folder, output, *options, plan=PLAN, **environment):
    config = runs.REPOSITORY / "configs" / "nsd" / "language.yaml"
    model = ("--model.name", "tiny", "--model.checkpoint", str(folder / "model"), "--model.loss", "true")
    captions = ("--data.captions", str(folder / "captions.csv"), "--data.prompt_name", "test", "--data.subset", "first")
    log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
    where = ("--output_dir", str(output))
    command = ("predict", "--config", str(config), *model, *captions, *plan, *TRAINER, *where, *options)
    return runs.slow(log, *command, **environment) if environment else runs.command(log, *command)


def complete(folder, output, *options, **settings):
    with predict(folder, output, *options, **settings) as run:
        assert run.wait() == 0, run.output
        return run.output


def file_of(output):
    return output / "nsd" / "first" / "tiny_pool-avg_prompt-test.pt"


def done_shards(output):
    return list(file_of(output).with_suffix(".zarr").glob("avg/c/*/0/0"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    save_model(folder / "model", "llama")
    generator = random.Random(0)
    save_captions(folder / "captions.csv", [generator.choice((1, 2, 5, 9, 14, 30, 100)) for _ in range(N_CAPTIONS)])
    complete(folder, folder / "features")
    return folder


def assert_same(output, reference):
    file, undisturbed = file_of(output), file_of(reference / "features")
    runs.assert_same_features(file, undisturbed)
    found, expected = (torch.load(path, weights_only=True) for path in (file, undisturbed))
    for name in ("mask", "row_loss", "row_bpb"):
        assert found[name].numpy().tobytes() == expected[name].numpy().tobytes(), name
    assert (found["loss"], found["bpb"]) == (expected["loss"], expected["bpb"])


def test_killed_and_resumed_captions_give_the_same_bytes(reference, tmp_path):
    output = tmp_path / "features"
    for at_least in (2, 17, 40):
        with predict(reference, output) as run:
            assert run.wait_until(lambda enough=at_least: len(done_shards(output)) >= enough), run.output
            run.signal_all(signal.SIGKILL)
            run.wait()
        assert at_least <= len(done_shards(output)) < N_SHARDS
        assert not file_of(output).exists()
    done = len(done_shards(output))
    assert f"{done} of {N_SHARDS} shards done, {N_SHARDS - done} left" in complete(reference, output)
    assert_same(output, reference)


def test_two_ranks_killed_and_finished_by_one_give_the_same_bytes(reference, tmp_path):
    output = tmp_path / "features"
    with predict(reference, output, *TWO_RANKS) as run:
        assert run.wait_until(lambda: len(done_shards(output)) >= 8), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    assert 8 <= len(done_shards(output)) < N_SHARDS
    complete(reference, output)
    assert_same(output, reference)


def test_two_ranks_give_the_same_bytes_as_one(reference, tmp_path):
    assert "(2 ranks): 3000 of 3000 captions" in complete(reference, tmp_path / "features", *TWO_RANKS)
    assert_same(tmp_path / "features", reference)


def test_two_ranks_with_the_default_budget_share_it(reference, tmp_path):
    given, chosen = tmp_path / "given", tmp_path / "chosen"
    said = complete(reference, chosen, *TWO_RANKS, plan=SHARDS)
    assert "(2 ranks): 3000 of 3000 captions" in said
    complete(reference, given, plan=(*SHARDS, "--data.token_budget", "2048"))
    runs.assert_same_features(file_of(chosen), file_of(given))


def test_of_captions_that_were_edited_only_their_rows_are_computed(reference, tmp_path):
    output = shutil.copytree(reference / "features", tmp_path / "features")
    captions = pd.read_csv(reference / "captions.csv")
    captions.loc[[7, 2000], "caption"] = ["another one", "and one more"]
    captions.to_csv(tmp_path / "captions.csv", index=False)
    said = complete(reference, output, "--data.captions", str(tmp_path / "captions.csv"))
    assert "computing again: 2 captions were edited: 7, 2000" in said
    found, before = (torch.load(file_of(folder), weights_only=True) for folder in (output, reference / "features"))
    same = (found["feats"] == before["feats"]).flatten(1).all(dim=1)
    assert (~same).nonzero().flatten().tolist() == [7, 2000]
