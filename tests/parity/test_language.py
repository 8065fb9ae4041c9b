"""Captions once more by transformers alone: architectures, tokenizers, faults, captions that are others."""

import pytest
import sentencepiece
import torch
from helpers.language_models import WORDS, save_captions, save_model, save_tokenizer
from helpers.parity import PRECISIONS, captions_run, exceeds, given, rewrite, roll, run
from language_models import save_tiny
from transformers import AutoModelForCausalLM

from lit_extract import CaptionDataModule, LanguageExtractor
from lit_extract.common.errors import InputError
from lit_extract.parity.hugging_face import before_final_norm


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom"])
def test_captions_are_certified(tmp_path, certify, architecture, precision):
    folder = tmp_path / "model"
    files = captions_run(folder, architecture, tmp_path, precision)
    files += captions_run(folder, architecture, tmp_path / "hf", precision, layers="hidden_states", pool="avg")
    for file in files:
        code, out, certificate = certify(file, *given(folder), parity=8)
        assert code == 0, out
        assert certificate["reference"] == "transformers output_hidden_states"
        assert certificate["failures"] == certificate["remarks"] == []
        limit = 1e-5 if precision == "32-true" else 3e-2
        assert all(layer["relative_error"] < limit for layer in certificate["layers"])
        assert certificate["loss"].keys() == {"loss", "bpb"}
        assert all(error < limit for error in certificate["loss"].values())


def test_untrained_captions_need_the_configuration_only(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, seed=5, pool="avg", exclude_bos=True)
    assert certify(file, *given(folder))[0] == 0
    rewrite(file, lambda content: content["metadata"]["provenance"].update(exclude_bos=False))
    assert certify(file, *given(folder))[0] == 2


@pytest.mark.parametrize("untrained", [True, False])
def test_a_model_that_the_memory_can_not_hold_is_refused(tmp_path, certify, monkeypatch, untrained):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=untrained, pool="avg")
    needed = 4 * torch.load(file, weights_only=True)["num_params"]
    for there, expected in ((needed, 0), (needed - 1, 2)):
        monkeypatch.setattr("lit_extract.parity.reference.host_memory", lambda there=there: there)
        code, out, _ = certify(file, *given(folder))
        assert code == expected, out
    assert "parity: in float32 the model needs" in out


def test_captions_tokenized_by_sentencepiece_and_cut(tmp_path, certify):
    folder = tmp_path / "model"
    save_model(folder, "llama")
    texts = save_captions(folder / "captions.csv", (5, 150, 9, 12))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), tokenizer="sentencepiece")
    data = CaptionDataModule(str(folder / "captions.csv"), "test", truncate=True)
    (file,) = run(extractor, data, tmp_path)
    code, out, _ = certify(file, *given(folder))
    assert code == 0, out
    assert torch.load(file, weights_only=True)["mask"].sum(dim=1).max() == 128


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layers", ["blocks", "hidden_states"])
def test_all_tokens_of_captions_are_certified(tmp_path, certify, precision, layers):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, precision, pool="tokens", layers=layers)
    code, out, certificate = certify(file, *given(folder), parity=8)
    assert code == 0, out
    limit = 1e-5 if precision == "32-true" else 3e-2
    assert all(layer["relative_error"] < limit for layer in certificate["layers"])


def swap_ids(content):
    content["token_ids"] = content["token_ids"][[0, 1, 2, 3, 5, 4, 6, 7]]


def narrow(content, name):
    content[name] = content[name][:, :-1].contiguous()


def next_token(content):
    content["feats"] = content["feats"].roll(1, dims=2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (swap_ids, "token_ids: these rows do not have the tokens of their captions: 4, 5"),
        (next_token, "layers that differ by more than 32-true explains"),
        (lambda content: content.pop("token_ids"), "token_ids is not a tensor of int32 with 2 axes"),
        (
            lambda content: narrow(content, "token_ids"),
            "token_ids has 40 tokens, mask 41",
        ),
        (lambda content: narrow(content, "mask"), "token_ids has 41 tokens, mask 40"),
        (lambda content: content["metadata"]["provenance"].update(longest_caption=9), "the longest caption 9"),
    ],
)
def test_a_fault_in_a_file_of_all_tokens(tmp_path, certify, fault, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, pool="tokens")
    rewrite(file, fault)
    code, out, _ = certify(file, *given(folder), parity=8)
    assert code == 2
    assert said in out


def with_sinks(folder, seed=0):
    """A model in which a token that some captions have is massive."""
    model = save_model(folder, "llama", seed)
    with torch.no_grad():
        model.get_input_embeddings().weight[3 + WORDS.index("red")] *= 200
    model.save_pretrained(folder)
    save_captions(folder / "captions.csv", (3, 17, 2, 40, 8, 8, 1, 25))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("exclude", [["bos", "sinks"], ["special"]])
def test_captions_without_some_tokens_are_certified(tmp_path, certify, precision, exclude):
    folder = tmp_path / "model"
    with_sinks(folder)
    for file in captions_run(folder, "llama", tmp_path, precision, exclude=exclude):
        code, out, certificate = certify(file, *given(folder), parity=8)
        assert code == 0, out
        limit = 1e-5 if precision == "32-true" else 3e-2
        assert all(layer["relative_error"] < limit for layer in certificate["layers"])


def one_sink_more(content):
    content["n_sinks"][3, 1] += 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (one_sink_more, "n_sinks: row 3 has "),
        (lambda content: content.pop("n_sinks"), "n_sinks is not a tensor of int32 with 2 axes"),
        (
            lambda content: narrow(content, "n_sinks"),
            "n_sinks has 2 columns for 3 layers",
        ),
        (lambda content: content.pop("n_excluded"), "n_excluded is not a tensor of int32 with 1 axes"),
        (lambda content: content["metadata"]["provenance"].update(exclude=["sinks"]), "WRONG: parity"),
        (lambda content: content["metadata"]["provenance"].update(exclude=["bos", "pad"]), "provenance: exclude"),
        (lambda content: content["metadata"]["provenance"].update(sinks_above=0), "provenance: sinks_above"),
        (lambda content: content["metadata"]["provenance"].update(sinks_above=1000.0), "n_sinks: row "),
    ],
)
def test_a_fault_in_what_was_left_out(tmp_path, certify, fault, said):
    folder = tmp_path / "model"
    with_sinks(folder)
    (file,) = captions_run(folder, "llama", tmp_path, pool="avg", exclude=["bos", "sinks"])
    rewrite(file, fault)
    code, out, _ = certify(file, *given(folder), parity=8)
    assert code == 2
    assert said in out


def norm_the_last_block(content, folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        content["feats"][:, -1] = model.model.norm(content["feats"][:, -1])


def wrong_loss(content, folder):
    content["row_loss"] *= 1.05
    content["loss"] *= 1.05


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda content, _: roll(content), "stimulus 0 (row 0) is in row 1"),
        (lambda content, _: content.update(feats=content["feats"][:, [1, 0, 2]]), "blocks.0 of the file is blocks.1"),
        (norm_the_last_block, "explains: blocks.2 (cosine"),
        (wrong_loss, "loss has a relative error of 0.05"),
    ],
)
def test_a_fault_in_features_of_captions(tmp_path, certify, precision, fault, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, precision, pool="last")
    rewrite(file, lambda content: fault(content, folder))
    code, out, certificate = certify(file, *given(folder), parity=8)
    assert code == 2
    assert said in out
    if fault is not wrong_loss:
        assert exceeds(certificate) > 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "captions: missing; pass the file with the captions 'test' of captions, --captions FILE"),
        (["--captions", "nowhere.csv"], "no file 'nowhere.csv'"),
    ],
)
def test_captions_that_are_not_there(tmp_path, certify, arguments, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, pool="last")
    code, out, certificate = certify(file, "--checkpoint", folder, *arguments)
    assert (code, certificate) == (2, None)
    assert "NOT CERTIFIED" in out
    assert said in out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dog", "cat", "tokens_sha256: the file was made with"),
        ("dog", "horses", "stimuli have changed since the file was made"),
        ("\n1,", "\n99,", "has no caption for 1, which the features file has"),
    ],
)
def test_captions_that_are_others(tmp_path, certify, old, new, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, pool="last")
    captions = folder / "captions.csv"
    text = captions.read_text()
    assert old in text
    (tmp_path / "other.csv").write_text(text.replace(old, new, 1))
    code, out, _ = certify(file, "--checkpoint", folder, "--captions", tmp_path / "other.csv")
    assert code == 2
    assert said in out


@torch.no_grad()
@pytest.mark.parametrize("is_final", [True, False])
def test_what_is_called_a_norm_must_prove_to_be_the_final_one(tmp_path, is_final):
    model = save_model(tmp_path, "llama")
    ids = torch.tensor([[1, 7, 5, 9]])
    raw = []
    model.model.layers[-1].register_forward_hook(lambda _m, _i, output: raw.append(output))

    def last_state():
        return model(ids, output_hidden_states=True).hidden_states[-1]

    normed = last_state()
    model.model.another_norm = torch.nn.LayerNorm(32)  # never used
    if is_final:
        torch.testing.assert_close(before_final_norm(model.model, last_state, normed), raw[0], rtol=0, atol=0)
        return
    model.model.norm.requires_grad_(False).weight += 1  # as if it had not been the one that gave this
    with pytest.raises(InputError, match="no final norm found in LlamaModel"):
        before_final_norm(model.model, last_state, normed)


@pytest.mark.parametrize("model_type", ["mamba", "bert", "gemma3n_text", "mistral3", "cohere", "opt"])
@pytest.mark.parametrize("layers", ["hidden_states", [0, 1]])
def test_families_of_other_hidden_states_are_certified(tmp_path, certify, model_type, layers):
    folder = tmp_path / "model"
    save_tiny(model_type, folder)
    save_tokenizer(folder)
    save_captions(folder / "captions.csv", (3, 17, 2, 8))
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), pool="avg", loss=True, layers=layers)
    (file,) = run(extractor, CaptionDataModule(str(folder / "captions.csv"), "test"), tmp_path)
    code, out, certificate = certify(file, *given(folder))
    assert code == 0, out
    assert all(layer["relative_error"] < 1e-5 for layer in certificate["layers"])
    rewrite(file, roll_each)
    assert certify(file, *given(folder))[0] == 2


def roll_each(content):
    feats = content["feats"]  # of layers that differ in shape, a tensor each
    content["feats"] = (
        {layer: of_layer.roll(1, 0) for layer, of_layer in feats.items()}
        if isinstance(feats, dict)
        else feats.roll(1, 0)
    )
