"""Language features against Hugging Face's own hidden states and logits, caption by caption.

B batch, L layers, T tokens, D hidden size.
"""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.language_models import CONFIGS, features, save_captions, save_model

from lit_extract.common.errors import InputError
from lit_extract.modules.language import LanguageExtractor

LENGTHS = [3, 17, 1, 40, 8, 8, 2, 25]


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, request.param)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "captions.csv"
    save_captions(path, LENGTHS)
    return path


def extractor_of(folder, **settings):
    extractor = LanguageExtractor(str(folder), **settings).eval()
    extractor.configure_model()
    return extractor


@torch.no_grad()
def reference(folder, captions):
    """Each caption alone and unpadded through Hugging Face: hidden states (L+1, T, D) and logits (T, V)."""
    import pandas as pd
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    raw = []
    blocks[-1].register_forward_hook(
        lambda _m, _i, output: raw.append(output[0] if isinstance(output, tuple) else output)
    )
    for text in pd.read_csv(captions)["caption"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        output = model(ids, output_hidden_states=True)
        yield text, ids[0], torch.cat(output.hidden_states), raw.pop()[0], output.logits[0]


def test_hidden_states_equal_hugging_face(folder, captions):
    extractor = extractor_of(folder, layers="hidden_states", pool=["avg", "last"])
    assert extractor.layers == ["embeddings", "blocks.0", "blocks.1", "norm"]
    actual = features(extractor, captions, token_budget=100)
    states = [hidden for _, _, hidden, _, _ in reference(folder, captions)]
    torch.testing.assert_close(actual["avg"], torch.stack([h.mean(1) for h in states]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual["last"], torch.stack([h[:, -1] for h in states]), rtol=1e-5, atol=1e-5)


def test_blocks_are_raw_also_the_last(folder, captions):
    extractor = extractor_of(folder, pool="last")
    assert extractor.layers == ["blocks.0", "blocks.1", "blocks.2"]
    actual = features(extractor, captions)["last"]
    for row, (_, _, hidden, raw, _) in enumerate(reference(folder, captions)):
        expected = torch.stack([hidden[1, -1], hidden[2, -1], raw[-1]])
        torch.testing.assert_close(actual[row], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(raw[-1], hidden[3, -1], atol=1e-3)  # the norm would have been seen


def test_loss_and_bits_per_byte_equal_those_from_the_logits(folder, captions, monkeypatch):
    monkeypatch.setattr("lit_extract.modules.language.LOGITS_BYTES", 7 * 4 * 300)  # seven tokens a chunk
    actual = features(extractor_of(folder, loss=True), captions)
    for row, (text, ids, _, _, logits) in enumerate(reference(folder, captions)):
        log_probability = logits[:-1].double().log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        expected = -log_probability.mean(), -log_probability.sum() / math.log(2) / len(text.encode())
        assert actual["loss"][row].item() == pytest.approx(expected[0].item(), rel=1e-4)
        assert actual["bpb"][row].item() == pytest.approx(expected[1].item(), rel=1e-4)


def test_a_caption_is_the_same_alone_among_short_and_among_long_ones(folder, tmp_path):
    extractor = extractor_of(folder, pool=["avg", "last"])
    together = [features_of(extractor, tmp_path, lengths) for lengths in ([5], [5, 1, 2, 3], [5, 60, 90, 100])]
    for other in together[1:]:
        for pool in ("avg", "last"):
            torch.testing.assert_close(other[pool][0], together[0][pool][0], rtol=1e-5, atol=1e-5)


def features_of(extractor, folder, lengths):
    path = folder / f"{'-'.join(map(str, lengths))}.csv"
    save_captions(path, lengths)
    return features(extractor, path)


def test_exclude_bos_leaves_the_first_token_out(llama, captions):
    actual = features(extractor_of(llama, exclude_bos=True, layers="hidden_states", pool=["avg", "last"]), captions)
    states = [hidden for _, _, hidden, _, _ in reference(llama, captions)]
    torch.testing.assert_close(actual["avg"], torch.stack([h[:, 1:].mean(1) for h in states]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual["last"], torch.stack([h[:, -1] for h in states]), rtol=1e-5, atol=1e-5)


def test_exclude_bos_needs_a_tokenizer_that_adds_one(tmp_path, captions):
    save_model(tmp_path, "gpt2", bos=False)
    with pytest.raises(InputError, match=r"^model\.exclude_bos is true"):
        features(extractor_of(tmp_path, exclude_bos=True), captions)


@pytest.mark.parametrize("pad", [None, "<pad>"])
@pytest.mark.parametrize("bos", [True, False])
def test_tokenizers_with_and_without_bos_and_with_a_pad_token_outside_the_vocabulary(tmp_path, captions, bos, pad):
    save_model(tmp_path, "llama", bos=bos, pad=pad)
    actual = features(extractor_of(tmp_path, layers="hidden_states"), captions)["avg"]
    expected = torch.stack([hidden.mean(1) for _, _, hidden, _, _ in reference(tmp_path, captions)])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_caption_of_one_token_has_no_loss_and_the_mean_leaves_it_out(tmp_path):
    save_model(tmp_path, "llama", bos=False)
    rows = features_of(extractor_of(tmp_path, loss=True), tmp_path, [1, 6])
    assert rows["loss"].isnan().tolist() == [True, False]
    assert rows["bpb"].isnan().tolist() == [True, False]


def test_untrained_is_seeded_and_has_the_right_parameters(llama, captions):
    first, again, other = (
        features(extractor_of(llama, untrained=True, seed=seed), captions)["avg"] for seed in (1, 1, 2)
    )
    trained = features(extractor_of(llama), captions)["avg"]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, trained)
    expected = sum(p.numel() for p in extractor_of(llama).model.parameters())
    assert LanguageExtractor(str(llama), untrained=True).num_params == expected


def test_gemma_keeps_its_soft_cap(tmp_path):
    save_model(tmp_path, "gemma2")
    assert LanguageExtractor(str(tmp_path)).provenance()["options"] == {"attn_implementation": "eager"}


def test_no_head_is_computed_unless_loss_is_wanted(llama, captions):
    extractor = extractor_of(llama, layers=[0])
    ran = []
    extractor.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
    for k, block in enumerate(extractor.model.model.layers):
        block.register_forward_pre_hook(lambda *_, k=k: ran.append(k))
    features(extractor, captions)
    assert set(ran) == {0}


@pytest.mark.parametrize("files", [{}, {"config.json": '{"model_type": "clip"}'}])
def test_a_folder_that_holds_no_language_model_is_refused(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"model\.name: "):
        LanguageExtractor(str(tmp_path))


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no weights .*layers\.1\.mlp\.up_proj"):
        extractor_of(tmp_path)


def test_llama_2_is_loaded_from_the_transformers_repository_under_the_name_users_know(llama, tmp_path, monkeypatch):
    """A real cache of the hub with one repository in it; only the question for the commit is answered here."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--meta-llama--Llama-2-7b-hf" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(llama)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha=commit))
    extractor = extractor_of("meta-llama/Llama-2-7b")
    assert extractor.provenance()["model"] == "meta-llama/Llama-2-7b"
    assert extractor.provenance()["weights"] == "hub:meta-llama/Llama-2-7b-hf"
    assert extractor.provenance()["revision"] == commit
    assert extractor.num_params == extractor_of(llama).num_params


def test_sharded_weights_are_loaded_whole(tmp_path, captions):
    model = save_model(tmp_path / "one", "llama")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "many" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = (features(extractor_of(tmp_path / name), captions)["avg"] for name in ("one", "many"))
    torch.testing.assert_close(one, many, rtol=0, atol=0)
    index = tmp_path / "many" / "model.safetensors.index.json"
    text = index.read_text()
    for damaged in (text.replace('": "model-', '": "../one/model-'), text[:-9], "[" * 10**5, "{}"):
        index.write_text(damaged)
        with pytest.raises(InputError, match=r"model\.checkpoint: .*index\.json"):
            extractor_of(tmp_path / "many")


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 10**9), ("hidden_size", 2**40), ("hidden_size", 0)])
def test_a_configuration_of_an_absurd_size_is_refused_at_once(llama, tmp_path, field, value):
    folder = shutil.copytree(llama, tmp_path / "absurd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(InputError, match=r"model\.name: "):
        extractor_of(folder)
