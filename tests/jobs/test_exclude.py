"""What poolings leave out of captions, in stores and files: counted by row and layer, resumed, merged and shown."""

import json

import pandas as pd
import pytest
import torch
from helpers.language_models import WORDS, save_captions, save_model

from lit_extract import CaptionDataModule, LanguageExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.inspection.soundness import soundness_of
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.finalize import finalize
from lit_extract.storage.store import Store

LENGTHS = (3, 9, 1, 30, 5, 14, 7, 2, 11)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = save_model(folder, "llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[3 + WORDS.index("red")] *= 200
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(model_folder, tmp_path):
    """A function that extracts features of the captions as they are now."""
    save_captions(tmp_path / "captions.csv", LENGTHS)

    def do(output="out", **settings):
        known = {"exclude": ["bos", "sinks"], "pool": ["avg", "last"]}
        given = {name: settings.pop(name) for name in ("finalize",) if name in settings}
        model = LanguageExtractor("tiny", checkpoint=str(model_folder), **{**known, **settings})
        data = CaptionDataModule(str(tmp_path / "captions.csv"), "own", shard_rows=2)
        trainer = predict_trainer("cpu", devices=1, precision="32-true")
        return extract(model, data, trainer, str(tmp_path / output), **given)

    return do


def by_hand(tmp_path):
    """How often each caption has the massive token."""
    return [caption.split().count("red") for caption in pd.read_csv(tmp_path / "captions.csv")["caption"]]


def test_the_file_has_the_counts_of_each_row_and_layer(run, tmp_path, cli):
    result = run()
    assert any(by_hand(tmp_path))
    for file in result.files:
        assert soundness_of(file).problems == []
        content = torch.load(file, weights_only=True)
        assert content["n_sinks"].dtype == content["n_excluded"].dtype == torch.int32
        assert content["n_sinks"].shape == (len(LENGTHS), 3)
        assert content["n_sinks"][:, 0].tolist() == by_hand(tmp_path)
        assert content["n_excluded"].tolist() == [1] * len(LENGTHS)
        assert content["metadata"]["format"] == 1, "earlier versions read it"
        code, out, _ = cli("show", file)
        assert code == 0
        means = content["n_sinks"].float().mean(dim=0).tolist()
        assert f"mean over captions: blocks.0 {means[0]:.2f}, blocks.1 {means[1]:.2f}" in out
        assert "exclude: ['bos', 'sinks']" in out
    assert run().was_done


def test_a_store_is_resumed_and_has_them_too(run, tmp_path):
    whole = load_features(run("whole").files[0])
    store = run(finalize=False).store
    group = json.loads((store / "zarr.json").read_text())["attributes"]
    assert (group["format"], group["layer_shapes"]) == (4, [[32]] * 3)
    array = next(iter(Store(store).feats_arrays.values()))
    (store / array.key(1)).unlink()
    with pytest.raises(InputError, match="2 of 9 rows are missing"):
        finalize(store)
    file, _ = run().files
    assert torch.equal(load_features(file).feats, whole.feats)
    assert torch.equal(load_features(file).extras["n_sinks"], whole.extras["n_sinks"])


def test_edited_captions_have_their_own_counts(run, tmp_path):
    run()
    table = pd.read_csv(tmp_path / "captions.csv")
    table.loc[3, "caption"] = "red red a dog sits near the tree"
    table.to_csv(tmp_path / "captions.csv", index=False)
    file, _ = run().files
    content = torch.load(file, weights_only=True)
    assert content["n_sinks"][:, 0].tolist() == by_hand(tmp_path)
    torch.testing.assert_close(content["feats"], load_features(run("whole").files[0]).feats, rtol=1e-5, atol=1e-5)


def test_it_is_another_setting(run):
    run(exclude=None)
    with pytest.raises(InputError, match=r"exclude was None, now \['bos', 'sinks'\], sinks_above was None, now 10"):
        run()
