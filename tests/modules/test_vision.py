"""Features against independent oracles: torchvision's feature extractor (FX) and timm's own intermediates.

B batch, L layers, T tokens, D hidden size.
"""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.feature_extraction import create_feature_extractor

from lit_extract.common.errors import InputError
from lit_extract.modules.vision import VisionExtractor

TINY = "test_vit.r160_in1k"

# (B, 3, H, W) uint8 at the model's own size; two images are enough to see a mix-up
FX_MODELS = [
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_clip_224.laion2b",
]
INTERMEDIATES_MODELS = [
    TINY,
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "beit_base_patch16_224.in22k_ft_in22k",
    "eva02_tiny_patch14_224.mim_in22k",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch16_224.mae",
]


def images_for(extractor, n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, *extractor.preprocessing["input_size"]), dtype=torch.uint8, generator=generator)


def extractor_of(name, **settings):
    extractor = VisionExtractor(name, **{"untrained": True, **settings}).eval()
    extractor.configure_model()
    return extractor


@torch.no_grad()
def features(extractor, images):
    batch = {"index": torch.arange(len(images)), "image": images, "bad": torch.zeros(len(images), dtype=torch.bool)}
    feats = extractor.predict_step(batch)["feats"]
    return {pool: rows.unflatten(1, (len(extractor.layers), -1)) for pool, rows in feats.items()}


def reference_model(name, seed=0, **options):
    """The same random model, made without the code under test."""
    torch.manual_seed(seed)
    return timm.create_model(name, **options).eval()


def reference_input(name, images):
    """Pixels normalized as timm's pipeline does, written out."""
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("name", FX_MODELS)
@torch.no_grad()
def test_class_token_equals_torchvision_feature_extractor(name):
    extractor = extractor_of(name, pool="cls")
    images = images_for(extractor)
    nodes = [f"blocks.{k}.add_1" for k in range(len(extractor.layers))]
    oracle = create_feature_extractor(reference_model(name), nodes)(reference_input(name, images))
    expected = torch.stack([oracle[node][:, 0] for node in nodes], dim=1)  # (B, L, D)
    actual = features(extractor, images)["cls"]
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", INTERMEDIATES_MODELS)
@torch.no_grad()
def test_averages_equal_timm_intermediates(name):
    extractor = extractor_of(name, pool=["avg", "avg_all"])
    images = images_for(extractor)
    oracle = reference_model(name).forward_intermediates(
        reference_input(name, images), norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    # a layer is (patches, prefix), or patches alone when the model has no prefix tokens
    layers = [layer if isinstance(layer, tuple) else (layer, layer[:, :0]) for layer in oracle]
    patches = torch.stack([p for p, _ in layers], dim=1)  # (B, L, T, D)
    tokens = [torch.cat([prefix, p], dim=1) for p, prefix in layers]
    expected = {"avg": patches.mean(2), "avg_all": torch.stack([t.mean(1) for t in tokens], dim=1)}
    torch.testing.assert_close(features(extractor, images), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_naflexvit_keeps_its_class_token_with_its_embeddings():
    """Against timm itself: eight tokens before the patches, of which the first is the class token."""
    settings = {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}
    model = VisionExtractor("naflexvit_base_patch16_radio_v3", untrained=True, pool=["cls", "avg"], options=settings)
    model.configure_model()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        feats = model.activations({"image": images})["feats"].unflatten(2, (len(model.layers), -1))
        layers = model.backbone.forward_intermediates(
            model.normalize(images), norm=False, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
        )
    for k, (patches, prefix) in enumerate(layers):
        assert prefix.shape[1] == 8
        assert torch.equal(feats[:, 0, k], prefix[:, 0])
        assert torch.allclose(feats[:, 1, k], patches.mean(dim=1), atol=1e-6)


SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 2}
# Models whose blocks are elsewhere, or of which a class token joins after or between the blocks, or which have other
# tokens before the patches; then where their blocks are, and their patches.
OTHER_SHAPES = [
    ("deepseek_vit_412m", {**SMALL, "img_size": 56}, "encoder.blocks", 16),
    ("deepseek_vit_412m_align", {**SMALL, "img_size": 56}, "encoder.blocks", 16),
    ("gemma4_vit_167m", {**SMALL, "img_size": 96}, "encoder.blocks", 36),
    ("qwen3_vit_88m", {**SMALL, "img_size": 64}, "encoder.blocks", 16),
    ("qwen3_vit_88m_merge", {**SMALL, "img_size": 64}, "encoder.blocks", 16),
    ("qwen3_vit_88m_enc", {**SMALL, "img_size": 64}, "blocks", 16),
    ("convit_tiny", {"img_size": 64}, "blocks", 16),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("deit3_small_patch16_224", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("vit_small_patch16_rope_mixed_ape_224", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("vit_pe_core_tiny_patch16_384", {"img_size": 64, "depth": 2}, "blocks", 16),
    ("naflexvit_base_patch16_siglip", {**SMALL, "img_size": 64}, "blocks", 16),
]


@pytest.mark.parametrize(("name", "options", "path", "n_patches"), OTHER_SHAPES)
@torch.no_grad()
def test_blocks_that_are_elsewhere_or_have_other_tokens(name, options, path, n_patches):
    """Against whole outputs of the blocks, of which the patches are the last tokens."""
    extractor = extractor_of(name, pool=["avg", "avg_all"], options=options)
    images = images_for(extractor)
    model, layers = reference_model(name, **options), []
    for block in model.get_submodule(path):
        block.register_forward_hook(lambda block, inputs, output: layers.append(output))
    mean, std = (torch.tensor(extractor.preprocessing[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    model((images / 255 - mean) / std)
    assert extractor.layers == [f"blocks.{k}" for k in range(len(layers))]
    expected = {
        "avg": torch.stack([layer[:, -n_patches:].mean(1) for layer in layers], dim=1),
        "avg_all": torch.stack([layer.mean(1) for layer in layers], dim=1),
    }
    torch.testing.assert_close(features(extractor, images), expected, rtol=1e-5, atol=1e-5)
    if path != "blocks":  # timm's own way to them
        kinds = {"norm": False, "output_fmt": "NLC", "intermediates_only": True}
        given = model.forward_intermediates((images / 255 - mean) / std, **kinds)
        torch.testing.assert_close(torch.stack(given, 1).mean(2), expected["avg"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_class_token_that_joins_between_the_blocks():
    """ConViT has it from block 10 on: 196 tokens, then 197."""
    assert [k for k, n in enumerate(n_tokens_of("convit_tiny")) if n == 197] == [10, 11]
    with pytest.raises(InputError, match=r"model\.pool: 'convit_tiny' has no class token before blocks\.10, so"):
        VisionExtractor("convit_tiny", untrained=True, pool="cls", layers=[11, 9])
    extractor = extractor_of("convit_tiny", pool=["cls", "avg"], layers=[-1, 10])
    images = images_for(extractor)
    model, layers = reference_model("convit_tiny"), []
    for k in (10, 11):
        model.blocks[k].register_forward_hook(lambda block, inputs, output: layers.insert(0, output))
    model(reference_input("convit_tiny", images))
    expected = {
        "cls": torch.stack([layer[:, 0] for layer in layers], dim=1),
        "avg": torch.stack([layer[:, 1:].mean(1) for layer in layers], dim=1),
    }
    torch.testing.assert_close(features(extractor, images), expected, rtol=1e-5, atol=1e-5)


def n_tokens_of(name):
    model, counts = reference_model(name), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: counts.append(output.shape[1]))
    model(torch.zeros(1, 3, 224, 224))
    return counts


def test_weights_of_nested_blocks_are_checked_as_others(tmp_path):
    name, options = "qwen3_vit_88m", {**SMALL, "img_size": 64}
    state = reference_model(name, seed=11, **options).state_dict()
    file = tmp_path / "weights.safetensors"
    save_file({key: value for key, value in state.items() if not key.startswith("head.")}, file)
    settings = {"options": options, "pool": "avg"}
    extractor = extractor_of(name, untrained=False, checkpoint=str(file), **settings)
    images = images_for(extractor)
    expected = features(extractor_of(name, seed=11, **settings), images)["avg"]
    torch.testing.assert_close(features(extractor, images)["avg"], expected, rtol=0, atol=0)
    del state["encoder.blocks.1.mlp.fc1.weight"]
    save_file(state, file)
    with pytest.raises(InputError, match=r"does not fit .*encoder\.blocks\.1\.mlp\.fc1\.weight"):
        VisionExtractor(name, checkpoint=str(file), **settings).configure_model()


def test_last_block_is_not_normed():
    extractor = extractor_of(TINY)
    images = images_for(extractor)
    model = reference_model(TINY)
    final = model.forward_features(reference_input(TINY, images))[:, 0]
    raw = features(extractor, images)["cls"][:, -1]
    assert not torch.allclose(raw, final, atol=1e-2)
    torch.testing.assert_close(model.norm(raw), final, rtol=1e-5, atol=1e-5)


def test_golden_value():
    """Guards the oracles themselves: random weights of seed 0 and a black image give these numbers."""
    extractor = extractor_of(TINY)
    black = torch.zeros(1, 3, 160, 160, dtype=torch.uint8)
    value = features(extractor, black)["cls"][0, [0, 5], 0]
    torch.testing.assert_close(value, torch.tensor(GOLDEN), rtol=1e-4, atol=1e-5)


GOLDEN = [-0.0276768, -0.0468678]


def test_selected_layers_are_those_of_all_layers_in_the_order_asked_for():
    images = images_for(extractor_of(TINY))
    every = features(extractor_of(TINY), images)["cls"]
    some = extractor_of(TINY, layers=[4, 0, -3])
    assert some.layers == ["blocks.4", "blocks.0", "blocks.3"]
    torch.testing.assert_close(features(some, images)["cls"], every[:, [4, 0, 3]], rtol=0, atol=0)


def test_blocks_behind_the_last_wanted_one_are_not_run():
    extractor = extractor_of(TINY, layers=[1])
    ran = []
    for k, block in enumerate(extractor.backbone.blocks):
        block.register_forward_pre_hook(lambda *_, k=k: ran.append(k))
    features(extractor, images_for(extractor))
    assert ran == [0, 1]


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224.webli", "cait_xxs24_224.fb_dist_in1k"])
def test_models_without_a_class_token_in_their_blocks_refuse_cls(name):
    with pytest.raises(InputError, match=r"no class token.*allowed: avg, avg_all"):
        VisionExtractor(name, untrained=True, pool="cls")


def test_a_name_that_timm_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"did you mean vit_tiny_patch16_224\.augreg_in21k"):
        VisionExtractor("vit_tiny_patch16_224.augreg_in21", pool="avg")


def test_same_seed_same_weights_whatever_the_default_dtype():
    images = images_for(extractor_of(TINY))
    expected = features(extractor_of(TINY, seed=3), images)["cls"]
    torch.manual_seed(99)
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = extractor_of(TINY, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(features(again, images)["cls"], expected, rtol=0, atol=0)
    assert not torch.allclose(features(extractor_of(TINY, seed=4), images)["cls"], expected)


def test_building_an_untrained_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    extractor_of(TINY)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_checkpoint_is_what_runs(tmp_path, suffix):
    model = reference_model(TINY, seed=11)
    file = tmp_path / f"weights.{suffix}"
    state = model.state_dict()
    save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state}, file)
    extractor = extractor_of(TINY, untrained=False, checkpoint=str(file))
    images = images_for(extractor)
    expected = features(extractor_of(TINY, seed=11), images)["cls"]
    torch.testing.assert_close(features(extractor, images)["cls"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("listed", [False, True])
def test_a_checkpoint_may_be_below_the_home(tmp_path, monkeypatch, listed):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / "own.pth")
    models = tmp_path / "models.yml"
    models.write_text(f"vision: [{{name: {TINY}, checkpoint: ~/own.pth}}]" if listed else "vision: []")
    extractor = VisionExtractor(TINY, checkpoint=None if listed else "~/own.pth", models="~/models.yml")
    extractor.configure_model()
    assert extractor.checkpoint == str(tmp_path / "own.pth")


def test_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    state = reference_model(TINY).state_dict()
    del state["blocks.3.attn.qkv.weight"]
    save_file(state, tmp_path / "partial.safetensors")
    extractor = VisionExtractor(TINY, checkpoint=str(tmp_path / "partial.safetensors"))
    with pytest.raises(InputError, match=r"does not fit .*blocks\.3\.attn\.qkv"):
        extractor.configure_model()


def test_a_model_at_another_image_size_gets_images_of_that_size():
    extractor = extractor_of("vit_small_patch14_dinov2.lvd142m", options={"img_size": 224}, pool="avg")
    assert extractor.preprocessing["input_size"] == [3, 224, 224]
    assert features(extractor, images_for(extractor, 1))["avg"].shape == (1, 12, 384)


def test_num_params_counts_the_head():
    expected = sum(parameter.numel() for parameter in timm.create_model(TINY).parameters())
    assert VisionExtractor(TINY, untrained=True).num_params == expected


def test_bad_rows_are_nan_and_the_others_are_not_touched():
    extractor = extractor_of(TINY)
    images = images_for(extractor, 3)
    good = features(extractor, images)["cls"]
    batch = {"index": torch.arange(3), "image": images, "bad": torch.tensor([False, True, False])}
    with torch.no_grad():
        feats = extractor.predict_step(batch)["feats"]["cls"].unflatten(1, (len(extractor.layers), -1))
    assert feats[1].isnan().all()
    torch.testing.assert_close(feats[[0, 2]], good[[0, 2]], rtol=0, atol=0)


def test_out_of_memory_splits_the_batch_and_warns_once(monkeypatch, caplog):
    extractor = extractor_of(TINY)
    images = images_for(extractor, 7)
    expected = features(extractor, images)["cls"]
    whole = extractor.activations
    sizes = []

    def two_at_most(inputs):
        sizes.append(len(inputs["image"]))
        if len(inputs["image"]) > 2:
            raise torch.OutOfMemoryError
        return whole(inputs)

    monkeypatch.setattr(extractor, "activations", two_at_most)
    actual = features(extractor, images)["cls"]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    sizes.clear()
    features(extractor, images)
    assert sizes == [2, 2, 2, 1]  # remembered
    (said,) = caplog.messages
    assert said.startswith("7 rows do not fit")


def test_out_of_memory_with_one_image_is_an_error(monkeypatch):
    extractor = extractor_of(TINY)

    def never(part):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(extractor, "activations", never)
    with pytest.raises(torch.OutOfMemoryError):
        features(extractor, images_for(extractor))


def test_features_do_not_depend_on_the_batch():
    extractor = extractor_of("vit_tiny_patch16_224.augreg_in21k")
    images = images_for(extractor, 5)
    together = features(extractor, images)["cls"]
    alone = torch.cat([features(extractor, image[None])["cls"] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_hub_weights_are_those_of_the_recorded_commit(tmp_path, monkeypatch):
    """The hub is the edge: what is asked of it is noted, and a local file answers."""
    file = tmp_path / "model.safetensors"
    save_file(reference_model(TINY, seed=7).state_dict(), file)
    asked = []

    def download(repo_id, filename, revision=None, **_):
        asked.append((repo_id, filename, revision))
        return str(file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **k: SimpleNamespace(sha=f"of-{k['revision']}"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    extractor = extractor_of(TINY, untrained=False, revision="v2")
    assert extractor.provenance()["weights"] == "hub:timm/test_vit.r160_in1k"
    assert extractor.provenance()["revision"] == "of-v2"
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors", "of-v2")]
    images = images_for(extractor)
    expected = features(extractor_of(TINY, seed=7), images)["cls"]
    torch.testing.assert_close(features(extractor, images)["cls"], expected, rtol=0, atol=0)


def test_weights_that_are_nowhere_are_an_error_before_anything_is_written(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(InputError, match=r"can't be downloaded.*model\.checkpoint.*no route to the hub"):
        VisionExtractor(TINY).provenance()


def test_on_a_cpu_a_batch_goes_through_in_slices_and_gives_the_same(monkeypatch):
    extractor = extractor_of(TINY)
    images = images_for(extractor, 37)
    sizes = []
    extractor.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    sliced = features(extractor, images)["cls"]
    assert sizes == [16, 16, 5]
    monkeypatch.setattr(VisionExtractor, "rows_a_pass_on_cpu", None)
    torch.testing.assert_close(sliced, features(extractor, images)["cls"], rtol=1e-5, atol=1e-5)
    assert sizes == [16, 16, 5, 37]


def test_channels_last_is_another_layout_of_the_same_numbers():
    plain, last = extractor_of(TINY), extractor_of(TINY, channels_last=True)
    images, seen = images_for(plain), []
    patches = last.backbone.patch_embed.proj
    patches.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = features(last, images)["cls"]
    for tensor in (patches.weight, seen[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    torch.testing.assert_close(found, features(plain, images)["cls"], rtol=1e-5, atol=1e-5)
    assert last.provenance() == {**plain.provenance(), "channels_last": True}
    assert "channels_last" not in plain.provenance()


def wrapped(tmp_path, state, prefix="model."):
    file = tmp_path / "wrapped.ckpt"
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}, "epoch": 3}, file)
    return str(file)


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "_orig_mod.backbone."])
def test_wrappers_are_removed_and_reported(tmp_path, caplog, prefix):
    caplog.set_level("INFO")
    state = reference_model(TINY, seed=11).state_dict()
    file = wrapped(tmp_path, state, prefix)
    extractor = extractor_of(TINY, untrained=False, checkpoint=file, options={"num_classes": 0})
    images = images_for(extractor)
    expected = features(extractor_of(TINY, seed=11), images)["cls"]
    torch.testing.assert_close(features(extractor, images)["cls"], expected, rtol=0, atol=0)
    assert f"without the wrappers state_dict, {prefix.split('.')[0]}." in caplog.text


@pytest.mark.parametrize("classes", [{}, {"num_classes": 0}])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("blocks.3.attn.qkv.weight"), r"has no blocks\.3\.attn\.qkv\.weight, which the layers need"),
        (lambda s: s.update({"net.pos_embed": s.pop("pos_embed")}), r"has no pos_embed"),
        (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(64)}), r"no place for blocks\.0\.ls1\.gamma"),
        (lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.ones(5)}), r"does not fit .*blocks\.0\.mlp\.fc1\.bias"),
    ],
)
def test_weights_that_layers_need_are_all_from_the_checkpoint(tmp_path, classes, damage, message):
    state = reference_model(TINY).state_dict()
    damage(state)
    extractor = VisionExtractor(TINY, checkpoint=wrapped(tmp_path, state), options=classes)
    with pytest.raises(InputError, match=message):
        extractor.configure_model()


def test_weights_behind_the_last_layer_may_be_missing(tmp_path):
    state = reference_model(TINY, seed=11).state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(("head.", "norm.", "blocks.5."))}
    extractor = extractor_of(TINY, untrained=False, checkpoint=wrapped(tmp_path, kept), layers=[0, 4])
    images = images_for(extractor)
    expected = features(extractor_of(TINY, seed=11, layers=[0, 4]), images)["cls"]
    torch.testing.assert_close(features(extractor, images)["cls"], expected, rtol=0, atol=0)


@torch.no_grad()
def test_images_need_not_be_square():
    options = {"img_size": [80, 160]}
    extractor = extractor_of(TINY, options=options, pool="avg")
    assert extractor.preprocessing["input_size"] == [3, 80, 160]
    images = images_for(extractor)
    layers = reference_model(TINY, **options).forward_intermediates(
        reference_input(TINY, images), norm=False, output_fmt="NLC", intermediates_only=True
    )
    expected = torch.stack([layer.mean(1) for layer in layers], dim=1)
    torch.testing.assert_close(features(extractor, images)["avg"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vitamin_xlarge_336", {}, r"441 patches and 0 tokens before them, but its blocks have 256 tokens.*img_size"),
        (TINY, {"in_chans": 1}, "in_chans is 1, but RGB images have 3 channels"),
        (TINY, {"global_pool": "nope"}, r"^model\.options: timm can't build '.*' with {'global_pool': 'nope'}: "),
        (
            TINY,
            {"img_size": 97},
            rf"^model\.options: with {{'img_size': 97}}, '{TINY}' can't compute an image of \[3, 97",
        ),
    ],
)
def test_models_that_fail_are_refused_for_the_real_reason(name, options, message):
    with pytest.raises(InputError, match=message):
        VisionExtractor(name, untrained=True, options=options, pool="avg")


def test_recorded_commit_is_resumed_unless_a_revision_is_given(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **k: SimpleNamespace(sha=f"of-{k['revision']}"))
    before = "0123456789abcdef0123456789abcdef01234567"
    for revision, known, expected in (
        (None, before, before),
        ("v2", before, "of-v2"),
        (None, "../refs/main", "of-None"),  # no commit: not used
    ):
        extractor = VisionExtractor(TINY, revision=revision)
        extractor.use_commit_of({"weights": "hub:timm/test_vit.r160_in1k", "revision": known})
        assert extractor.provenance()["revision"] == expected


def test_settings_of_a_command_win_over_those_of_the_entry(tmp_path):
    for name in ("entry.safetensors", "own.safetensors"):
        (tmp_path / name).touch()
    entry, own = (str(tmp_path / name) for name in ("entry.safetensors", "own.safetensors"))
    models = tmp_path / "models.yml"
    models.write_text(f"vision: [{{name: {TINY}, checkpoint: {entry}, revision: old}}]\n")
    given = {"models": str(models)}
    found = [VisionExtractor(TINY, **given, **settings) for settings in ({}, {"revision": "new"}, {"checkpoint": own})]
    assert [(e.checkpoint, e.revision) for e in found] == [(entry, "old"), (None, "new"), (own, None)]


def test_a_local_folder_goes_by_its_own_name(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    model = reference_model(TINY, seed=7)
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = reference_model(TINY).pretrained_cfg
    config = {"input_size": [3, 160, 160], "fixed_input_size": True, "num_classes": 1000}
    config |= {key: pretrained[key] for key in ("mean", "std")}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": config}))
    extractor = extractor_of(f"local-dir:{folder}/", untrained=False)
    assert extractor.provenance()["model"] == "mine"
    assert extractor.provenance()["weights"] == "checkpoint"
    images = images_for(extractor)
    expected = features(extractor_of(TINY, seed=7), images)["cls"]
    torch.testing.assert_close(features(extractor, images)["cls"], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"architecture": "test_vit", "model_args": {"depth": 1000000000}}', "model_args.depth"),
        ('{"architecture": "test_vit", "model_args": {"img_size": [99999999, 5]}}', "model_args.img_size"),
        ('{"model_args": 3}', "model_args"),
        ("[" * 10**5, "config.json"),
    ],
)
def test_a_local_model_is_of_a_size_that_can_be_built(tmp_path, content, named):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=named):
        VisionExtractor(f"local-dir:{tmp_path}", untrained=True)


def test_weights_that_want_quickgelu_are_named_with_their_variant(caplog):
    extractor = VisionExtractor("vit_base_patch16_clip_224.openai")
    extractor._warn_of_activation()
    assert "vit_base_patch16_clip_quickgelu_224.openai" in caplog.text
