"""Vision-language models once more by transformers alone: families, faults, and what a file says of itself."""

import pytest
import torch
from helpers.parity import PRECISIONS, exceeds, rewrite, roll, run
from helpers.vision_language_models import PROMPT, save_model

from lit_extract import DemoDataModule, VisionLanguageExtractor

POOLS = ["image", "prompt", "last"]


def files_of(tmp_path, family, precision="32-true", **settings):
    folder = tmp_path / "model"
    if not folder.exists():
        save_model(folder, family)
    settings = {"prompt": PROMPT, "prompt_name": "test", "pool": POOLS, **settings}
    extractor = VisionLanguageExtractor("tiny", checkpoint=str(folder), **settings)
    return folder, run(extractor, DemoDataModule(), tmp_path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["pixtral", "qwen3_vl", "gemma3"])
def test_files_are_certified(tmp_path, certify, family, precision):
    folder, files = files_of(tmp_path, family, precision)
    assert [file.name for file in files] == [f"tiny_pool-{pool}_prompt-test.pt" for pool in POOLS]
    for file in files:
        code, out, certificate = certify(file, "--checkpoint", folder, parity=3)
        assert code == 0, out
        assert certificate["reference"] == "transformers apply_chat_template, output_hidden_states"
        assert certificate["failures"] == certificate["remarks"] == []
        limit = 1e-5 if precision == "32-true" else 5e-2
        assert all(layer["relative_error"] < limit for layer in certificate["layers"])


def test_hidden_states_of_random_weights_need_configuration_and_processor_only(tmp_path, certify):
    folder, (file,) = files_of(tmp_path, "llava", untrained=True, seed=5, layers="hidden_states", pool="image")
    (folder / "model.safetensors").unlink()
    code, out, certificate = certify(file, "--checkpoint", folder)
    assert code == 0, out
    assert [layer["layer"] for layer in certificate["layers"]] == ["embeddings", "blocks.0", "blocks.1", "norm"]


def swapped(file, other):
    """As if one pooling had been that of the other's tokens."""
    feats = torch.load(other, weights_only=True)["feats"]
    rewrite(file, lambda content: content.update(feats=feats))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda files: rewrite(files[0], roll), "0 of 8 stimuli are nearest to their own row"),
        (lambda files: swapped(files[0], files[1]), "WRONG: parity"),
        (lambda files: swapped(files[0], files[2]), "WRONG: parity"),
    ],
)
def test_a_fault_is_found(tmp_path, certify, fault, said):
    folder, files = files_of(tmp_path, "llava")
    fault(files)
    code, out, certificate = certify(files[0], "--checkpoint", folder, parity=8)
    assert code == 2
    assert said in out
    assert exceeds(certificate) > 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_text": "What is moving in this picture?"}, "preprocessing: the file was made with"),
        ({"prompt_text": ""}, "provenance: prompt_text"),
        ({"chat_tokens_sha256": "0" * 64}, "chat_tokens_sha256: the file was made with"),
        ({"chat_tokens_sha256": "0"}, "provenance: chat_tokens_sha256"),
        ({"image_token": "<s>"}, "image_token: the file was made with"),
        ({"preprocessing": {}}, "preprocessing: the file was made with"),
        ({"options": {"cache_dir": "X"}}, "provenance.options: cache_dir"),
        ({"options": {"size": {"shortest_edge": 48}}}, "preprocessing: the file was made with"),
        ({"options": {"max_pixels": 10**12}}, "provenance.options: max_pixels"),
        ({"pool": "cls"}, "provenance: pool"),
        ({"source": "someone/else"}, "does not match weights 'checkpoint'"),
        ({"checkpoint_sha256": "0" * 64}, "has SHA-256"),
        (
            {"weights": "hub:someone/else", "source": "someone/else", "revision": "0" * 40},
            "model: the file names 'someone/else', which models.yml does not list",
        ),
        ({"dataset": "../folder"}, "provenance.dataset: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_file_says_of_itself_reaches_nothing_unchecked(tmp_path, certify, change, said):
    folder, (file,) = files_of(tmp_path, "llava", pool="prompt")
    rewrite(file, lambda content: content["metadata"]["provenance"].update(change))
    code, out, certificate = certify(file, "--checkpoint", folder)
    assert (code, certificate) == (2, None)
    assert said in out
    assert out.count("\n") == 1
