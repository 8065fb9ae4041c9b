"""The final norm and what a model itself outputs, against timm's own forward_features and plain calls of the model.

B batch, T tokens, D hidden size.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from lit_extract.common.errors import InputError
from lit_extract.modules.vision import VisionExtractor

TINY = "test_vit.r160_in1k"
SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 3}
DINO, SIGLIP, CLIP = (
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch16_clip_224.laion2b",
)

# each with what its output is
HEADS = [
    (TINY, {}, "logits of 1,000 classes"),
    (TINY, {"num_classes": 7}, "logits of 7 classes"),
    ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", SMALL, "logits of 1,000 classes"),
    ("deit_tiny_distilled_patch16_224.fb_in1k", SMALL, "logits of 1,000 classes"),
    ("beit_base_patch16_224.in22k_ft_in22k", SMALL, "logits of 21,841 classes"),
    ("cait_xxs24_224.fb_dist_in1k", {"img_size": 64, "depth": 2}, "logits of 1,000 classes"),
    (CLIP, SMALL, "embedding: the pooled and projected vector"),
    (CLIP, {**SMALL, "num_classes": 7}, "logits of 7 classes"),
    ("eva02_base_patch16_clip_224.merged2b", SMALL, "embedding: the pooled and projected vector"),
    ("vit_pe_core_tiny_patch16_384.fb", {"depth": 2}, "embedding: the pooled and projected vector"),
    (CLIP, {**SMALL, "num_classes": 0}, "embedding: the pooled vector (global_pool: token), without a classifier"),
    (SIGLIP, SMALL, "embedding: the pooled vector (global_pool: map), without a classifier"),
    (DINO, {**SMALL, "img_size": 56}, "embedding: the pooled vector (global_pool: token), without a classifier"),
    ("eva02_tiny_patch14_224.mim_in22k", {"depth": 2}, "embedding: the pooled vector (global_pool: avg)"),
]
NORMS = [
    (TINY, {}, ["cls", "avg", "avg_all"], 1),
    (DINO, {**SMALL, "img_size": 56}, ["cls", "avg", "avg_all"], 5),
    (SIGLIP, SMALL, ["avg", "avg_all"], 0),
    (CLIP, SMALL, ["cls", "avg"], 1),
    ("eva02_base_patch16_clip_224.merged2b", SMALL, ["cls"], 1),
    ("naflexvit_base_patch16_siglip.v2_webli", SMALL, ["avg"], 0),
    ("mixer_s32_224", {}, ["avg"], 0),
    ("cait_xxs24_224.fb_dist_in1k", {"img_size": 64, "depth": 2}, ["avg", "avg_all"], 1),
    ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, ["avg", "avg_all"], 1),
]


def extractor_of(name, **settings):
    extractor = VisionExtractor(name, **{"untrained": True, **settings}).eval()
    extractor.configure_model()
    return extractor


def images_for(extractor, n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, *extractor.preprocessing["input_size"]), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def roughened(model):
    """Weights so far from their initial ones that no part of a model gives nothing, or the same for all images."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@torch.no_grad()
def features(extractor):
    images = images_for(extractor)
    batch = {"index": torch.arange(len(images)), "image": images, "bad": torch.zeros(len(images), dtype=torch.bool)}
    feats = extractor.predict_step(batch)["feats"]
    return {pool: rows.unflatten(1, (len(extractor.layers), -1)) for pool, rows in feats.items()}


def reference(extractor, name, options, seed=0):
    """The same random model and its input, made without the code under test."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **options).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return model, (images_for(extractor) / 255 - mean) / std


@pytest.mark.parametrize(("name", "options", "meaning"), HEADS, ids=[f"{name}-{o}" for name, o, _ in HEADS])
@torch.no_grad()
def test_head_is_what_the_model_outputs(name, options, meaning):
    extractor = extractor_of(name, pool="head", options=options)
    model, images = reference(extractor, name, options)
    roughened(extractor.backbone)
    expected = roughened(model)(images)
    assert expected.std(dim=0).max() > 0.01, "else this test shows nothing"
    actual = features(extractor)["head"]
    assert (extractor.layers, actual.dtype) == (["head"], torch.float32)
    torch.testing.assert_close(actual, expected[:, None], rtol=1e-5, atol=1e-5)
    assert extractor.layer_shapes == [(expected.shape[1],)]
    assert extractor.notes["head_meaning"].startswith(meaning)
    assert extractor.num_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "options", "pools", "n_prefix"), NORMS, ids=[name for name, *_ in NORMS])
@torch.no_grad()
def test_norm_is_what_leaves_the_final_norm(name, options, pools, n_prefix):
    extractor = extractor_of(name, pool=pools, options=options, layers=[-1, "norm", 0])
    model, images = reference(extractor, name, options)
    roughened(extractor.backbone)
    tokens = roughened(model).forward_features(images)  # (B, T, D)
    poolings = {"cls": tokens[:, 0], "avg": tokens[:, n_prefix:].mean(1), "avg_all": tokens.mean(1)}
    assert extractor.layers == [f"blocks.{len(model.blocks) - 1}", "norm", "blocks.0"]
    every = extractor_of(name, pool=pools, options=options)
    roughened(every.backbone)
    blocks = features(every)
    for pooling, feats in features(extractor).items():
        torch.testing.assert_close(feats[:, 1], poolings[pooling], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(feats[:, [2, 0]], blocks[pooling][:, [0, -1]], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(feats[:, 0], feats[:, 1], atol=1e-2)


@torch.no_grad()
def test_a_class_token_that_joins_before_the_norm():
    """CaiT has it after its blocks, so that the norm alone can give it."""
    name, options = "cait_xxs24_224.fb_dist_in1k", {"img_size": 64, "depth": 2}
    extractor = extractor_of(name, pool="cls", layers="norm", options=options)
    model, images = reference(extractor, name, options)
    expected = model.forward_features(images)[:, 0]
    torch.testing.assert_close(features(extractor)["cls"][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_nothing_after_the_norm_is_computed():
    extractor = extractor_of(TINY, layers="norm")
    ran = []
    for part in ("norm", "head"):
        extractor.backbone.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: ran.append(part))
    features(extractor)
    assert ran == ["norm"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("beit_base_patch16_224.in22k_ft_in22k", {"layers": "norm"}, r"norms after pooling \(fc_norm\).*pool: head"),
        (TINY, {"layers": ["blocks", "norm"], "options": {"global_pool": "avg"}}, r"fc_norm.*pool: head"),
        (TINY, {"layers": "norm", "options": {"final_norm": False}}, r"no final norm.*layers: \[-1\].*pool: head"),
        ("cait_xxs24_224.fb_dist_in1k", {"pool": "cls", "layers": ["norm", -1]}, "no class token"),
        ("resnet18", {"layers": [-1, "norm"]}, "model.layers: 'resnet18' has stages.*pool: head"),
        (TINY, {"pool": "head", "layers": [0]}, "model.layers: .*can't be combined with model.pool head"),
        (TINY, {"pool": "head", "layers": "norm"}, "model.layers: .*can't be combined with model.pool head"),
        (TINY, {"pool": ["avg", "head"]}, "model.pool: .*give it alone"),
        (
            TINY,
            {"pool": "head", "options": {"num_classes": 0, "global_pool": ""}},
            r"\(101, 64\) for an image, not one",
        ),
        (SIGLIP, {"pool": "cls"}, "no class token.*its output is head.*allowed: avg, avg_all, tokens, head, gridK"),
    ],
)
def test_what_a_model_can_not_give_is_refused_with_what_it_can(name, settings, message):
    with pytest.raises(InputError, match=message) as refused:
        VisionExtractor(name, **{"untrained": True, "pool": "avg", **settings})
    assert "\n" not in str(refused.value)


def checkpoint_without(tmp_path, name, options, *parts):
    """Weights of seed 11 without those whose names begin with one of ``parts``."""
    torch.manual_seed(11)
    state = timm.create_model(name, **options).state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(parts)}
    assert len(kept) < len(state) or not parts
    save_file(kept, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


HEAD, CLS, AVG, NORM = {"pool": "head"}, {"pool": "cls"}, {"pool": "avg"}, {"layers": ["blocks", "norm"]}
FC_NORM = {"options": {"global_pool": "avg"}}


@pytest.mark.parametrize(
    ("name", "options", "missing", "settings", "accepted"),
    [
        (TINY, {}, "head.", HEAD, False),
        (TINY, {}, "head.bias", HEAD, False),
        (TINY, {}, "head.", NORM, True),
        (TINY, {}, "head.", CLS, True),
        (TINY, {}, "norm.", HEAD, False),
        (TINY, {}, "norm.", NORM, False),
        (TINY, {}, "norm.", CLS, True),
        (TINY, {}, "norm.", HEAD | FC_NORM, False),  # its norm is where the model has fc_norm
        (TINY, {"global_pool": "avg"}, "fc_norm.", HEAD | FC_NORM, False),
        (TINY, {"global_pool": "avg"}, "fc_norm.", CLS | FC_NORM, True),
        (TINY, {"global_pool": "avg"}, "head.", HEAD, False),
        (SIGLIP, SMALL, "attn_pool.latent", HEAD | {"options": SMALL}, False),
        (SIGLIP, SMALL, "attn_pool.mlp", HEAD | {"options": SMALL}, False),
        (SIGLIP, SMALL, "attn_pool.", AVG | NORM | {"options": SMALL}, True),
        ("deit_tiny_distilled_patch16_224", SMALL, "head_dist.", HEAD | {"options": SMALL}, False),
        ("deit_tiny_distilled_patch16_224", SMALL, "head_dist.", CLS | NORM | {"options": SMALL}, True),
    ],
)
def test_what_comes_after_the_blocks_is_all_from_the_checkpoint(tmp_path, name, options, missing, settings, accepted):
    file = checkpoint_without(tmp_path, name, options, missing)
    extractor = VisionExtractor(name, checkpoint=file, **settings)
    if accepted:
        extractor.configure_model()
        return
    with pytest.raises(InputError, match=r"^model.checkpoint: .*does not fit") as refused:
        extractor.configure_model()
    assert (missing if "global_pool" not in str(settings) else "fc_norm.") in str(refused.value)


@pytest.mark.parametrize(
    ("of_weights", "options", "named"),
    [
        ({"num_classes": 7}, {}, "head.weight"),
        ({}, {"num_classes": 7}, "head.weight"),
        ({}, {"final_norm": False}, "no place for norm.bias, norm.weight"),
    ],
)
def test_another_head_or_a_norm_that_would_be_left_out_is_refused(tmp_path, of_weights, options, named):
    file = checkpoint_without(tmp_path, TINY, of_weights)
    extractor = VisionExtractor(TINY, checkpoint=file, options=options, pool="head")
    with pytest.raises(InputError, match=rf"^model.checkpoint: .*does not fit .*{named}"):
        extractor.configure_model()
    if not of_weights:
        extractor_of(TINY, untrained=False, checkpoint=file, options=options, pool="cls")


@pytest.mark.parametrize(
    ("of_weights", "options"),
    [
        ({}, {}),
        ({"num_classes": 7}, {"num_classes": 7}),
        ({}, {"num_classes": 0}),
        ({"num_classes": 0}, {"num_classes": 0}),
    ],
)
@torch.no_grad()
def test_output_of_a_checkpoint_is_that_of_its_model(tmp_path, of_weights, options):
    """Also with as many classes as the user's own fine-tuning had, whose head timm would leave out by itself."""
    file = checkpoint_without(tmp_path, TINY, of_weights)
    extractor = extractor_of(TINY, untrained=False, checkpoint=file, options=options, pool="head")
    model, images = reference(extractor, TINY, of_weights, seed=11)
    if not options.get("num_classes", 1):
        model.head = torch.nn.Identity()
    torch.testing.assert_close(features(extractor)["head"][:, 0], model(images), rtol=1e-5, atol=1e-5)


def test_weights_of_the_hub_must_have_the_head(tmp_path, monkeypatch):
    """The hub is the edge: a local file answers."""
    file = checkpoint_without(tmp_path, TINY, {}, "head.")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: file)
    extractor_of(TINY, untrained=False)
    with pytest.raises(InputError, match=r"has no head\.weight, head\.bias"):
        extractor_of(TINY, untrained=False, pool="head")
    file = checkpoint_without(tmp_path, TINY, {})
    with pytest.raises(InputError, match=r"has no head\.weight, head\.bias"):  # timm leaves out the published one
        extractor_of(TINY, untrained=False, pool="head", options={"num_classes": 7})
    extractor_of(TINY, untrained=False, pool="head")


def test_statistics_of_batch_norm_are_of_the_checkpoint_too(tmp_path):
    name, options = "xcit_nano_12_p16_224", {"depth": 2}
    file = checkpoint_without(tmp_path, name, options, "patch_embed.proj.0.1.running_var")
    with pytest.raises(InputError, match=r"has no patch_embed\.proj\.0\.1\.running_var"):
        extractor_of(name, untrained=False, checkpoint=file, options=options, pool="avg")
    file = checkpoint_without(tmp_path, name, options, "head.")
    extractor_of(name, untrained=False, checkpoint=file, options=options, pool="avg")


def test_weights_of_jax_must_have_the_head(tmp_path):
    """In the layout of Google's ViT, which timm copies itself."""
    torch.manual_seed(0)
    name, d, heads = "vit_tiny_patch16_224.augreg_in21k", 192, 3
    weights = {
        "embedding/kernel": (16, 16, 3, d),
        "embedding/bias": (d,),
        "cls": (1, 1, d),
        "Transformer/posembed_input/pos_embedding": (1, 197, d),
        "Transformer/encoder_norm/scale": (d,),
        "Transformer/encoder_norm/bias": (d,),
    }
    block, attention = "Transformer/encoderblock_0/", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"
    for part in ("LayerNorm_0/", "LayerNorm_2/"):
        weights |= {f"{block}{part}scale": (d,), f"{block}{part}bias": (d,)}
    for part in ("query", "key", "value"):
        weights |= {f"{attention}{part}/kernel": (d, heads, d // heads), f"{attention}{part}/bias": (heads, d // heads)}
    weights |= {f"{attention}out/kernel": (heads, d // heads, d), f"{attention}out/bias": (d,)}
    for part, shape in (("0", (d, 4 * d)), ("1", (4 * d, d))):
        weights |= {f"{block}MlpBlock_3/Dense_{part}/kernel": shape, f"{block}MlpBlock_3/Dense_{part}/bias": shape[1:]}
    arrays = {key: torch.randn(shape).mul(0.02).numpy() for key, shape in weights.items()}
    settings = {"checkpoint": str(tmp_path / "weights.npz"), "untrained": False, "options": {"depth": 1}}
    np.savez(settings["checkpoint"], **arrays)
    extractor_of(name, **settings, layers=["blocks", "norm"])
    with pytest.raises(InputError, match=r"has no head\.weight, head\.bias"):
        extractor_of(name, **settings, pool="head")
    head = {"head/kernel": torch.randn(d, 21843).numpy(), "head/bias": torch.randn(21843).numpy()}
    np.savez(settings["checkpoint"], **arrays, **head)
    assert features(extractor_of(name, **settings, pool="head"))["head"].shape == (2, 1, 21843)


def test_a_model_that_fails_after_its_blocks_is_refused(monkeypatch):
    def fail(*_):
        raise RuntimeError("of its own\nkind")

    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.forward_head", fail)
    VisionExtractor(TINY, untrained=True, layers="norm")
    with pytest.raises(InputError, match=r"can't compute head .*of its own kind"):
        VisionExtractor(TINY, untrained=True, pool="head")
