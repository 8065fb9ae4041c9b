"""Vision-language models: equal to transformers' own hidden states, pooled by hand; what is sent; what is refused."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers.vision_language_models import MAKERS, PROMPT, save_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from lit_extract.common.errors import InputError
from lit_extract.data.batches import ProcessedBatches
from lit_extract.datasets import load_dataset
from lit_extract.modules.vision_language import VisionLanguageExtractor

POOLS = ["image", "prompt", "last"]
SIZES = [(40, 30), (30, 40), (64, 64), (64, 64), (90, 20)]
WORDS = ["Describe", "Ġthis", "Ġimage", "Ġin", "Ġone", "Ġplain", "ĠEnglish", "Ġsentence", "."]
IMAGE_TOKENS = {
    "pixtral": "[IMG]",
    "mistral3": "[IMG]",
    "llava": "<image>",
    "llava_next": "<image>",
    "llava_onevision": "<image>",
    "qwen2_vl": "<|image_pad|>",
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "gemma3": "<image_soft_token>",
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "internvl": "<IMG_CONTEXT>",
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A function from a family to the folder of a model, made once."""

    def folder(family):
        path = tmp_path_factory.getbasetemp() / "vision-language" / family
        if not path.exists():
            save_model(path, family)
        return path

    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of pictures of noise, of differing shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    for number, (width, height) in enumerate(SIZES):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def extractor_of(folder, **settings):
    return VisionLanguageExtractor(str(folder), **{"prompt": PROMPT, "prompt_name": "test", "pool": POOLS, **settings})


def features(extractor, images, batches):
    """What a run makes of batches of rows (N, P, L, D)."""
    extractor.configure_model()
    found = {}
    for batch in ProcessedBatches(load_dataset("folder", str(images)), batches, extractor.preprocessing):
        outputs = extractor.predict_step(batch)
        for place, row in enumerate(outputs["index"].tolist()):
            pooled = torch.stack([outputs["feats"][pool][place] for pool in extractor.pools])
            found[row] = pooled.unflatten(1, (len(extractor.layers), -1))
    return torch.stack([found[row] for row in sorted(found)])


def by_hand(folder, images, is_raw):
    """Transformers' hidden states of one picture after the other, pooled by the names of the tokens.

    The last is after the final norm; ``is_raw``: before it.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if is_raw:
        model.eval().get_decoder().norm = nn.Identity()
    rows = []
    for number in range(len(SIZES)):
        content = [{"type": "image", "image": Image.open(images / f"{number}.png")}, {"type": "text", "text": PROMPT}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        names = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        first = max(place for place, name in enumerate(names) if name == WORDS[0])
        assert names[first : first + len(WORDS)] == WORDS
        of_image = [place for place, name in enumerate(names) if name == IMAGE_TOKENS[folder.name]]
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        tokens = of_image, range(first, first + len(WORDS)), [len(names) - 1]
        rows.append(torch.stack([torch.stack([state[0, [*places]].mean(0) for state in states]) for places in tokens]))
    return torch.stack(rows)  # (N, P, L + 1, D)


@pytest.mark.parametrize("family", MAKERS)
def test_equal_to_the_hidden_states_of_transformers_alone_and_in_company(folders, images, family):
    folder = folders(family)
    normed, raw = (by_hand(folder, images, is_raw) for is_raw in (False, True))
    extractor = extractor_of(folder, layers="hidden_states")
    assert extractor.layers == ["embeddings", "blocks.0", "blocks.1", "norm"]
    together = features(extractor, images, [[3, 0, 1, 4], [2]])
    torch.testing.assert_close(together, normed, rtol=1e-5, atol=1e-5)
    alone = features(extractor, images, [[row] for row in range(len(SIZES))])
    assert torch.equal(alone, together)
    blocks = features(extractor_of(folder), images, [range(len(SIZES))])
    torch.testing.assert_close(blocks, raw[:, :, 1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(raw[:, :, -1], normed[:, :, -1], rtol=0.1)
    some = features(extractor_of(folder, layers=[-2, 0], pool="last"), images, [range(len(SIZES))])
    assert torch.equal(some, blocks[:, 2:, [1, 0]])
    assert all(len(together[:, pool, -1].unique(dim=0)) == len(SIZES) for pool in range(len(POOLS)))


@pytest.mark.parametrize("family", ["pixtral", "gemma3", "qwen3_vl"])
def test_bf16_is_near_and_the_rotary_frequencies_stay(folders, images, family):
    extractor = extractor_of(folders(family))
    exact = features(extractor, images, [[0, 1]])
    other = extractor_of(folders(family))
    other._trainer = SimpleNamespace(
        precision="bf16-true",
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=0,
        num_devices=1,
    )
    rounded = features(other, images, [[0, 1]])
    assert 1e-4 < ((rounded - exact).norm() / exact.norm()).item() < 3e-2
    assert {parameter.dtype for parameter in other.model.parameters()} == {torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for name, buffer in other.model.named_buffers() if "inv_freq" in name)


def test_an_image_that_cannot_be_decoded_is_nan_and_changes_no_other(folders, images, tmp_path):
    extractor = extractor_of(folders("pixtral"))
    expected = features(extractor, images, [range(len(SIZES))])
    copied = shutil.copytree(images, tmp_path / "pictures")
    (copied / "1.png").write_bytes(b"no picture")
    found = features(extractor, copied, [range(len(SIZES))])
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


def test_what_was_sent_is_in_the_provenance(folders):
    extractor = extractor_of(folders("pixtral"))
    sent = f"<s>[INST][IMG]{PROMPT}[/INST]"
    assert extractor.preprocessing["call"] == {"text": [sent], "add_special_tokens": False}
    known = extractor.provenance()
    assert (known["prompt_name"], known["prompt_text"], known["image_token"]) == ("test", PROMPT, "[IMG]")
    tokenizer = AutoProcessor.from_pretrained(folders("pixtral")).tokenizer
    tokens = ["<s>", "[INST]", "[IMG]", *WORDS, "[/INST]"]
    ids = np.array(tokenizer.convert_tokens_to_ids(tokens), "<i4")
    assert known["chat_tokens_sha256"] == hashlib.sha256(ids.tobytes()).hexdigest()
    other = extractor_of(folders("pixtral"), prompt="caption", prompt_name=None)
    assert other.file_suffix == "_prompt-caption"
    assert other.provenance()["prompt_text"].startswith("Describe this image in one plain English sentence, as")


def test_a_bos_token_is_there_once(folders, tmp_path):
    """Of a template that has it itself, and of one that leaves it to the tokenizer."""
    for name, family in (("own", "pixtral"), ("tokenizer's", "llava")):
        folder = shutil.copytree(folders(family), tmp_path / name)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        chat = extractor_of(folder).chat
        assert chat.tokens.count(0) == 1
        assert chat.examples[0]["input_ids"][0].tolist().count(0) == 1


def test_an_option_of_the_processor_changes_what_the_model_sees(folders, images):
    plain = extractor_of(folders("qwen2_5_vl"))
    smaller = extractor_of(folders("qwen2_5_vl"), options={"size": {"shortest_edge": 64, "longest_edge": 256}})
    assert smaller.preprocessing["settings"]["size"] == {"shortest_edge": 64, "longest_edge": 256}
    assert smaller.input_bytes(0) < plain.input_bytes(0)
    assert not torch.allclose(*(features(extractor, images, [[2]])[0, 0] for extractor in (plain, smaller)))


def test_random_weights_depend_on_the_seed_alone(folders, images):
    one, same, other = (
        features(extractor_of(folders("llava"), untrained=True, seed=seed), images, [[0]]) for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    known = extractor_of(folders("llava"), untrained=True, seed=3).provenance()
    assert (known["weights"], known["seed"]) == ("untrained", 3)
    assert len(known["config_sha256"]) == 64


def test_the_commit_of_a_repository_is_recorded(folders, tmp_path, monkeypatch):
    """A real cache of the hub with one repository in it; only the question for the commit is answered here."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--llava-hf--llava-1.5-7b-hf"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folders("llava"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    extractor = extractor_of("llava-hf/llava-1.5-7b-hf")
    known = extractor.provenance()
    assert (known["weights"], known["revision"]) == ("hub:llava-hf/llava-1.5-7b-hf", commit)
    assert (extractor.preprocessing["source"], extractor.preprocessing["revision"]) == (known["source"], commit)


def test_a_prompt_that_is_a_text_needs_a_name(folders):
    with pytest.raises(InputError, match=r"model\.prompt_name: 'What is it\?' names files"):
        extractor_of(folders("llava"), prompt="What is it?", prompt_name=None)
    with pytest.raises(InputError, match=r"model\.prompt_name: '\.\./x' names files"):
        extractor_of(folders("llava"), prompt_name="../x")
    with pytest.raises(InputError, match=r"model\.prompt: 'nothing' is not one of caption, "):
        extractor_of(folders("llava"), prompt="nothing")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": "cls"}, r"model\.pool: 'cls' must be one or more of image, prompt, last"),
        ({"pool": ["image", "image"]}, r"model\.pool: .* none twice"),
        ({"layers": [3]}, r"model\.layers: 3 out of range; the model has 3 blocks"),
        ({"layers": "norm"}, r"model\.layers: 'norm' must be blocks, hidden_states, one of the blocks"),
        ({"options": {"max_pixel": 3}}, r"model\.options: max_pixel: neither"),
    ],
)
def test_settings_that_are_wrong(folders, settings, said):
    with pytest.raises(InputError, match=said):
        extractor_of(folders("llava"), **settings)


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "its processor has no chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), "loaded from|its image token"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% x %}"), "can't be loaded from"),
        (lambda folder: (folder / "processor_config.json").unlink(), "can't be loaded from"),
        (lambda folder: change_config(folder, image_token_id=5, image_token_index=5), "its image token .5"),
        (lambda folder: change_config(folder, model_type="llama"), "model.name: "),
        (lambda folder: change_config(folder, model_type="florence2"), "model.name: "),
        (lambda folder: change_config(folder, text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
        (
            lambda folder: change_config(folder, vision_config={"num_hidden_layers": 10**9}),
            r"vision_config\.num_hidden_layers 1000000000",
        ),
    ],
)
def test_models_that_cannot_be_asked_are_refused_in_one_line(folders, tmp_path, change, said):
    folder = shutil.copytree(folders("llava"), tmp_path / "changed")
    change(folder)
    with pytest.raises(InputError, match=said) as refused:
        extractor_of(folder)
    assert "\n" not in str(refused.value)


def test_weights_that_would_be_random_are_named(folders, tmp_path):
    folder = shutil.copytree(folders("llava"), tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    whole = dict(weights)

    def without(part):
        kept = {name: value for name, value in whole.items() if part not in name}
        assert len(kept) < len(whole)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    for part in ("layers.1.mlp.up_proj", "multi_modal_projector.linear_1", "encoder.layers.0.mlp.fc1"):
        without(part)
        with pytest.raises(InputError, match=rf"has no weights .*{part}"):
            extractor_of(folder).configure_model()
    without("language_model.model.norm")
    with pytest.raises(InputError, match=r"has no weights .*language_model\.norm"):
        extractor_of(folder, layers="hidden_states").configure_model()
    extractor_of(folder).configure_model()
    without("lm_head")
    extractor_of(folder, layers="hidden_states").configure_model()
    without("language_model.model.layers.2.")
    extractor_of(folder, layers=[1]).configure_model()


@pytest.mark.filterwarnings("ignore:.hidden_state. is deprecated:FutureWarning")
def test_a_model_whose_images_are_not_in_its_text_is_refused(folders, tmp_path):
    """One that looks at them by cross-attention, and one whose random weights do not look at them."""
    save_model(tmp_path / "mllama", "mllama")
    for extractor in (extractor_of(tmp_path / "mllama"), extractor_of(folders("gemma3"), untrained=True)):
        with pytest.raises(InputError, match="at the image tokens is the same for every image"):
            extractor.configure_model()


def test_a_forward_pass_that_fails_is_one_clear_error(folders, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    with pytest.raises(InputError, match=r"forward pass of .* fails: RuntimeError: no such"):
        extractor_of(folders("llava")).configure_model()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_are_written_in_the_type_that_is_asked_for(folders, images, dtype):
    exact = features(extractor_of(folders("llava")), images, [[0, 1]])
    extractor = extractor_of(folders("llava"), dtype=dtype)
    found = features(extractor, images, [[0, 1]])
    assert torch.equal(found, exact.to(getattr(torch, dtype)))
    assert extractor.provenance()["dtype"] == dtype
