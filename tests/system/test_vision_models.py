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
KNOWN = {
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


@pytest.mark.parametrize("name", KNOWN)
def test_models_of_each_kind(name):
    assert ask(name) == (name, *KNOWN[name], "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coat_tiny", "it has no sequence of blocks"),
        ("convmixer_768_32", "its blocks put out maps, not tokens"),
        ("convnext_atto", "its stages differ in width"),
        ("crossvit_9_240", "its blocks do not put out one sequence of tokens for an image"),
        ("efficientnet_lite0", "its blocks put out maps, not tokens"),
        ("hiera_tiny_224", "its blocks differ in width"),
        ("levit_128s", "its stages differ in width"),
        ("resnet18", "its stages differ in width"),
        ("swin_tiny_patch4_window7_224", "its stages differ in width"),
        ("twins_pcpvt_small", "its stages differ in width"),
        ("volo_d1_224", "its stages differ in width"),
    ],
)
def test_reasons(name, reason):
    answer = ask(name)
    assert vision_models.short(answer.reason) == reason
    assert check(answer) == []


def check(answer):
    """What is wrong with an answer: it must be one line that names the model, and features must be of something."""
    if answer.pools:
        sizes = (answer.n_tokens, answer.n_dim, answer.n_layers)
        return [] if min(sizes) > 0 and answer.n_prefix < answer.n_tokens else [answer]
    starts = answer.reason.startswith(f"model.name: '{answer.name}' does not fit: ")
    return [] if starts and answer.reason.isprintable() and len(answer.reason) < 400 else [answer]


def test_the_page_has_all_families_of_this_timm():
    text = page_of_this_timm()
    counts = {family: int(n) for family, n in re.findall(r"^\| (\w+) \| (\d+) \|", text, re.MULTILINE)}
    modules = (timm.model_entrypoint(name).__module__ for name in timm.list_models())
    assert counts == Counter(module.rpartition(".")[2] for module in modules)
    totals = [int(n.replace(",", "")) for n in re.findall(r" ([\d,]+) (?:architectures|give|are)", text)]
    good = sum(int(n) for n in re.findall(r"^\| \w+ \| \d+ \| (\d+) \|", text, re.MULTILINE))
    assert totals == [sum(counts.values()), good, sum(counts.values()) - good]
    readme = (PAGE.parents[1] / "README.md").read_text()
    assert f"[{good} of its architectures](docs/vision-models.md)" in readme


def page_of_this_timm():
    text = PAGE.read_text()
    if f" of timm {timm.__version__}, " not in text:
        pytest.skip(f"the page is not of timm {timm.__version__}")
    return text


@pytest.fixture(scope="module")
def answers():
    return [ask(name) for name in timm.list_models()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_architecture_gives_features_or_its_reason(answers):
    assert len(answers) > 1000
    assert [wrong for answer in answers for wrong in check(answer)] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_is_what_the_architectures_give(answers):
    assert page_of_this_timm() == vision_models.page(answers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_patches_and_the_tokens_before_them_are_those_of_timm(answers):
    """Patches are as many as the size of the image and timm's reduction make; CaiT and XCiT have none before them."""
    wrong = []
    for answer in answers:
        if answer.pools:
            with torch.device("meta"):
                model = timm.create_model(answer.name)
            height, width = model.pretrained_cfg["input_size"][1:]
            model = getattr(model, "encoder", model)
            cell = model.feature_info[-1]["reduction"]
            prefix = 0 if answer.family in ("cait", "xcit") else getattr(model, "num_prefix_tokens", 0)
            if (answer.n_prefix, answer.n_tokens - prefix) != (prefix, (height // cell) * (width // cell)):
                wrong.append((answer, prefix, cell))
    assert wrong == []


@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_the_layers_of_convit_that_have_a_class_token(name):
    assert VisionExtractor(name, untrained=True, pool="cls", layers=[-2, -1]).pools == ["cls"]
    with pytest.raises(InputError, match=r"before blocks\.10"):
        VisionExtractor(name, untrained=True, pool="cls", layers=[-3])
