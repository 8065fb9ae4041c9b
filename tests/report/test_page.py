"""The page: it stands alone, whatever is missing."""

import re

import matplotlib as mpl
import numpy as np
from helpers import oracles

from lit_extract.common.errors import InputError
from lit_extract.report import plots, stimuli
from lit_extract.report.comparison import CKA
from lit_extract.report.make import measure


def test_a_model_without_any_number_is_no_crash(save, numbers, page, random_features):
    save("nothing", np.full((24, 3, 6), np.nan))
    save("vit", random_features())
    found = numbers()
    assert any("nothing: 24 rows are NaN" in warning for warning in found["warnings"])
    assert oracles.pair_of(found, "nothing", "vit")["cka"]["best"] is None
    assert 'id="model-1-nothing"' in page()


def test_one_model_of_one_layer(save, random_features, page):
    save("vit", random_features(layers=1))
    html = page()
    assert "Between models" not in html
    assert "Dissimilarity of stimuli" in html
    assert "Look into this" not in html


def test_without_pictures_ids_are_shown_and_it_is_said(save, random_features, page, monkeypatch):
    def elsewhere(*_):
        raise InputError("data.root: where is it?")

    monkeypatch.setattr(stimuli, "load_dataset", elsewhere)
    save("vit", random_features(), ids=[f"image <{k}>" for k in range(24)])
    html = page()
    assert "No pictures: where is it?" in html
    assert '<span class="id">image &lt;' in html


def test_the_page_stands_alone(save, random_features, page, tmp_path):
    save("vit", random_features(seed=1))
    save("vit", random_features(seed=2), untrained=True)
    save("llm", random_features(seed=3), kind="language")
    captions = tmp_path / "captions.csv"
    captions.write_text("demo_id,caption\n" + "".join(f"{k},<script>alert({k})</script>\n" for k in range(24)))
    html = page(captions=str(captions))
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert all(source.startswith("data:image/") for source in re.findall(r'<img[^>]* src="([^"]*)"', html))
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))
    assert not re.search(r"@import|<link|<script|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    inner = re.findall(r'<a href="#([^"]+)"', html)
    assert set(inner) <= set(ids)
    assert set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html))
    for one, two in re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html):
        assert (one or two) in ids
    pictures = set(re.findall(r'<a href="(figures/[^"]+)"', html))
    assert pictures == {f"figures/{path.name}" for path in (tmp_path / "report" / "figures").iterdir()}
    assert len(pictures) == 2 * (3 * 3 + 3 + 2 + 1)
    assert {picture.rpartition(".")[2] for picture in pictures} == {"png", "pdf"}
    assert all(file.read_bytes().startswith(b"%PDF") for file in (tmp_path / "report" / "figures").glob("*.pdf"))
    assert html.count('src="data:image/jpeg') == 3 * 4 * (1 + 3 * 5)
    for section in ("overview", "vision-language", "trained-untrained", "measures"):
        assert section in ids


def test_a_new_report_leaves_nothing_of_the_old_one(save, random_features, page, tmp_path):
    other = save("deit", random_features(seed=2))
    save("vit", random_features(seed=1))
    page()
    other.unlink()
    page()
    assert not [path for path in (tmp_path / "report" / "figures").iterdir() if "deit" in path.name]


def test_it_says_which_part_of_a_picture_a_model_saw(save, random_features, page):
    saw = {"input_size": [3, 224, 224], "crop_pct": 0.875, "crop_mode": "center"}
    save("vit", random_features(seed=1), preprocessing=saw)
    save("whole", random_features(seed=2), preprocessing={**saw, "crop_pct": 1.0, "crop_mode": "squash"})
    save("llm", random_features(seed=3), kind="language")
    html = page()
    assert "Sees the middle 88 % × 88 % of a square picture (77 % of its area), resized to 224 × 224." in html
    assert "Sees the whole picture, squashed to 224 × 224." in html
    assert html.count("Sees ") == 2


def test_two_models_of_captions_are_not_vision_against_language(save, random_features, page, tmp_path):
    save("llm", random_features(seed=1), kind="language")
    save("encoder", random_features(seed=2), kind="text_encoder")
    captions = tmp_path / "captions.csv"
    captions.write_text("demo_id,caption\n" + "".join(f"{k},Caption {k}\n" for k in range(24)))
    html = page(captions=str(captions))
    assert 'id="vision-language"' not in html
    assert "Text-encoder, trained" in html
    save("vit", random_features(seed=3))
    assert 'id="vision-language"' in page(captions=str(captions))


def test_the_best_layer_is_the_one_that_agrees_most_with_another_model(save, page):
    generator = np.random.default_rng(0)
    common, noise = generator.normal(size=(40, 8)), generator.normal(size=(2, 40, 3, 8))
    for name, layer, values in (("vit", 1, noise[0]), ("llm", 2, noise[1])):
        values[:, layer] = common
        save(name, values, kind="vision" if name == "vit" else "language")
    html = " ".join(page().split())
    assert "The dashed line marks blocks.1, the layer with the most nearest neighbours in common with another" in html
    assert "1.00 with blocks.2 of llm" in html
    assert "1.00 with blocks.1 of vit" in html


def test_without_agreement_no_layer_is_the_best(save, page):
    generator = np.random.default_rng(0)
    common = generator.normal(size=(40, 1, 8))
    for untrained in (False, True):  # the same model: that it agrees with itself says nothing
        save("vit", common, untrained=untrained)
    save("far", common[::-1] * generator.normal(size=(40, 1, 8)))
    html = page(permutations=30)
    assert "The dashed line marks" not in html
    assert html.count("No layer is marked") == 3


def test_long_names_leave_the_figures_their_size(save, random_features, tmp_path):
    """A name of 120 characters makes no figure wider than one of 40."""
    long = "vit_giantopt_patch16_siglip_gap_384.v2_webli_" + "x" * 75
    save(long, random_features(seed=1))
    save("an-owner_" + long, random_features(seed=2), kind="language")
    sizes = {}
    found, models, pairs, _ = measure(str(tmp_path / "demo" / "all"), 1000, 0, 3)
    with mpl.rc_context(plots.STYLE):
        for name, figure in {
            "matrices": plots.matrices(models, pairs, CKA),
            "vision_language": plots.vision_language(pairs),
            "layer_pair": plots.layer_pair(pairs[0]),
        }.items():
            figure.canvas.draw()
            inches = figure.get_figwidth()
            sizes[name] = [axis.get_position().width * inches for axis in figure.axes[:2]]
            assert inches < 8, name
    assert found["models"][0]["label"].startswith(long[:70])
    assert min(width for widths in sizes.values() for width in widths) > 1.5
