"""After some captions were edited, only their rows are computed; all others are the bytes that they were."""

import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers.language_models import save_captions, save_model

from lit_extract import CaptionDataModule, LanguageExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.inspection.soundness import soundness_of
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.finalize import finalize
from lit_extract.storage.store import Store

LENGTHS = (3, 9, 1, 30, 5, 14, 7, 2, 11)
EDITED = {4: "one two three", 5: "a much longer caption of many words than before " * 2}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "llama")
    return folder


@pytest.fixture
def run(model_folder, tmp_path):
    """A function that extracts features of the captions as they are now; it returns the extraction."""
    save_captions(tmp_path / "captions.csv", LENGTHS)

    def do(output="out", finalize=True, loss=True, **settings):
        model = LanguageExtractor("tiny", checkpoint=str(model_folder), loss=loss, pool=["avg", "last"], **settings)
        data = CaptionDataModule(str(tmp_path / "captions.csv"), "own", shard_rows=2)
        trainer = predict_trainer("cpu", devices=1, precision="32-true")
        return extract(model, data, trainer, str(tmp_path / output), finalize=finalize)

    return do


@pytest.fixture
def edit(tmp_path):
    """A function that replaces captions, by row."""

    def do(texts):
        table = pd.read_csv(tmp_path / "captions.csv")
        for row, text in texts.items():
            table.loc[row, "caption"] = text
        table.to_csv(tmp_path / "captions.csv", index=False)

    return do


@pytest.fixture
def computed(monkeypatch):
    """The rows that went through the model."""
    rows, step = [], LanguageExtractor.predict_step

    def noting(self, batch, batch_idx=0):
        rows.extend(batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageExtractor, "predict_step", noting)
    return rows


def contents(extraction):
    return {file.name: torch.load(file, weights_only=True) for file in extraction.files}


def assert_as_if_made_of_these_captions(extraction, whole, before, rows):
    """Edited rows are those of a run of all captions, within rounding; the others are the same bytes as before."""
    others = [row for row in range(len(LENGTHS)) if row not in rows]
    for name, content in contents(extraction).items():
        expected, old = contents(whole)[name], before[name]
        for key in ("feats", "row_loss", "row_bpb"):
            torch.testing.assert_close(content[key], expected[key], rtol=1e-5, atol=1e-5)
            assert torch.equal(content[key][others], old[key][others]), key
        assert torch.equal(content["mask"], expected["mask"])
        assert torch.equal(content["inputs"], expected["inputs"])
        assert content["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert content["metadata"]["provenance"] == expected["metadata"]["provenance"]
    assert all(soundness_of(file).problems == [] for file in extraction.files)


def test_only_edited_rows_are_computed_and_the_file_says_which(run, edit, computed):
    before = contents(run())
    edit(EDITED)
    computed.clear()
    again = run()
    assert sorted(computed) == [4, 5]
    assert again.store is None
    assert_as_if_made_of_these_captions(again, run("whole"), before, EDITED)
    for name, content in contents(again).items():
        first, second = content["metadata"]["notes"]["captions_of_rows"]
        assert first["tokens_sha256"] == before[name]["metadata"]["provenance"]["tokens_sha256"]
        assert second["tokens_sha256"] == content["metadata"]["provenance"]["tokens_sha256"]
        assert (second["rows"], "rows" in first) == ([4, 5], False)
    computed.clear()
    assert run().was_done
    assert computed == []


def test_captions_are_edited_a_second_time(run, edit, computed):
    before = contents(run())
    edit(EDITED)
    run()
    edit({0: "another one", 4: "three"})
    computed.clear()
    again = run()
    assert sorted(computed) == [0, 4]
    assert_as_if_made_of_these_captions(again, run("whole"), before, {0, *EDITED})
    notes = load_features(again.files[0]).metadata["notes"]["captions_of_rows"]
    assert [source.get("rows") for source in notes] == [None, [4, 5], [0, 4]]


def test_a_caption_that_is_put_back_is_computed_again(run, edit, computed, tmp_path):
    text = pd.read_csv(tmp_path / "captions.csv").caption[2]
    before = contents(run())
    edit({2: "changed"})
    run()
    edit({2: text})
    computed.clear()
    for name, content in contents(run()).items():
        torch.testing.assert_close(content["feats"], before[name]["feats"], rtol=1e-5, atol=1e-5)
        assert content["metadata"]["provenance"] == before[name]["metadata"]["provenance"]
    assert computed == [2]


@pytest.mark.parametrize("keeps", ["avg", "last"])
def test_when_one_file_is_missing_all_rows_are_computed(run, edit, computed, keeps):
    for file in run().files:
        if f"pool-{keeps}" not in file.name:
            file.unlink()
    edit(EDITED)
    computed.clear()
    again = run()
    assert sorted(computed) == list(range(len(LENGTHS)))
    for name, content in contents(again).items():
        assert torch.equal(content["feats"], contents(run("whole"))[name]["feats"])


def test_a_store_that_is_not_finished_takes_edited_captions(run, edit, computed):
    store = run(finalize=False).store
    edit(EDITED)
    computed.clear()
    again = run()
    assert sorted(computed) == [4, 5], "both rows of the third shard"
    assert not store.exists()
    for name, content in contents(again).items():
        assert torch.equal(content["feats"], contents(run("whole"))[name]["feats"])


def test_other_stimuli_are_no_edited_captions(run, tmp_path):
    run()
    table = pd.read_csv(tmp_path / "captions.csv")
    table["nsd_id"] += 1
    table.to_csv(tmp_path / "captions.csv", index=False)
    with pytest.raises(InputError, match=r"other stimuli|stimuli"):
        run()


def test_other_settings_are_still_refused(run, edit):
    run()
    edit(EDITED)
    with pytest.raises(InputError, match="exclude_bos was False, now True"):
        run(exclude_bos=True)


def test_finalize_alone_never_mixes_captions(run, edit):
    """A store of edited captions has no row of the earlier ones, whoever finalizes it."""
    store = run(finalize=False).store
    edit(EDITED)
    killed = Store(store)
    provenance = {**killed.provenance, "tokens_sha256": "0" * 64}
    killed.take_captions(provenance, [4, 5])
    with pytest.raises(InputError, match="2 of 9 rows are missing"):
        finalize(store)


@pytest.mark.slow
def test_a_repair_that_is_killed_is_resumed(run, edit, tmp_path, model_folder, computed):
    before = contents(run())
    edit({**EDITED, 8: "the last one"})
    program = f"""
import os, signal, sys
from lit_extract import CaptionDataModule, LanguageExtractor, extract
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.store import Store
write = Store.write_shard
def killed(self, shard, *rest):
    if shard == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, shard, *rest)
Store.write_shard = killed
model = LanguageExtractor("tiny", checkpoint={str(model_folder)!r}, loss=True, pool=["avg", "last"])
data = CaptionDataModule({str(tmp_path / "captions.csv")!r}, "own", shard_rows=2)
extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), {str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert contents_are(tmp_path / "out", before), "the files are whole, and of the earlier captions"
    computed.clear()
    again = run()
    assert computed == [8]
    assert_as_if_made_of_these_captions(again, run("whole"), before, {*EDITED, 8})


def contents_are(folder, before):
    files = {file.name: torch.load(file, weights_only=True) for file in folder.rglob("*.pt")}
    return all(torch.equal(files[name]["feats"], content["feats"]) for name, content in before.items())
