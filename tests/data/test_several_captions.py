"""Several captions a stimulus: each goes through the model by itself; the features of a row are their mean."""

import json

import pandas as pd
import pytest
import torch
from helpers.language_models import save_model

from lit_extract import CaptionDataModule, LanguageExtractor, extract, load_captions, load_features
from lit_extract.common.errors import InputError
from lit_extract.inspection.soundness import soundness_of
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.parity.certificate import RebuildSettings
from lit_extract.parity.certify import certify

CAPTIONS = [["one two three", "two", "a much longer one of several words"], ["four"], ["five six", " ", "seven"]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, save_model(folder, "llama")


@pytest.fixture(params=["csv", "parquet"])
def file(request, tmp_path):
    path = tmp_path / f"captions.{request.param}"
    texts = [";".join(each) for each in CAPTIONS] if request.param == "csv" else CAPTIONS
    table = pd.DataFrame({"nsd_id": [7, 3, 9], "captions": texts})
    table.to_csv(path, index=False) if request.param == "csv" else table.to_parquet(path)
    return path


def run(folder, file, output, used="all", **settings):
    model = LanguageExtractor("tiny", checkpoint=str(folder), loss=True, pool=["avg", "last"], **settings)
    data = CaptionDataModule(str(file), "coco", captions_used=used, token_budget=16, shard_rows=2)
    return extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), str(output)).files


def of_captions(model, tokenizer, texts):
    """Mean over captions of pooled hidden states and losses, one caption at a time and by Transformers alone."""
    found = {"avg": [], "last": [], "loss": [], "bpb": []}
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        states = []
        note = lambda module, inputs, output, states=states: states.append(output)  # noqa: E731
        hooks = [layer.register_forward_hook(note) for layer in model.model.layers]
        with torch.no_grad():
            output = model(ids, labels=ids)
        for hook in hooks:
            hook.remove()
        states = [state[0] if isinstance(state, tuple) else state for state in states]
        found["avg"].append(torch.stack([state[0].mean(0) for state in states]))
        found["last"].append(torch.stack([state[0, -1] for state in states]))
        found["loss"].append(output.loss)
        found["bpb"].append(output.loss * (ids.shape[1] - 1) / torch.tensor(2.0).log() / len(text.encode()))
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def test_all_captions_are_in_the_table(file):
    captions = load_captions(file)
    assert captions["captions"].tolist() == [*CAPTIONS[:2], ["five six", "seven"]]
    assert captions["caption"].tolist() == [texts[0] for texts in CAPTIONS]


def test_rows_are_means_over_their_captions(model_folder, file, tmp_path):
    from transformers import AutoTokenizer

    folder, model = model_folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_id = dict(zip([7, 3, 9], [[text for text in texts if text.strip()] for texts in CAPTIONS], strict=True))
    for path in run(folder, file, tmp_path / "out"):
        features = load_features(path)
        assert features.provenance["captions_used"] == "all"
        for row, stimulus in enumerate(features.stimulus_ids):
            expected = of_captions(model, tokenizer, by_id[stimulus])
            torch.testing.assert_close(features.feats[row], expected[features.provenance["pool"]], rtol=1e-5, atol=1e-5)
            for name in ("loss", "bpb"):
                torch.testing.assert_close(features.extras[f"row_{name}"][row], expected[name], rtol=1e-4, atol=1e-5)
            n_tokens = sum(len(tokenizer(text)["input_ids"]) for text in by_id[stimulus])
            assert features.extras["mask"][row].sum() == n_tokens
        assert soundness_of(path).problems == []


@pytest.mark.parametrize("used", ["all", "first"])
def test_parity(model_folder, file, tmp_path, used):
    folder, _ = model_folder
    path, _ = run(folder, file, tmp_path / "out", used)
    settings = RebuildSettings(device="cpu", checkpoint=str(folder), captions=str(file), model="tiny")
    certificate = certify(path, 3, 0, settings)
    assert certificate["verdict"] == "pass", json.dumps(certificate["failures"])


def test_the_first_alone_is_the_default(model_folder, file, tmp_path):
    folder, _ = model_folder
    first, _ = run(folder, file, tmp_path / "first", "first")
    single = tmp_path / "single.csv"
    pd.DataFrame({"nsd_id": [7, 3, 9], "caption": [texts[0] for texts in CAPTIONS]}).to_csv(single, index=False)
    alone, _ = run(folder, single, tmp_path / "alone", "first")
    assert torch.equal(load_features(first).feats, load_features(alone).feats)
    assert load_features(first).provenance == load_features(alone).provenance


def test_first_and_all_do_not_mix(model_folder, file, tmp_path):
    folder, _ = model_folder
    run(folder, file, tmp_path / "out", "first")
    with pytest.raises(InputError, match="captions_used was None, now 'all'"):
        run(folder, file, tmp_path / "out", "all")


def test_a_batch_is_split_between_captions(model_folder, file, tmp_path, monkeypatch):
    """What does not fit is split anywhere: the mean is taken of what comes out."""
    folder, _ = model_folder
    whole = [load_features(path).feats for path in run(folder, file, tmp_path / "whole")]
    monkeypatch.setattr(LanguageExtractor, "rows_a_pass_on_cpu", 2)
    for path, expected in zip(run(folder, file, tmp_path / "parts"), whole, strict=True):
        torch.testing.assert_close(load_features(path).feats, expected, rtol=1e-5, atol=1e-5)


def test_another_value_is_refused(file):
    with pytest.raises(InputError, match=r"data\.captions_used: 'some'"):
        CaptionDataModule(str(file), "coco", captions_used="some")
