"""Maps of stages against torchvision's own models, timm's features_only networks, and plain hooks.

B batch, C channels, H height, W width.
"""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lit_extract.common.errors import InputError
from lit_extract.modules.stages import Stages
from lit_extract.modules.vision import VisionExtractor

RESNET = "resnet18.a1_in1k"


def extractor_of(name, **settings):
    extractor = VisionExtractor(name, **{"untrained": True, "pool": "avg", **settings}).eval()
    extractor.configure_model()
    return extractor


@torch.no_grad()
def roughened(model):
    """Weights and statistics so far from their initial ones that no two stages or images give the same."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.5)
        elif tensor.is_floating_point():
            tensor += noise * (0.1 if tensor.ndim == 1 else 0.02)
    return model


def images_for(extractor, n=2):
    """Images of a few large squares: of noise alone, means over a map would be nearly the same for all."""
    generator = torch.Generator().manual_seed(1)
    squares = torch.randint(0, 256, (n, 3, 4, 4), generator=generator).float()
    return nn.functional.interpolate(squares, extractor.preprocessing["input_size"][1:]).to(torch.uint8)


@torch.no_grad()
def features(extractor, images, pool="avg"):
    """Rows by the name of their layer, (B, C) each."""
    batch = {"index": torch.arange(len(images)), "image": images, "bad": torch.zeros(len(images), dtype=torch.bool)}
    feats = extractor.predict_step(batch)["feats"][pool]
    widths = [width for (width,) in extractor.layer_shapes]
    return dict(zip(extractor.layers, feats.split(widths, dim=1), strict=True))


def reference(name, images, **options):
    """The same random model and its input, made without the code under test."""
    torch.manual_seed(0)
    model = roughened(timm.create_model(name, **options).eval())
    config = timm.data.resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return model, (images / 255 - mean) / std


def close(actual, expected):
    """Random networks make images alike in their last layers, but not in the first."""
    assert [*actual] == [*expected]
    assert next(iter(expected.values())).std(dim=0).max() > 1e-3
    for layer, rows in expected.items():
        assert actual[layer].dtype == torch.float32
        torch.testing.assert_close(actual[layer], rows, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_that_of_torchvision(name):
    extractor = extractor_of(f"{name}.a1_in1k")
    images = images_for(extractor)
    _, pixels = reference(f"{name}.a1_in1k", images)
    model = getattr(torchvision.models, name)().eval()
    model.load_state_dict(roughened(extractor.backbone).state_dict())
    expected = {}
    x = model.relu(model.bn1(model.conv1(pixels)))
    expected["act1"] = x.mean((2, 3))
    x = model.maxpool(x)
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(model, layer)(x)
        expected[layer] = x.mean((2, 3))
    close(features(extractor, images), expected)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto.d2_in1k",
        "efficientnet_b0.ra_in1k",
        "mobilenetv3_small_050.lamb_in1k",
        "regnety_002.pycls_in1k",
        "vgg11.tv_in1k",
        "densenet121.ra_in1k",
        "xception41.tf_in1k",
        "resnetv2_18.ra4_e3600_r224_in1k",
        "hrnet_w18_small.gluon_in1k",
    ],
)
def test_stages_are_those_of_a_network_that_timm_rebuilds(name):
    """Features_only makes another network of the modules, or hooks them, and counts channels itself."""
    extractor = extractor_of(name)
    images = images_for(extractor)
    model, pixels = reference(name, images)
    roughened(extractor.backbone)
    torch.manual_seed(0)
    rebuilt = timm.create_model(name, features_only=True).eval()
    assert type(rebuilt).__name__ != "FeatureGetterNet", "it would call forward_intermediates itself"
    names = {key.replace(".", "_"): key for key in model.state_dict()}
    theirs = {key.removeprefix("body.").replace(".", "_"): key for key in rebuilt.state_dict()}
    weights = {theirs[flat]: model.state_dict()[names[flat]] for flat in theirs}
    rebuilt.load_state_dict(weights)
    maps = rebuilt(pixels)
    n = min(len(maps), len(extractor.layers))  # of VGG timm rebuilds one less
    expected = [found.mean((2, 3)) for found in maps][:n]
    close(
        dict([*features(extractor, images).items()][:n]),
        dict(zip(extractor.layers[:n], expected, strict=True)),
    )
    assert [rows.shape[1] for rows in expected] == rebuilt.feature_info.channels()[:n]


def first_map(output):
    return output.mean((2, 3))


def last_map(output):
    return output.mean((1, 2))


def tokens(output):
    return output.mean(1)


def patches(output):
    return output[:, 1:].mean(1)


CELLS = ("cell_stem_1", "reduction_cell_0", "reduction_cell_1"), ("cell_stem_1", "cell_4", "cell_8")
NASNET = ["conv0", *(f"{cell}.conv_1x1.act" for cell in CELLS[0]), "act"]
PNASNET = ["conv_0", *(f"{cell}.conv_1x1.act" for cell in CELLS[1]), "act"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "places", "mean"),
    [
        ("swin_tiny_patch4_window7_224", [f"layers.{k}" for k in range(4)], last_map),
        ("hiera_tiny_224", ["blocks.0", "blocks.2", "blocks.9", "blocks.11"], tokens),
        ("pvt_v2_b0", [f"stages.{k}" for k in range(4)], first_map),
        ("mvitv2_tiny", [f"stages.{k}" for k in range(4)], tokens),
        ("twins_svt_small", ["blocks.0.1", "blocks.1.1", "blocks.2.9", "blocks.3.3"], tokens),
        ("coat_lite_mini", [f"serial_blocks{k}.1" for k in (1, 2, 3, 4)], patches),
        ("levit_128s", [f"stages.{k}" for k in range(3)], tokens),
        ("maxvit_rmlp_pico_rw_256", ["stem", *(f"stages.{k}" for k in range(4))], first_map),
        ("convmixer_768_32", [f"blocks.{k}" for k in range(32)], first_map),
        ("samvit_base_patch16_224", [f"blocks.{k}" for k in range(12)], last_map),
        pytest.param("nasnetalarge", NASNET, first_map, marks=pytest.mark.slow),
        pytest.param("pnasnet5large", PNASNET, first_map, marks=pytest.mark.slow),
        ("legacy_xception", ["act2", "block2.rep.0", "block3.rep.0", "block12.rep.0", "act4"], first_map),
    ],
)
def test_stages_are_what_leaves_the_modules_of_that_place(name, places, mean):
    """Some are called by another name than their module's, as timm lists none that is true."""
    extractor = extractor_of(name)
    images = images_for(extractor)
    model, pixels = reference(name, images)
    roughened(extractor.backbone)
    expected, outputs = {}, {}
    for place in places:
        hook = lambda module, inputs, output, place=place: outputs.update({place: output})  # noqa: E731
        model.get_submodule(place).register_forward_hook(hook)
    model(pixels)
    for place, output in outputs.items():
        expected[place] = mean(output[0] if isinstance(output, tuple) else output)
    actual = features(extractor, images)
    if "intermediates.0" in actual:
        assert [*actual] == [f"intermediates.{k}" for k in range(len(places))]
        actual = dict(zip(places, actual.values(), strict=True))
    close(actual, {place: expected[place] for place in places})


@torch.no_grad()
def test_two_branches_of_tokens():
    """CrossViT: three groups of blocks, each with a branch of small patches and one of large ones."""
    extractor = extractor_of("crossvit_9_240")
    images = images_for(extractor)
    model, pixels = reference("crossvit_9_240", images)
    roughened(extractor.backbone)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(pixels)
    expected = [output[branch][:, 1:].mean(1) for branch in (0, 1) for output in outputs]
    close(features(extractor, images), {f"intermediates.{k}": rows for k, rows in enumerate(expected)})


def test_selected_stages_in_the_order_asked_for():
    images = images_for(extractor_of(RESNET))
    every = features(extractor_of(RESNET), images)
    assert extractor_of(RESNET, layers=["layer3", "layer1"]).layers == ["layer3", "layer1"]
    assert extractor_of(RESNET, layers="layer4").layers == ["layer4"]
    some = extractor_of(RESNET, layers=[3, 0, -3])
    assert (some.layers, some.layer_shapes) == (["layer3", "act1", "layer2"], [(256,), (64,), (128,)])
    for layer, rows in features(some, images).items():
        torch.testing.assert_close(rows, every[layer], rtol=0, atol=0)


def test_nothing_after_the_last_wanted_stage_is_computed():
    extractor, ran = extractor_of(RESNET, layers=[1, 2]), []
    for part in ("layer2", "layer3", "fc"):
        extractor.backbone.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: ran.append(part))
    features(extractor, images_for(extractor))
    assert ran == ["layer2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "cls"}, r"model\.pool: the layers of 'resnet18' are maps.*'cls'; allowed: avg, .*head$"),
        ({"pool": ["avg", "avg_all"]}, r"model\.pool: .*'avg_all'; allowed: avg, .*head$"),
        ({"layers": "norm"}, r"model\.layers: 'resnet18' has stages.*pool: head"),
        ({"layers": [5]}, r"model\.layers: 5 out of range; the model has 5 stages, -5 to 4"),
        ({"layers": ["stages"]}, r"model\.layers: 'stages' must be blocks, norm, one of the stages act1, layer1, .*"),
        (
            {"preprocessing": {"input_size": [3, 1, 1]}, "name": "vgg11"},
            r"model\.preprocessing: input_size \[3, 1, 1\]",
        ),
        ({"name": "swin_tiny_patch4_window7_224", "preprocessing": {"input_size": [3, 96, 96]}}, "img_size: 96"),
    ],
)
def test_what_stages_can_not_give_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as refused:
        VisionExtractor(**{"name": "resnet18", "untrained": True, "pool": "avg", **settings})
    assert "\n" not in str(refused.value)


class Staged(nn.Module):
    """A model of one stage of four channels, which it may list otherwise."""

    def __init__(self, channels=4, dims=2):
        super().__init__()
        self.feature_info = [{"num_chs": channels, "module": "conv"}]
        self.conv = nn.Conv2d(3, 4, 1, device="meta")
        self.dims = dims

    def forward_intermediates(self, x, **_):
        x = self.conv(x)
        return [x.flatten(2) if self.dims == 1 else x]


def test_maps_are_compared_with_what_timm_lists():
    stages = Stages("x", Staged(), "blocks", [3, 5, 5], "it has no blocks")
    assert (stages.layers, [form.width for form in stages.forms]) == (["conv"], [4])
    for model in (Staged(channels=5), Staged(dims=1)):
        with pytest.raises(InputError, match=r"'x' is not supported: it has no blocks, and timm lists stages of [45]"):
            Stages("x", model, "blocks", [3, 5, 5], "it has no blocks")


@pytest.mark.parametrize("missing", ["feature_info", "forward_intermediates"])
def test_a_model_without_blocks_or_stages_is_refused_with_both_reasons(missing):
    model = nn.Identity()
    if missing != "feature_info":
        model.feature_info = [{"num_chs": 4, "module": "x"}]
    with pytest.raises(InputError, match=r"is not supported: it has no blocks, and timm has no forward_intermediates"):
        Stages("x", model, "blocks", [3, 5, 5], "it has no blocks")


def test_images_of_another_size():
    size = [3, 96, 128]
    extractor = extractor_of(RESNET, preprocessing={"input_size": size})
    images = images_for(extractor)
    assert images.shape[1:] == (3, 96, 128)
    model, pixels = reference(RESNET, images)
    roughened(extractor.backbone)
    with torch.no_grad():
        expected = model.forward_features(pixels).mean((2, 3))
    torch.testing.assert_close(features(extractor, images)["layer4"], expected, rtol=1e-5, atol=1e-5)


def test_rows_do_not_depend_on_their_batch():
    """As they would, were batch norm not in eval mode."""
    extractor = VisionExtractor(RESNET, untrained=True, pool="avg", preprocessing={"input_size": [3, 64, 64]})
    extractor.configure_model()
    images = images_for(extractor, 3)
    together = features(extractor, images)
    for row, image in enumerate(images):
        for layer, rows in features(extractor, image[None]).items():
            torch.testing.assert_close(rows[0], together[layer][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [RESNET, "convnext_atto.d2_in1k", "swin_tiny_patch4_window7_224.ms_in1k"])
def test_channels_last_and_bfloat16_are_the_same_stages(name):
    plain, last, half = extractor_of(name), extractor_of(name, channels_last=True), extractor_of(name)
    half.backbone.bfloat16()
    images = images_for(plain)
    expected, found, rounded = (features(extractor, images) for extractor in (plain, last, half))
    for layer, rows in expected.items():
        torch.testing.assert_close(found[layer], rows, rtol=1e-5, atol=1e-5)
        assert rounded[layer].dtype == torch.float32
        assert 0 < (rounded[layer] - rows).norm() < 0.05 * rows.norm()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "meaning"),
    [
        (RESNET, {}, "logits of 1,000 classes"),
        (RESNET, {"num_classes": 0}, "embedding: the pooled vector, without a classifier"),
        ("convnext_atto.d2_in1k", {"num_classes": 0}, "embedding: the pooled vector, without a classifier"),
        ("swin_tiny_patch4_window7_224.ms_in1k", {}, "logits of 1,000 classes"),
        ("resnet50_clip.openai", {}, "embedding: the pooled and projected vector"),
        ("crossvit_9_240.in1k", {}, "logits of 1,000 classes"),
    ],
)
def test_head_is_what_the_model_outputs(name, options, meaning):
    extractor = extractor_of(name, pool="head", options=options)
    images = images_for(extractor)
    model, pixels = reference(name, images, **options)
    roughened(extractor.backbone)
    close(features(extractor, images, "head"), {"head": model(pixels)})
    assert extractor.notes["head_meaning"] == meaning


def checkpoint_of(folder, name, change, **options):
    torch.manual_seed(11)
    state = roughened(timm.create_model(name, **options)).state_dict()
    change(state)
    save_file(state, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def without(*names):
    def change(state):
        gone = [name for name in state if name.startswith(names)]
        assert gone
        for name in gone:
            del state[name]

    return change


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (lambda state: None, {}, None),
        (without("fc."), {}, None),
        (without("fc."), {"options": {"num_classes": 0}}, None),
        (lambda state: None, {"options": {"num_classes": 0}}, None),
        (without("layer4.", "fc."), {"layers": [0, 3]}, None),
        (without("fc."), {"pool": "head"}, "has no fc.weight, fc.bias"),
        (without("layer4.1.bn2.running_mean"), {}, r"has no layer4\.1\.bn2\.running_mean, which the layers need"),
        (without("layer4.1.bn2.running_mean"), {"layers": [0, 3]}, None),
        (without("bn1.running_var"), {"layers": [0]}, r"has no bn1\.running_var"),
        (without("conv1."), {"layers": [-1]}, r"has no conv1\.weight"),
        (lambda state: state.update({"layer1.0.conv9.weight": torch.ones(1)}), {}, r"no place for layer1\.0\.conv9"),
        (lambda state: state.update({"layer5.0.bias": torch.ones(1)}), {}, r"no place for layer5\.0\.bias"),
    ],
)
def test_weights_of_the_stages_are_all_from_the_checkpoint(tmp_path, change, settings, named):
    settings = {"untrained": False, "checkpoint": checkpoint_of(tmp_path, RESNET, change), **settings}
    if named:
        with pytest.raises(InputError, match=rf"^model\.checkpoint: .*does not fit .*{named}"):
            extractor_of(RESNET, **settings)
        return
    extractor = extractor_of(RESNET, **settings)
    images = images_for(extractor)
    whole = extractor_of(RESNET, untrained=False, checkpoint=checkpoint_of(tmp_path, RESNET, lambda state: None))
    expected = features(whole, images)
    for layer, rows in features(extractor, images).items():
        torch.testing.assert_close(rows, expected[layer], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto.d2_in1k", "efficientnet_b0.ra_in1k", "regnety_002.pycls_in1k"])
def test_a_checkpoint_without_its_classifier_or_for_a_model_without_one(tmp_path, name):
    classifier = timm.create_model(name, pretrained=False).pretrained_cfg["classifier"]
    for change, options in ((without(classifier), {}), (lambda state: None, {"num_classes": 0})):
        file = checkpoint_of(tmp_path, name, change)
        extractor_of(name, untrained=False, checkpoint=file, options=options)
    file = checkpoint_of(tmp_path, name, without(classifier))
    with pytest.raises(InputError, match=classifier):
        extractor_of(name, untrained=False, checkpoint=file, pool="head")


def test_superfluous_tensors_of_a_part_are_refused_though_others_of_it_are_missing(tmp_path):
    """Those that are missing are of a later stage, which is not needed."""
    name = "convnext_atto.d2_in1k"

    def change(state):
        without("stages.3.")(state)
        state["stages.0.gamma"] = torch.ones(1)

    file = checkpoint_of(tmp_path, name, change)
    with pytest.raises(InputError, match=r"no place for stages\.0\.gamma"):
        extractor_of(name, untrained=False, checkpoint=file, layers=[0])
