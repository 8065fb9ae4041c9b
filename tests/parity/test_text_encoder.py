"""Text encoders once more by transformers alone: families, poolings, faults, and what a file says of itself."""

import pytest
import torch
from helpers.language_models import save_captions
from helpers.parity import PRECISIONS, exceeds, given, rewrite, roll, run
from helpers.text_encoders import FAMILIES, save_encoder, save_head

from lit_extract import CaptionDataModule, TextEncoderExtractor


def files_of(
    tmp_path, family, precision="32-true", truncate=False, head=None, lengths=(3, 17, 2, 40, 8, 8, 1), **settings
):
    folder = tmp_path / "model"
    if not folder.exists():
        save_encoder(folder, family)
        save_captions(folder / "captions.csv", lengths)
        if head is not None:
            save_head(folder, **head)
    extractor = TextEncoderExtractor("tiny", checkpoint=str(folder), **settings)
    data = CaptionDataModule(str(folder / "captions.csv"), "test", truncate=truncate)
    return folder, run(extractor, data, tmp_path / str(len([*tmp_path.iterdir()])), precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_certified(tmp_path, certify, family):
    folder, files = files_of(tmp_path, family, pool=["avg", "last"])
    files += files_of(tmp_path, family, layers="hidden_states", special_tokens="excluded")[1]
    for file in files:
        code, out, certificate = certify(file, *given(folder), parity=7)
        assert code == 0, out
        assert certificate["reference"] == "transformers output_hidden_states"
        assert certificate["failures"] == certificate["remarks"] == []
        assert all(layer["relative_error"] < 1e-5 for layer in certificate["layers"])


@pytest.mark.parametrize("family", ["bert", "roberta", "siglip"])
def test_all_tokens_and_what_stays_of_them_are_certified(tmp_path, certify, family):
    folder, files = files_of(tmp_path, family, layers="hidden_states", pool="tokens")
    files += files_of(tmp_path, family, pool=["avg", "last"], exclude=["special", "sinks"])[1]
    for file in files:
        code, out, certificate = certify(file, *given(folder), parity=7)
        assert code == 0, out
        assert all(layer["relative_error"] < 1e-5 for layer in certificate["layers"])


TANH = "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("mpnet", {"pooling": "mean"}),
        ("bert", {"pooling": ["cls", "max"], "dense": [(16, TANH)], "prompts": {"q": "two people "}, "default": "q"}),
        ("t5", {"pooling": "weightedmean", "dense": [(48, "torch.nn.modules.linear.Identity")]}),
        ("roberta", {"pooling": ["lasttoken", "mean_sqrt_len_tokens"], "normalize": False}),
        ("clip", None),
        ("siglip", None),
    ],
)
def test_the_head_is_certified(tmp_path, certify, family, head, precision):
    folder, (file,) = files_of(tmp_path, family, precision, head=head, pool="head")
    code, out, certificate = certify(file, *given(folder), parity=7)
    assert code == 0, out
    limit = 1e-5 if precision == "32-true" else 5e-2
    assert [layer["relative_error"] < limit for layer in certificate["layers"]] == [True]


def test_class_tokens_of_captions_that_were_cut(tmp_path, certify):
    folder, (file,) = files_of(tmp_path, "mpnet", "bf16-true", truncate=True, lengths=(5, 80, 9), pool="cls")
    code, out, _ = certify(file, *given(folder))
    assert code == 0, out
    assert torch.load(file, weights_only=True)["mask"].sum(dim=1).max() == 64


def test_random_weights_need_configuration_and_tokenizer_only(tmp_path, certify):
    head = {"dense": [(16, TANH), (8, TANH)]}
    folder, (file,) = files_of(tmp_path, "t5", head=head, pool="head", untrained=True, seed=5)
    (folder / "model.safetensors").unlink()
    code, out, _ = certify(file, *given(folder))
    assert code == 0, out
    rewrite(file, lambda content: content["metadata"]["provenance"].update(seed=6))
    assert certify(file, *given(folder))[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: roll(content), "nearest to their own row"),
        (lambda content: content["metadata"]["provenance"].update(special_tokens="excluded"), "WRONG: parity"),
        (lambda content: content["metadata"]["provenance"].update(prefix="two people "), "tokens_sha256"),
        (lambda content: content["metadata"]["provenance"].update(context=-1), "provenance: context"),
        (lambda content: content["metadata"]["provenance"].update(special_tokens="all"), "provenance: special_tokens"),
    ],
)
def test_a_fault_is_found(tmp_path, certify, change, said):
    folder, (file,) = files_of(tmp_path, "bert")
    rewrite(file, change)
    code, out, certificate = certify(file, *given(folder), parity=7)
    assert code == 2
    assert said in out
    if certificate is not None:
        assert exceeds(certificate) > 10
