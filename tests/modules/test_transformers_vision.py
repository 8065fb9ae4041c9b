"""Features of vision models of Transformers against its own hidden states, one image at a time."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import transformers
from helpers.vision_families import CROPPED, FAMILIES, REFUSED, save
from PIL import Image
from safetensors.torch import load_file, save_file

from lit_extract.common.errors import InputError
from lit_extract.data.images import ImageFolderDataModule
from lit_extract.modules.transformers_vision import TransformersVisionExtractor
from lit_extract.modules.vision import VisionExtractor


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars, and no remarks on the text models of families, whose vocabularies are tiny."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from the name of a family to its folder, made once."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / "tiny"
            save(made[family], *{**FAMILIES, **REFUSED}[family][:2])
        return str(made[family])

    return folder


def features_of(extractor, images, batch_size=64):
    """Features (N, P, L·D) of all images of a folder, in its order."""
    extractor.configure_model()
    data = ImageFolderDataModule(
        str(images), num_workers=0, batch_size=batch_size, preprocessing=extractor.preprocessing
    )
    with torch.no_grad():
        batches = list(data.predict_dataloader())
        assert not any(batch["bad"].any() for batch in batches)
        parts = [extractor.activations({name: batch[name] for name in extractor.inputs})["feats"] for batch in batches]
    return torch.cat(parts)


def hidden_states(folder, image):
    """What Transformers itself gives for one image: the blocks (T, D) each, its output, and the mask of its patches."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    is_of_videos = model.main_input_name == "pixel_values_videos"
    if is_of_videos:
        inputs = transformers.AutoVideoProcessor.from_pretrained(folder)([image], return_tensors="pt")
    else:
        inputs = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    tower = getattr(model, "vision_model", getattr(model, "vision_tower", model))
    tower.config.tie_last_hidden_states = False
    with torch.no_grad():
        output = tower(**inputs, output_hidden_states=True)
        embedding = model.get_image_features(**inputs).pooler_output if hasattr(model, "text_model") else None
    states = [state[0] for state in output.hidden_states[1:]]
    mask = inputs.get("pixel_attention_mask", torch.ones(1, 16))[0].bool()
    return states, output, embedding, mask


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three smooth images of differing shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(60, 40), (40, 60), (50, 50)]):
        pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_hidden_states(family, folder_of, pictures):
    """Alone and in company; patches are the last tokens, whatever comes before them."""
    folder, n_prefix = folder_of(family), FAMILIES[family][2]
    has_class_token = n_prefix in (1, 2, 5)
    pools = ["cls", "avg", "avg_all"] if has_class_token else ["avg", "avg_all"]
    extractor = TransformersVisionExtractor(folder, pool=pools)
    assert extractor.layers == ["blocks.0", "blocks.1", "blocks.2"]
    assert extractor.layer_shapes == [(32,)] * 3
    together, alone = features_of(extractor, pictures), features_of(extractor, pictures, batch_size=1)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    for row in range(3):
        with Image.open(pictures / f"{row}.png") as image:
            states, _, _, mask = hidden_states(folder, image)
        assert all(len(state) == n_prefix + 16 for state in states)
        kept = torch.cat([torch.ones(n_prefix, dtype=torch.bool), mask])
        expected = {
            "cls": torch.cat([state[0] for state in states]),
            "avg": torch.cat([state[n_prefix:][mask].mean(0) for state in states]),
            "avg_all": torch.cat([state[kept].mean(0) for state in states]),
        }
        for place, pool in enumerate(pools):
            torch.testing.assert_close(together[row, place], expected[pool], rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3, "else a constant would pass"


def test_grids_and_tokens(folder_of, pictures):
    """Of 4 × 4 patches; a grid of 2 × 2 has the means of its quarters."""
    folder = folder_of("DINOv3")
    grid = TransformersVisionExtractor(folder, pool="grid2", layers=[1])
    tokens = TransformersVisionExtractor(folder, pool="tokens", layers=[1])
    assert (grid.layer_shapes, tokens.layer_shapes) == ([(4, 32)], [(21, 32)])
    assert (grid.makes_files, tokens.makes_files) == (True, False)
    with Image.open(pictures / "1.png") as image:
        state = hidden_states(folder, image)[0][1]
    quarters = state[5:].reshape(2, 2, 2, 2, 32).mean(dim=(1, 3)).reshape(4, 32)
    torch.testing.assert_close(features_of(grid, pictures)[1, 0], quarters.flatten(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features_of(tokens, pictures)[1, 0], state.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["tokens", "grid2", "cls"])
def test_of_padded_patches_there_are_only_means(folder_of, pool):
    with pytest.raises(InputError, match=r"model\.pool: .*pads its patches"):
        TransformersVisionExtractor(folder_of("SigLIP 2 NaFlex"), pool=pool)


# What its own output is, and whether its last tokens are normed; those of the others are refused.
NORMED = {
    *("DINOv2", "DINOv2 with registers", "DINOv3", "SigLIP", "SigLIP 2 NaFlex", "ViT", "DeiT", "ViT-MSN", "AIMv2"),
    *("AIMv2, with text", "I-JEPA", "V-JEPA 2", "Pixio", "BLIP", "TIPSv2, vision alone"),
}
WITHOUT_OUTPUT = {"data2vec-vision", "ViT-MSN", "I-JEPA", "V-JEPA 2", "LLaVA, its vision tower"}


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_is_the_last_hidden_state_where_that_is_normed(family, folder_of, pictures):
    folder, n_prefix = folder_of(family), FAMILIES[family][2]
    if family not in NORMED:
        with pytest.raises(InputError, match=r"model\.layers: .*no final norm"):
            TransformersVisionExtractor(folder, pool="avg", layers="norm")
        return
    found = features_of(TransformersVisionExtractor(folder, pool="avg", layers=["norm", -1]), pictures)
    with Image.open(pictures / "1.png") as image:
        states, output, _, mask = hidden_states(folder, image)
    tokens = [output.last_hidden_state[0], states[-1]]
    expected = torch.cat([layer[n_prefix:][mask].mean(0) for layer in tokens])
    torch.testing.assert_close(found[1, 0], expected, rtol=1e-5, atol=1e-5)
    assert (expected[:32] - expected[32:]).abs().max() > 1e-3, "else the norm does nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_what_the_model_itself_puts_out(family, folder_of, pictures):
    folder = folder_of(family)
    if family in WITHOUT_OUTPUT:
        with pytest.raises(InputError, match=r"model\.pool: .*head"):
            TransformersVisionExtractor(folder, pool="head")
        return
    extractor = TransformersVisionExtractor(folder, pool="head")
    assert extractor.layers == ["head"]
    found = features_of(extractor, pictures)
    with Image.open(pictures / "1.png") as image:
        _, output, embedding, _ = hidden_states(folder, image)
    expected = output.pooler_output if embedding is None else embedding
    # CPUs differ in the last bits, which the attention of SigLIP's head makes 40 times as large
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-4)
    assert extractor.layer_shapes == [(expected.shape[1],)]
    assert ("get_image_features" if embedding is not None else "pooler_output") in extractor.notes["head_meaning"]


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_has_its_reason(family, folder_of):
    with pytest.raises(InputError, match=r"model\.name: ") as error:
        TransformersVisionExtractor(folder_of(family), pool="avg")
    assert REFUSED[family][2] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_weights_in_timm_give_the_same_features(tmp_path, pictures):
    """DINOv2 in both libraries, through both extractors and both ways to resize an image with Pillow."""
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    torch.manual_seed(0)
    twin = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **settings).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    save_file(twin.state_dict(), tmp_path / "timm.safetensors")
    named = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    within = {
        **{"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense"},
        **{"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    }
    weights = {}
    for name, tensor in twin.state_dict().items():
        path, _, kind = name.rpartition(".") if not name.endswith(("cls_token", "pos_embed")) else (name, "", "")
        if not path.startswith("blocks."):
            weights[f"{named[path]}.{kind}".rstrip(".")] = tensor
            continue
        _, k, part = path.split(".", 2)
        inner = f"encoder.layer.{k}"
        if part == "attn.qkv":
            for which, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                weights[f"{inner}.attention.attention.{which}.{kind}"] = piece.clone()
        elif part in ("ls1", "ls2"):
            weights[f"{inner}.layer_scale{part[-1]}.lambda1"] = tensor
        else:
            weights[f"{inner}.{within[part]}.{kind}"] = tensor
    config = transformers.Dinov2Config(
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    )
    config.save_pretrained(tmp_path / "dinov2")
    weights["embeddings.mask_token"] = torch.zeros(1, 32)
    save_file(weights, tmp_path / "dinov2" / "model.safetensors", metadata={"format": "pt"})
    given = {"crop_pct": 0.8, "crop_mode": "center", "interpolation": "bicubic"}
    of_timm = VisionExtractor(
        "vit_small_patch14_dinov2",
        checkpoint=str(tmp_path / "timm.safetensors"),
        options={**settings, "num_classes": 0},
        pool=["cls", "avg"],
        layers=["blocks", "norm"],
        preprocessing=given,
    )
    scale = {"image_mean": of_timm.preprocessing["mean"], "image_std": of_timm.preprocessing["std"]}
    transformers.BitImageProcessorPil(**CROPPED, **scale).save_pretrained(tmp_path / "dinov2")
    extractor = TransformersVisionExtractor(
        str(tmp_path / "dinov2"), pool=["cls", "avg"], layers=["blocks", "norm"], backend="pil"
    )
    found, expected = features_of(extractor, pictures), features_of(of_timm, pictures)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_backends_are_chosen_and_recorded(folder_of, image_folder):
    folder = folder_of("DINOv2")
    fast, slow = (TransformersVisionExtractor(folder, backend=backend) for backend in ("torchvision", "pil"))
    assert fast.preprocessing["image_processor"] == "BitImageProcessor"
    assert slow.preprocessing["image_processor"] == "BitImageProcessorPil"
    assert slow.preprocessing["settings"]["size"] == {"shortest_edge": 40}
    assert json.loads(json.dumps(slow.preprocessing)) == slow.preprocessing
    assert TransformersVisionExtractor(folder).preprocessing == fast.preprocessing
    assert (features_of(fast, image_folder) - features_of(slow, image_folder)).abs().max() > 1e-6


def test_a_backend_that_a_processor_lacks(folder_of):
    with pytest.raises(InputError, match=r"model\.backend: 'pil'.*DINOv3ViTImageProcessor"):
        TransformersVisionExtractor(folder_of("DINOv3"), backend="pil")


@pytest.fixture
def incomplete(folder_of, tmp_path):
    """A function that copies a family's folder without some of its weights."""

    def copy(family, *missing):
        folder = tmp_path / "incomplete"
        shutil.copytree(folder_of(family), folder)
        weights = load_file(folder / "model.safetensors")
        left = {name: tensor for name, tensor in weights.items() if not any(part in name for part in missing)}
        assert len(left) < len(weights)
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return copy


@pytest.mark.parametrize(
    ("family", "missing", "settings"),
    [
        ("ViT", ".1.", {}),
        ("ViT", "pooler", {"pool": "head"}),
        ("ViT", "layernorm.weight", {"layers": "norm"}),
        ("DINOv3", "register_tokens", {}),
        ("CLIP", "visual_projection", {"pool": "head"}),
        ("MLCD", "class_pos_emb", {}),
    ],
)
def test_weights_that_the_layers_need(incomplete, family, missing, settings):
    extractor = TransformersVisionExtractor(incomplete(family, missing), **settings)
    with pytest.raises(InputError, match=r"model\.checkpoint: .*has no weights") as error:
        extractor.configure_model()
    assert missing in str(error.value)


@pytest.mark.parametrize(
    ("family", "missing", "settings"),
    [
        ("ViT", ("pooler", "layernorm.weight", "layernorm.bias"), {}),
        ("ViT", (".2.",), {"layers": [0, 1]}),
        ("DINOv2", ("mask_token",), {}),
        ("CLIP", ("text_model", "projection", "post_layernorm"), {}),
        ("V-JEPA 2", ("predictor",), {"pool": "avg"}),
    ],
)
def test_weights_that_no_layer_needs_may_be_missing(incomplete, folder_of, pictures, family, missing, settings):
    """As published ones do: of a model without the pooler that Transformers would add, of a vision model alone."""
    found = features_of(TransformersVisionExtractor(incomplete(family, *missing), **settings), pictures)
    expected = features_of(TransformersVisionExtractor(folder_of(family), **settings), pictures)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_random_weights_depend_on_the_seed_alone(folder_of, pictures):
    folder = folder_of("DINOv3")
    models = [TransformersVisionExtractor(folder, untrained=True, seed=seed) for seed in (0, 0, 1)]
    torch.manual_seed(5)
    first, again, other = (features_of(model, pictures) for model in models)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 1e-3
    assert "config_sha256" in models[0].provenance()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layers": [7]}, "model.layers: 7"),
        ({"layers": [0, "norm", 0]}, "model.layers"),
        ({"pool": ["cls", "head"]}, "model.pool"),
        ({"pool": "head", "layers": "norm"}, "model.layers"),
        ({"pool": "last"}, "model.pool"),
        ({"options": {"nonsense": 3}}, "'nonsense'"),
    ],
)
def test_wrong_settings(folder_of, settings, named):
    with pytest.raises(InputError) as error:
        TransformersVisionExtractor(folder_of("ViT"), **settings)
    assert named in str(error.value)


def test_a_folder_without_a_processor(folder_of, tmp_path):
    shutil.copytree(folder_of("ViT"), tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        TransformersVisionExtractor(str(tmp_path / "bare"))


def test_images_of_a_size_that_the_model_does_not_take(folder_of, tmp_path):
    shutil.copytree(folder_of("CLIP"), tmp_path / "other")
    transformers.SiglipImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"model\.name: .*48"):
        TransformersVisionExtractor(str(tmp_path / "other"))
