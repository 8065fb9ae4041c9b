"""Text encoders against Transformers' own hidden states of each caption alone, without padding of ours.

B batch, L layers, T tokens, D hidden size.
"""

import json

import pandas as pd
import pytest
import torch
import transformers
from helpers.language_models import features, save_captions
from helpers.text_encoders import DEPENDING_ON_PADDING, DEPTH, FAMILIES, save_encoder, save_head, save_tokenizer, write
from safetensors.torch import load_file, save_file

from lit_extract.common.errors import InputError
from lit_extract.data import CaptionDataModule
from lit_extract.modules.text_encoder import TextEncoderExtractor

LENGTHS = [3, 17, 1, 40, 8, 8, 2, 25]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    save_encoder(folder, request.param)
    return folder


@pytest.fixture
def saved(tmp_path):
    """A function that makes the folder of a family."""

    def save(family):
        save_encoder(tmp_path / family, family)
        return tmp_path / family

    return save


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "captions.csv"
    save_captions(path, LENGTHS)
    return path


def extractor_of(folder, **settings):
    extractor = TextEncoderExtractor(str(folder), **settings).eval()
    extractor.configure_model()
    return extractor


@torch.no_grad()
def reference(folder, captions, prefix=""):
    """Each caption alone through Transformers: its hidden states (L+1, T, D), and the last block's output (T, D)."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tower = model.text_model if hasattr(model, "text_model") else model
    tower = tower.encoder if model.config.is_encoder_decoder else tower
    blocks = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == DEPTH)
    raw = []
    blocks[-1].register_forward_hook(lambda _m, _i, out: raw.append(out[0] if isinstance(out, tuple) else out))
    is_siglip = "siglip" in model.config.model_type
    for text in pd.read_csv(captions)["caption"]:
        inputs = tokenizer(prefix + text, return_tensors="pt", return_attention_mask=not is_siglip)
        n = inputs["input_ids"].shape[1]
        if is_siglip:  # as its documentation has it
            inputs = tokenizer(
                prefix + text, padding="max_length", max_length=64, return_attention_mask=False, return_tensors="pt"
            )
        inputs.pop("token_type_ids", None)
        states = torch.cat(tower(**inputs, output_hidden_states=True).hidden_states)
        yield states[:, :n], raw.pop()[0, :n]


def test_hidden_states_are_those_of_transformers(folder, captions):
    extractor = extractor_of(folder, layers="hidden_states", pool=["avg", "last"])
    assert extractor.layers[:-1] == ["embeddings", "blocks.0", "blocks.1"]
    actual = features(extractor, captions, token_budget=100)
    expected = [(states, raw) for states, raw in reference(folder, captions)]
    assert extractor.layers[-1] == ("blocks.2" if torch.equal(expected[0][0][-1], expected[0][1]) else "norm")
    torch.testing.assert_close(actual["avg"], torch.stack([states.mean(1) for states, _ in expected]), **CLOSE)
    torch.testing.assert_close(actual["last"], torch.stack([states[:, -1] for states, _ in expected]), **CLOSE)


def test_blocks_are_raw_also_the_last(folder, captions):
    extractor = extractor_of(folder, pool="last")
    assert extractor.layers == ["blocks.0", "blocks.1", "blocks.2"]
    actual = features(extractor, captions)["last"]
    expected = [torch.stack([*states[1:3, -1], raw[-1]]) for states, raw in reference(folder, captions)]
    torch.testing.assert_close(actual, torch.stack(expected), **CLOSE)


def test_a_raw_block_may_come_after_the_norm(saved, captions):
    folder = saved("t5")
    states, blocks, both = (
        features(extractor_of(folder, layers=layers, pool="last"), captions)["last"]
        for layers in ("hidden_states", [-1], ["hidden_states", -1])
    )
    torch.testing.assert_close(both, torch.cat([states, blocks], dim=1), rtol=0, atol=0)


def test_a_caption_is_the_same_alone_and_in_company(folder, captions):
    extractor = extractor_of(folder, layers="hidden_states", pool=["avg", "last"])
    alone, together = (features(extractor, captions, token_budget=budget) for budget in (1, 10_000))
    for pool in extractor.pools:
        torch.testing.assert_close(alone[pool], together[pool], **CLOSE)
    assert not torch.allclose(alone["avg"][0], alone["avg"][1], atol=1e-2)


def test_the_class_token_is_the_first(folder, captions):
    if FAMILIES[folder.name][1] != "[CLS]":
        with pytest.raises(InputError, match=r"model\.pool.*no class token.*allowed: avg, last, tokens, head"):
            TextEncoderExtractor(str(folder), pool="cls")
        return
    actual = features(extractor_of(folder, pool="cls", layers=[-1, 0]), captions)["cls"]
    expected = [torch.stack([raw[0], states[1, 0]]) for states, raw in reference(folder, captions)]
    torch.testing.assert_close(actual, torch.stack(expected), **CLOSE)


@pytest.mark.parametrize(("family", "inner"), [("bert", slice(1, -1)), ("t5", slice(0, -1)), ("siglip", slice(0, -1))])
def test_special_tokens_can_be_left_out_of_the_mean_alone(saved, captions, family, inner):
    folder = saved(family)
    extractor = extractor_of(folder, pool=["avg", "last"], special_tokens="excluded", layers=[0])
    actual = features(extractor, captions)
    states = [states[1] for states, _ in reference(folder, captions)]
    torch.testing.assert_close(actual["avg"][:, 0], torch.stack([s[inner].mean(0) for s in states]), **CLOSE)
    torch.testing.assert_close(actual["last"][:, 0], torch.stack([s[-1] for s in states]), **CLOSE)
    assert extractor.provenance()["special_tokens"] == "excluded"
    assert actual["n_tokens"].tolist() == [len(s) for s in states]


def test_a_caption_of_special_tokens_alone_has_nothing_to_average(saved, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("nsd_id,caption\n7,a dog\n9,\u200b\n")
    extractor = extractor_of(saved("bert"), special_tokens="excluded")
    with pytest.raises(InputError, match=r"model\.special_tokens.* 9;"):
        features(extractor, path)


def test_a_prefix_is_read_before_each_caption(saved, captions):
    folder = saved("bert")
    extractor = extractor_of(folder, prefix="two people ", layers=[-1])
    expected = [raw.mean(0) for _, raw in reference(folder, captions, "two people ")]
    torch.testing.assert_close(features(extractor, captions)["avg"][:, 0], torch.stack(expected), **CLOSE)
    assert extractor.provenance()["prefix"] == "two people "


@pytest.mark.parametrize("family", ["mpnet", "siglip"])
def test_several_captions_of_a_row_are_read_one_by_one(saved, tmp_path, family):
    several, single = tmp_path / "several.csv", tmp_path / "single.csv"
    texts = save_captions(single, [5, 9, 2, 7])
    several.write_text(f"nsd_id,captions\n0,{texts[0]};{texts[1]};{texts[2]}\n1,{texts[3]}\n")
    extractor = extractor_of(saved(family), pool="avg")
    alone = features(extractor, single)["avg"]
    expected = torch.stack([alone[:3].mean(0), alone[3]])
    torch.testing.assert_close(features(extractor, several, captions_used="all")["avg"], expected, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "clip"])
def test_what_is_too_long_is_refused_or_cut_before_the_last_special_token(saved, tmp_path, family):
    folder, path = saved(family), tmp_path / "captions.csv"
    save_captions(path, [5, 80])
    extractor = extractor_of(folder, layers=[-1])
    with pytest.raises(InputError, match=r"context of 64 tokens: 1 "):
        features(extractor, path)
    actual = features(extractor, path, truncate=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = pd.read_csv(path)["caption"][1]
    data = CaptionDataModule(str(path), "test", preprocessing=extractor.preprocessing, truncate=True)
    data.setup()
    batch = next(batch for batch in data.predict_dataloader() if 1 in batch["index"])
    ids = batch["input_ids"][batch["index"] == 1][0].tolist()
    assert ids == tokenizer(text, truncation=True, max_length=64)["input_ids"]
    assert actual["n_tokens"].tolist()[1] == 64
    assert actual["avg"].isfinite().all()


def test_positions_limit_a_tokenizer_without_a_limit_of_its_own(saved):
    for family, context in (("roberta", 64), ("bert", 64), ("t5", None)):
        folder = saved(family)
        save_tokenizer(folder, *FAMILIES[family][1:], longest=int(1e30))
        assert TextEncoderExtractor(str(folder)).preprocessing["context"] == context


def clip_vectors(folder, captions):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"padding": "max_length", "max_length": 64} if "siglip" in model.config.model_type else {}
    with torch.no_grad():
        for text in pd.read_csv(captions)["caption"]:
            ids = tokenizer(text, return_tensors="pt", **options)["input_ids"]
            yield model.get_text_features(input_ids=ids).pooler_output[0]


@pytest.mark.parametrize(("family", "width"), [("clip", 24), ("siglip", 32)])
def test_the_head_of_clip_is_its_projected_embedding(saved, captions, family, width):
    folder = saved(family)
    extractor = extractor_of(folder, pool="head")
    assert (extractor.layers, extractor.layer_shapes) == (["head"], [(width,)])
    assert "get_text_features" in extractor.notes["head_meaning"]
    expected = torch.stack([*clip_vectors(folder, captions)])
    torch.testing.assert_close(features(extractor, captions)["head"][:, 0], expected, **CLOSE)


IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
HEADS = {
    "mean": {"pooling": "mean"},
    "cls, not normalized": {"pooling": "cls", "normalize": False},
    "lasttoken": {"pooling": "lasttoken"},
    "max": {"pooling": "max", "normalize": False},
    "two poolings": {"pooling": ["mean", "max"], "normalize": False},
    "mean by root": {"pooling": "mean_sqrt_len_tokens", "normalize": False},
    "weighted": {"pooling": "weightedmean", "normalize": False},
    "dense": {"dense": [(16, TANH)], "normalize": False},
    "two dense": {"dense": [(48, IDENTITY), (32, IDENTITY)]},
    "prompt": {"prompts": {"query": "two people ", "document": ""}, "default": "query"},
    "prompts, none of them default": {"prompts": {"query": "two people "}},
}


SOME_HEADS = ("mean", "prompt")


def by_hand(folder, captions, pooling="mean", dense=(), normalize=True, prompts=None, default=None):
    """One caption at a time, in a few lines."""
    for states, _ in reference(folder, captions, (prompts or {}).get(default, "")):
        last, vector = states[-1], torch.empty(0)
        for mode in [pooling] if isinstance(pooling, str) else pooling:
            weights = torch.arange(1.0, len(last) + 1)
            pooled = {
                "mean": last.mean(0),
                "cls": last[0],
                "lasttoken": last[-1],
                "max": last.max(0).values,
                "mean_sqrt_len_tokens": last.sum(0) / len(last) ** 0.5,
                "weightedmean": (last * weights[:, None]).sum(0) / weights.sum(),
            }[mode]
            vector = torch.cat([vector, pooled])
        for place, (_, activation) in enumerate(dense, start=2):
            weights = load_file(folder / f"{place}_Dense/model.safetensors")
            vector = weights["linear.weight"] @ vector + weights.get("linear.bias", 0)
            vector = vector.tanh() if activation == TANH else vector
        yield vector / vector.norm() if normalize else vector


@pytest.mark.parametrize(("family", "head"), [*(("mpnet", head) for head in HEADS), ("t5", "lasttoken")])
def test_the_head_is_what_the_folder_says(saved, captions, family, head):
    folder = saved(family)
    save_head(folder, **HEADS[head])
    extractor = extractor_of(folder, pool="head")
    expected = torch.stack([*by_hand(folder, captions, **HEADS[head])])
    assert (extractor.layers, extractor.layer_shapes) == (["head"], [(expected.shape[1],)])
    torch.testing.assert_close(features(extractor, captions)["head"][:, 0], expected, **CLOSE)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        *(("mpnet", head) for head in HEADS),
        *(
            (family, head)
            for family in ("bert", "roberta", "modernbert", "gemma3", "qwen3", "t5")
            for head in SOME_HEADS
        ),
    ],
)
def test_the_head_is_what_sentence_transformers_returns(saved, captions, family, head):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = saved(family)
    save_head(folder, **HEADS[head])
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(pd.read_csv(captions)["caption"].tolist(), convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(features(extractor_of(folder, pool="head"), captions)["head"][:, 0], expected, **CLOSE)


@pytest.mark.parametrize("family", ["mpnet", "gemma3", "t5"])
def test_a_folder_that_sentence_transformers_wrote(saved, captions, tmp_path, family):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(3)
    parts = [Transformer(str(saved(family))), Pooling(32, "mean"), Dense(32, 48), Dense(48, 16, False), Normalize()]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", prompts={"query": "a "})
    model.save(str(tmp_path / "written"))
    actual = features(extractor_of(tmp_path / "written", pool="head"), captions)["head"][:, 0]
    texts = pd.read_csv(captions)["caption"].tolist()
    torch.testing.assert_close(actual, model.encode(texts, convert_to_tensor=True, show_progress_bar=False), **CLOSE)


def test_older_files_name_poolings_otherwise(saved, captions):
    folder = saved("bert")
    save_head(folder, normalize=False)
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **old})
    expected = torch.stack([*by_hand(folder, captions, ["cls", "max"], normalize=False)])
    actual = features(extractor_of(folder, pool="head"), captions)["head"][:, 0]
    torch.testing.assert_close(actual, expected, **CLOSE)


def test_the_limit_of_sentence_transformers_counts(saved):
    folder = saved("bert")
    assert TextEncoderExtractor(str(folder)).preprocessing["context"] == 64
    save_head(folder)
    assert TextEncoderExtractor(str(folder)).preprocessing["context"] == 48


def change(folder, file, **changes):
    content = json.loads((folder / file).read_text())
    content = [{**part, **changes} for part in content] if isinstance(content, list) else {**content, **changes}
    write(folder / file, content)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "modules.json").unlink(), "modules.json"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json"),
        (lambda folder: change(folder, "modules.json", type="custom_st.Transformer"), "custom_st.Transformer"),
        (lambda folder: change(folder, "modules.json", type="sentence_transformers.models.CNN"), "CNN"),
        (lambda folder: change(folder, "modules.json", path="../elsewhere"), "modules.json"),
        (lambda folder: (folder / "1_Pooling/config.json").unlink(), "1_Pooling/config.json"),
        (lambda folder: change(folder, "1_Pooling/config.json", pooling_mode="median"), "median"),
        (lambda folder: change(folder, "2_Dense/config.json", activation_function="os.system"), "os.system"),
        (lambda folder: change(folder, "2_Dense/config.json", use_residual=True), "residual"),
        (lambda folder: change(folder, "2_Dense/config.json", in_features=31), "31"),
        (lambda folder: change(folder, "2_Dense/config.json", in_features=2**40), "in_features"),
        (
            lambda folder: change(folder, "2_Dense/config.json", module_input_name="token_embeddings"),
            "token_embeddings",
        ),
        (lambda folder: change(folder, "sentence_bert_config.json", do_lower_case=True), "do_lower_case"),
        (lambda folder: change(folder, "sentence_bert_config.json", transformer_task="fill-mask"), "fill-mask"),
        (lambda folder: change(folder, "sentence_bert_config.json", max_seq_length=0), "max_seq_length"),
        (
            lambda folder: write(folder / "config_sentence_transformers.json", {"default_prompt_name": "query"}),
            "query",
        ),
    ],
)
def test_a_head_that_is_not_supported_is_refused(saved, spoil, named):
    folder = saved("bert")
    save_head(folder, dense=[(16, TANH)])
    spoil(folder)
    with pytest.raises(InputError, match=r"model\.(pool|name)") as error:
        TextEncoderExtractor(str(folder), pool="head")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(saved):
    folder = saved("bert")
    save_head(folder, prompts={"query": "two people "}, default="query")
    change(folder, "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(InputError, match="two people"):
        TextEncoderExtractor(str(folder), pool="head")
    TextEncoderExtractor(str(folder), pool="head", prefix="")


def test_weights_of_a_dense_layer_that_are_missing_are_named(saved):
    folder = saved("bert")
    save_head(folder, dense=[(16, TANH)])
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in 2_Dense"):
        extractor_of(folder, pool="head")


def test_the_head_is_a_layer_by_itself(saved):
    folder = saved("bert")
    save_head(folder)
    with pytest.raises(InputError, match=r"model\.layers.*head"):
        TextEncoderExtractor(str(folder), pool="head", layers="hidden_states")
    with pytest.raises(InputError, match=r"model\.pool.*head"):
        TextEncoderExtractor(str(folder), pool=["avg", "head"])


def without(folder, *prefixes):
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(prefixes)}
    save_file(kept, file, metadata={"format": "pt"})


def test_weights_on_which_layers_depend_may_not_be_missing(saved, captions):
    folder = saved("bert")
    whole = features(extractor_of(folder, layers=[1]), captions)["avg"]
    without(folder, "pooler.", "encoder.layer.2.")
    assert torch.equal(features(extractor_of(folder, layers=[1]), captions)["avg"], whole)
    with pytest.raises(InputError, match=r"model\.checkpoint.*encoder\.layer\.2\."):
        extractor_of(folder)
    save_head(folder)
    with pytest.raises(InputError, match=r"encoder\.layer\.2\."):
        extractor_of(folder, pool="head")


def test_weights_that_the_head_of_clip_needs(saved):
    folder = saved("clip")
    without(folder, "vision_model.", "text_projection.")
    extractor_of(folder)
    with pytest.raises(InputError, match=r"text_projection\.weight"):
        extractor_of(folder, pool="head")


@pytest.mark.parametrize("family", DEPENDING_ON_PADDING)
def test_families_that_depend_on_padding_are_refused(saved, family):
    with pytest.raises(InputError, match="attend to padding"):
        extractor_of(saved(family))


def test_a_model_that_attends_to_padding_is_refused(saved, monkeypatch):
    forward = transformers.BertModel.forward
    monkeypatch.setattr(
        transformers.BertModel,
        "forward",
        lambda self, input_ids, attention_mask=None, **other: forward(self, input_ids, **other),
    )
    with pytest.raises(InputError, match="attend to padding"):
        extractor_of(saved("bert"))


def test_random_weights_depend_on_the_seed_alone(saved, captions):
    folder = saved("mpnet")
    save_head(folder, dense=[(16, TANH)])
    one, same, other = (
        features(extractor_of(folder, pool="head", untrained=True, seed=seed), captions)["head"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("setting", [{"special_tokens": "none"}, {"pool": "avg_all"}, {"layers": "norm"}])
def test_a_wrong_setting_is_named(saved, setting):
    with pytest.raises(InputError, match=rf"model\.{next(iter(setting))}"):
        TextEncoderExtractor(str(saved("bert")), **setting)


def test_a_model_of_images_alone_is_refused(tmp_path):
    transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no part that reads text"):
        TextEncoderExtractor(str(tmp_path))
