"""All architectures of timm: each gives features or the reason why not in one line, as docs/vision-models.md says."""

import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import vision_models
from vision_models import ask

from lit_extract.common.errors import InputError
from lit_extract.modules.vision import VisionExtractor

PAGE = Path(__file__).parents[2] / vision_models.PAGE
ALL, NO_CLS = ("cls", "avg", "avg_all"), ("avg", "avg_all")

# Tokens, width, tokens before the patches, blocks and poolings, as they are published.
BLOCKS = {
    "test_vit": (101, 64, 1, 6, ALL),
    "beit_base_patch16_224": (197, 768, 1, 12, ALL),
    "cait_xxs24_224": (196, 192, 0, 24, NO_CLS),
    "convit_tiny": (197, 192, 1, 12, NO_CLS),
    "deepseek_vit_412m": (39 * 39, 1024, 0, 32, NO_CLS),
    "deit3_small_patch16_224": (197, 384, 1, 12, ALL),
    "deit_tiny_distilled_patch16_224": (198, 192, 2, 12, ALL),
    "eva02_tiny_patch14_224": (257, 192, 1, 12, ALL),
    "gemma4_vit_167m": (48 * 48, 768, 0, 16, NO_CLS),
    "mixer_s32_224": (49, 512, 0, 8, NO_CLS),
    "naflexvit_base_patch16_gap": (24 * 24 + 4, 768, 4, 12, NO_CLS),
    "naflexvit_base_patch16_siglip": (24 * 24, 768, 0, 12, NO_CLS),
    "qwen3_vit_88m": (48 * 48, 768, 0, 12, NO_CLS),
    "vit_base_patch16_siglip_224": (196, 768, 0, 12, NO_CLS),
    "vit_pe_core_tiny_patch16_384": (24 * 24 + 1, 192, 1, 12, ALL),
    "vit_relpos_small_patch16_224": (196, 384, 0, 12, NO_CLS),
    "vit_small_patch14_reg4_dinov2": (37 * 37 + 5, 384, 5, 12, ALL),
    "vit_small_patch16_dinov3": (16 * 16 + 5, 384, 5, 12, ALL),
    "vit_tiny_r_s16_p8_224": (50, 192, 1, 12, ALL),
    "vitamin_small_224": (196, 384, 0, 14, NO_CLS),
    "xcit_nano_12_p16_224": (196, 128, 0, 12, NO_CLS),
}


# Names and widths of their stages, as they are published.
STAGES = {
    "resnet50": ("act1 layer1 layer2 layer3 layer4", (64, 256, 512, 1024, 2048)),
    "convnext_base": ("stages.0 stages.1 stages.2 stages.3", (128, 256, 512, 1024)),
    "swin_base_patch4_window7_224": ("layers.0 layers.1 layers.2 layers.3", (128, 256, 512, 1024)),
    "hiera_base_224": ("blocks.1 blocks.4 blocks.20 blocks.23", (96, 192, 384, 768)),
    "efficientnet_b0": ("blocks.0 blocks.1 blocks.2 blocks.4 blocks.6", (16, 24, 40, 112, 320)),
    "mobilenetv3_large_100": ("blocks.0 blocks.1 blocks.2 blocks.4 blocks.6", (16, 24, 40, 112, 960)),
    "regnety_032": ("stem s1 s2 s3 s4", (32, 72, 216, 576, 1512)),
    "hrnet_w18_small": (" ".join(f"intermediates.{k}" for k in range(5)), (64, 128, 256, 512, 1024)),
    "pvt_v2_b2": ("stages.0 stages.1 stages.2 stages.3", (64, 128, 320, 512)),
    "mvitv2_base": ("intermediates.0 intermediates.1 intermediates.2 intermediates.3", (96, 192, 384, 768)),
    "twins_svt_base": ("intermediates.0 intermediates.1 intermediates.2 intermediates.3", (96, 192, 384, 768)),
    "crossvit_9_240": (" ".join(f"intermediates.{k}" for k in range(6)), (128,) * 3 + (256,) * 3),
    "convmixer_768_32": (" ".join(f"blocks.{k}" for k in range(32)), (768,) * 32),
    "samvit_base_patch16": (" ".join(f"blocks.{k}" for k in range(12)), (768,) * 12),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_each_kind(name):
    n_tokens, width, n_prefix, n_blocks, pools = BLOCKS[name]
    layers = tuple(f"blocks.{k}" for k in range(n_blocks))
    assert ask(name) == (name, "blocks", layers, (width,) * n_blocks, n_tokens, n_prefix, pools, "")


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_each_kind(name):
    layers, widths = STAGES[name]
    answer = ask(name)
    assert (answer.kind, " ".join(answer.layers), answer.widths) == ("stages", layers, widths)
    assert answer.pools == ("avg",)


def test_a_reason():
    answer = ask("vitamin_xlarge_336")
    assert answer.reason.startswith("model.name: 'vitamin_xlarge_336' is not supported: timm declares 441 patches")
    assert check(answer) == []


def check(answer):
    """What is wrong with an answer: it must be one line that names the model, and features must be of something."""
    if answer.kind:
        is_named = len({*answer.layers}) == len(answer.layers) == len(answer.widths) > 0
        return [] if is_named and min(answer.widths) > 0 and answer.n_prefix < answer.n_tokens else [answer]
    starts = answer.reason.startswith(f"model.name: '{answer.name}' is not supported: ")
    return [] if starts and answer.reason.isprintable() and len(answer.reason) < 400 else [answer]


def test_the_page_has_all_families_of_this_timm():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", page_of_this_timm(), re.MULTILINE)
    counts = {family: int(n) for family, n, _ in rows}
    modules = (timm.model_entrypoint(name).__module__ for name in timm.list_models())
    assert counts == Counter(module.rpartition(".")[2] for module in modules)
    n_all, n_good = sum(counts.values()), sum(int(good) for *_, good in rows)
    words = (PAGE.parent / "image-features.md").read_text()
    assert f"[{n_good:,} of its {n_all:,} architectures](vision-models.md)" in words
    assert f" {n_all - n_good} refused" in page_of_this_timm()


def page_of_this_timm():
    text = PAGE.read_text()
    if f" of timm {timm.__version__}, " not in text:
        pytest.skip(f"the page is not of timm {timm.__version__}")
    return text


@pytest.fixture(scope="module")
def answers():
    return [ask(name) for name in timm.list_models()]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_architecture_gives_features_or_its_reason(answers):
    assert len(answers) > 1000
    assert [wrong for answer in answers for wrong in check(answer)] == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_page_is_what_the_architectures_give(answers):
    assert page_of_this_timm() == vision_models.page(answers)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_patches_and_the_tokens_before_them_are_those_of_timm(answers):
    """Patches are as many as the size of the image and timm's reduction make; CaiT and XCiT have none before them."""
    wrong = []
    for answer in answers:
        if answer.kind == "blocks":
            with torch.device("meta"):
                model = timm.create_model(answer.name)
            height, width = model.pretrained_cfg["input_size"][1:]
            model = getattr(model, "encoder", model)
            cell = model.feature_info[-1]["reduction"]
            prefix = 0 if answer.family in ("cait", "xcit") else getattr(model, "num_prefix_tokens", 0)
            if (answer.n_prefix, answer.n_tokens - prefix) != (prefix, (height // cell) * (width // cell)):
                wrong.append((answer, prefix, cell))
    assert wrong == []


RESHAPES = ("Permute", "View", "UnsafeView", "Reshape", "Clone", "Transpose", "Slice", "Select", "Squeeze", "Unsqueeze")


def is_output_of(module, found):
    """Whether a map is what the module put out, perhaps reshaped, by the graph that autograd keeps."""
    step = found.grad_fn
    while step is not None and step not in module and type(step).__name__.startswith(RESHAPES):
        step = step.next_functions[0][0]
    return step in module


# These put out what comes after a function in place of the module that timm lists; tests of values are in test_stages.
BY_VALUE = {"legacy_xception", "nasnetalarge", "pnasnet5large"}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_stages_are_called_after_the_modules_that_put_them_out(answers):
    wrong = []
    for answer in answers:
        if answer.kind != "stages" or answer.name in BY_VALUE:
            continue
        with torch.device("meta"):
            model = timm.create_model(answer.name).eval()
        steps = {layer: [] for layer in answer.layers if not layer.startswith("intermediates.")}

        def note(layer, output, steps=steps):
            tensors = output if isinstance(output, tuple | list) else [output]
            steps[layer] += [tensor.grad_fn for tensor in tensors if isinstance(tensor, torch.Tensor)]

        for layer in steps:
            hook = lambda module, inputs, output, layer=layer: note(layer, output)  # noqa: E731
            model.get_submodule(layer).register_forward_hook(hook)
        images = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")
        maps = model.forward_intermediates(images, intermediates_only=True)
        found = dict(zip(answer.layers, maps, strict=True))
        wrong += [(answer.name, layer) for layer in steps if not is_output_of(steps[layer], found[layer])]
    assert wrong == []


@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_the_layers_of_convit_that_have_a_class_token(name):
    assert VisionExtractor(name, untrained=True, pool="cls", layers=[-2, -1]).pools == ["cls"]
    with pytest.raises(InputError, match=r"before blocks\.10"):
        VisionExtractor(name, untrained=True, pool="cls", layers=[-3])
