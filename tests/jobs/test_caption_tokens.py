"""Pooling ``tokens`` of captions, from the model to the file: each caption's tokens, and which token is which.

Oracle: Transformers' hidden states of each caption alone, without padding.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.language_models import save_captions, save_model
from helpers.text_encoders import save_encoder
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lit_extract import CaptionDataModule, LanguageExtractor, TextEncoderExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.finalize import finalize
from lit_extract.storage.store import Store

LENGTHS = (3, 17, 1, 26, 8, 8, 2, 25)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert", "siglip"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_any(folder, request.param)
    return folder


@pytest.fixture
def llama(tmp_path):
    save_any(tmp_path / "llama", "llama")
    return tmp_path / "llama"


def save_any(folder, name):
    save_model(folder, name) if name in ("llama", "gpt2") else save_encoder(folder, name)
    save_captions(folder / "captions.csv", LENGTHS)


def extractor_of(folder, **settings):
    is_encoder = "bert" in str(folder) or "siglip" in str(folder)
    kind = TextEncoderExtractor if is_encoder else LanguageExtractor
    return kind("tiny", checkpoint=str(folder), **{"pool": "tokens", "layers": "hidden_states", **settings})


def run(folder, output, dtype="float32", captions=None, data_settings=None, finalize=None, **settings):
    data = CaptionDataModule(
        str(captions or folder / "captions.csv"), "test", **{"shard_rows": 3, **(data_settings or {})}
    )
    trainer = predict_trainer("cpu", devices=1, precision="32-true")
    return extract(extractor_of(folder, dtype=dtype, **settings), data, trainer, str(output), finalize=finalize)


@torch.no_grad()
def reference(folder):
    """Token ids and hidden states (L, T, D) of each caption, alone."""
    is_causal = any(name in str(folder) for name in ("llama", "gpt2"))
    model = (
        (AutoModelForCausalLM if is_causal else AutoModel).from_pretrained(folder, attn_implementation="eager").eval()
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tower = getattr(model, "text_model", model)
    for text in pd.read_csv(folder / "captions.csv")["caption"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        inputs = {"input_ids": ids}
        if "siglip" in str(folder):
            inputs = tokenizer(
                text, padding="max_length", max_length=64, return_attention_mask=False, return_tensors="pt"
            )
        states = torch.cat(tower(**inputs, output_hidden_states=True).hidden_states)
        yield ids[0], states[:, : ids.shape[1]]


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_tokens_are_those_of_transformers_and_stay_in_the_store(folder, tmp_path, budget):
    result = run(folder, tmp_path, data_settings={"token_budget": budget})
    assert result.files == []
    assert Store(result.store).is_kept
    features = load_features(result.store)
    expected = [*reference(folder)]
    longest = max(len(ids) for ids, _ in expected)
    assert features.layer_shapes == [(longest, 32)] * 4
    assert features.provenance["longest_caption"] == longest
    for k, layer in enumerate(features.layers):
        for (ids, states), (found_ids, vectors) in zip(expected, features.tokens(layer), strict=True):
            assert found_ids.tolist() == ids.tolist()
            torch.testing.assert_close(vectors, states[k], **CLOSE)
    for row, (ids, _) in enumerate(expected):
        assert (features.feats[row, :, len(ids) :] == 0).all()
        assert (features.extras["token_ids"][row, len(ids) :] == 0).all()
    (_, second), (_, again), (_, first) = features.tokens(-1, [5, 5, 0])
    torch.testing.assert_close(second, expected[5][1][-1], **CLOSE)
    torch.testing.assert_close(first, expected[0][1][-1], **CLOSE)
    assert torch.equal(second, again)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_has_the_same_as_its_store(llama, tmp_path, dtype):
    store = run(llama, tmp_path, dtype).store
    before = load_features(store)
    feats, of_store = before.feats, before.tokens("blocks.1", [6, 1])
    (file,) = finalize(store)
    content = torch.load(file, weights_only=True)
    assert torch.equal(content["feats"], feats)
    assert torch.equal(content["token_ids"], before.extras["token_ids"])
    assert torch.equal(content["mask"], before.extras["mask"])
    for found, expected in zip(load_features(file).tokens("blocks.1", [6, 1]), of_store, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_rows_of_a_store_that_is_not_finished_have_no_tokens(llama, tmp_path):
    store = run(llama, tmp_path).store
    shard = next(iter(Store(store).feats_arrays.values())).key(1)
    (store / shard).unlink()
    features = load_features(store)
    lengths = [len(ids) for ids, _ in features.tokens(0)]
    assert lengths == [4, 18, 2, 0, 0, 0, 3, 26]
    assert run(llama, tmp_path).store == store, "it is resumed"
    assert [len(ids) for ids, _ in load_features(store).tokens(0)] == [length + 1 for length in LENGTHS]


def test_damaged_token_ids_are_computed_again(llama, tmp_path):
    store = run(llama, tmp_path).store
    before = load_features(store).extras["token_ids"]
    place = store / "token_ids/c/1/0"
    damaged = bytearray(place.read_bytes())
    damaged[5] ^= 1
    place.write_bytes(damaged)
    with pytest.raises(InputError, match=r"token_ids of rows 3 to 5 .*damaged"):
        load_features(store)
    run(llama, tmp_path)
    assert torch.equal(load_features(store).extras["token_ids"], before)


def test_other_features_have_no_tokens_of_captions(llama, tmp_path):
    (file,) = run(llama, tmp_path, pool="avg").files
    with pytest.raises(InputError, match=r"tokens: .*which only pooling tokens keeps"):
        load_features(file).tokens(0)
    features = load_features(run(llama, tmp_path).store)
    with pytest.raises(InputError, match=r"rows: 8, -1 must be 0 to 7"):
        features.tokens(0, [0, 8, -1])


def edit(folder, texts):
    table = pd.read_csv(folder / "captions.csv")
    for row, text in texts.items():
        table.loc[row, "caption"] = text
    table.to_csv(folder / "captions.csv", index=False)


@pytest.mark.parametrize("finalized", [True, False])
def test_edited_captions_are_computed_again(llama, tmp_path, finalized):
    result = run(llama, tmp_path / "out", finalize=finalized)
    before = load_features((result.files or [result.store])[0]).feats.clone()
    edit(llama, {4: "two people", 0: "a red car on the street"})
    again, whole = (run(llama, tmp_path / name, finalize=finalized) for name in ("out", "whole"))
    found, expected = (load_features((each.files or [each.store])[0]) for each in (again, whole))
    assert Store(again.store).is_kept if not finalized else again.store is None
    torch.testing.assert_close(found.feats, expected.feats, **CLOSE)
    assert torch.equal(found.extras["token_ids"], expected.extras["token_ids"])
    assert torch.equal(found.extras["mask"], expected.extras["mask"])
    assert torch.equal(found.feats[6:], before[6:])
    assert found.provenance == expected.provenance


@pytest.mark.parametrize("finalized", [True, False])
@pytest.mark.parametrize(("text", "now"), [("a dog " * 15, 31), ("a dog", 26)])
def test_another_longest_caption_is_another_setting(llama, tmp_path, finalized, text, now):
    run(llama, tmp_path, finalize=finalized)
    edit(llama, {3: text})
    with pytest.raises(InputError, match=rf"longest_caption was 27, now {now}.*--overwrite"):
        run(llama, tmp_path, finalize=finalized)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exclude_bos": True}, r"model\.exclude_bos: True can't be combined with model\.pool tokens"),
        ({"pool": ["tokens", "avg"]}, r"model\.pool: .*tokens has its own layers or shapes"),
        ({"data_settings": {"captions_used": "all"}}, r"model\.pool: tokens needs one caption .*'all'; use 'first'"),
    ],
)
def test_what_does_not_fit_together_is_refused(llama, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        run(llama, tmp_path, **settings)
    assert not [*tmp_path.rglob("*.zarr")]


def test_a_text_encoder_keeps_special_tokens_among_all_tokens(tmp_path):
    save_any(tmp_path / "bert", "bert")
    with pytest.raises(InputError, match=r"model\.special_tokens: excluded can't be combined with model\.pool tokens"):
        extractor_of(tmp_path / "bert", special_tokens="excluded")


def test_zarr_itself_reads_the_ids(llama, tmp_path):
    import zarr

    store = run(llama, tmp_path).store
    ids = zarr.open_group(store, mode="r")["token_ids"]
    assert ids.metadata.dimension_names == ("stimulus", "token")
    assert np.array_equal(ids[:], load_features(store).extras["token_ids"].numpy())


PROGRAM = """
import os, signal, sys
from lit_extract import CaptionDataModule, LanguageExtractor, extract
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.store import Store
folder, output, how = sys.argv[1:]
write = Store.write_shard
def killed(self, shard, *rest):
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, shard, *rest)
if how == "kill":
    Store.write_shard = killed
model = LanguageExtractor("tiny", checkpoint=folder, pool="tokens")
data = CaptionDataModule(folder + "/captions.csv", "test", shard_rows=2)
devices, strategy = (2, "ddp") if how == "two" else (1, "auto")
trainer = predict_trainer("cpu", devices=devices, strategy=strategy, precision="32-true")
extract(model, data, trainer, output)
"""


@pytest.mark.slow
def test_killed_and_resumed_and_by_two_ranks_are_the_same_bytes(llama, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = {}
    for name, hows in {"whole": ["go"], "killed": ["kill", "go"], "ranks": ["two"]}.items():
        for how in hows:
            command = [sys.executable, str(program), str(llama), str(tmp_path / name), how]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == (-signal.SIGKILL if how == "kill" else 0), done.stderr
            (store,) = (tmp_path / name).rglob("*.zarr")
            if how == "kill":
                assert Store(store).done_shards() == {0}
        features = load_features(store)
        found[name] = [features.feats, features.extras["token_ids"], features.extras["mask"]]
    for name in ("killed", "ranks"):
        assert all(torch.equal(one, other) for one, other in zip(found[name], found["whole"], strict=True)), name
