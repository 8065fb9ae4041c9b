"""The report, and the picture of show, of features with hostile names and numbers."""

import html
import json
import re

import pytest
import torch
from fuzz.test_features_files import DIM, features, saved
from helpers.guard import REFUSED, RIGHT, outcome

from lit_extract.commands.show import show
from lit_extract.report.make import report

pytestmark = pytest.mark.slow

N = 8
SCRIPT = "<script>alert(1)</script>"
NAMES = [
    SCRIPT,
    '"><img src=x onerror=alert(1)>',
    "$\\frac{",
    "{{ 7 * 7 }}",
    "--><b>",
    "&lt;",
    "😀 \u202e\u0600漢",
    "../../x",
    "%s{}",
]


@pytest.fixture(scope="module", autouse=True)
def _libraries(tmp_path_factory):
    """Load them, and what they import on the way, before anything is watched."""
    folder = tmp_path_factory.mktemp("first")
    file = put(folder, "first")
    show(str(file), picture=str(folder / "first.png"))
    report(str(folder), str(folder / "report"), permutations=2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "features").mkdir()
    return tmp_path / "features"


def put(folder, name, ids=None, numbers=None, **provenance):
    content = features()
    feats = torch.randn(N, 2, DIM, generator=torch.Generator().manual_seed(len(name)))
    for (row, layer, dim), number in (numbers or {}).items():
        feats[row, layer, dim] = number
    ids = ids or [f"{k}" for k in range(N)]
    content |= {"feats": feats, "stimulus_ids": ids}
    del content["inputs"]
    content["metadata"]["bad_input_rows"] = []
    content["metadata"]["provenance"] |= {"n_stimuli": N, **provenance}
    (folder / f"{name}.pt").write_bytes(saved(content))
    return folder / f"{name}.pt"


def page_of(folder, what="report"):
    out = folder.parent / "report"
    assert outcome(what, folder.parent, lambda: report(str(folder), str(out), permutations=2), lambda _: True) == RIGHT
    json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"[a-z0-9_-]+\.(png|pdf)", figure.name) for figure in (out / "figures").iterdir())
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[3:6], NAMES[6:]], ids=range(3))
def test_names_are_text_in_the_page_and_in_pictures(folder, names):
    picture = str(folder.parent / "x.png")
    for place, name in enumerate(names):
        file = put(folder, f"file{place}", [f"{name} {k}" for k in range(N)], model=name, subset=name, dataset=name)
        outcome("picture", folder.parent, lambda file=file: show(str(file), picture=picture), lambda _: True)
    page = page_of(folder)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "--><b>" not in page
    assert "49" not in re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert names[0] in html.unescape(page)


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 3e38, 1e-45])
def test_numbers(folder, number):
    """Those that are not finite are looked into, whether the file lists them or not."""
    one = put(folder, "one", numbers={(2, 1, 0): number, (3, 1, 1): number})
    put(
        folder, "all", numbers={(row, layer, dim): number for row in range(N) for layer in (0, 1) for dim in range(DIM)}
    )
    page_of(folder)
    outcome("picture", folder.parent, lambda: show(str(one), picture=str(folder.parent / "x.png")), lambda _: True)


def test_damaged_files_are_left_out(folder):
    put(folder, "good")
    put(folder, "other", weights=3)
    (folder / "damaged.pt").write_bytes(saved(features())[:-1])
    (folder / "\x1b[31m.pt").write_bytes(b"x")
    page = page_of(folder)
    assert "left out: damaged.pt" in page
    assert "\x1b" not in page
    for name in ("good", "other"):
        (folder / f"{name}.pt").unlink()
    out = str(folder.parent / "other")
    assert outcome("report", folder.parent, lambda: report(str(folder), out), lambda _: False) == REFUSED
