"""What ships with the package is complete, and may be passed on."""

import subprocess
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

import lit_extract

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "lit_extract" / "datasets" / "demo_images"
PHOTOGRAPHS = pd.read_csv(DEMO / "photographs.csv")
LICENCES = {
    "public domain": "https://creativecommons.org/publicdomain/mark/1.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
}


def test_all_photographs_are_listed_and_all_listed_are_there():
    assert sorted(PHOTOGRAPHS["path"]) == sorted(path.name for path in DEMO.glob("*.jpg"))
    assert PHOTOGRAPHS["demo_id"].tolist() == list(range(24))


@pytest.mark.parametrize("photograph", PHOTOGRAPHS.to_dict("records"), ids=PHOTOGRAPHS["name"])
def test_a_photograph_opens_and_may_be_passed_on(photograph):
    with Image.open(DEMO / photograph["path"]) as image:
        image.load()
        assert min(image.size) >= 224, "at least as large as a model wants it"
        assert not image.getexif(), "nothing about where and by whom it was taken"
    assert LICENCES[photograph["licence"]] == photograph["licence_url"]
    text = (DEMO / "LICENSES.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if f"`{photograph['path']}`" in line]
    for key in ("title", "author", "licence", "licence_url"):
        assert photograph[key] in line, key


def test_captions_are_of_the_photographs_in_their_order():
    captions = pd.read_csv(REPOSITORY / "derivatives" / "captions" / "demo-captions-handwritten.csv")
    for column in ("demo_id", "name"):
        assert captions[column].tolist() == PHOTOGRAPHS[column].tolist()
    assert (captions["caption"].str.split().str.len() >= 5).all()
    assert captions["caption"].is_unique


def test_the_wheel_has_what_the_package_reads():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["lit_extract"]
    for source, target in wheel["force-include"].items():
        assert (REPOSITORY / source).exists()
        assert Path(target).parts[0] == "lit_extract"
    assert "lit_extract/models.yml" in wheel["force-include"].values(), "default_models_file looks for it there"
    for name in project["project"]["license-files"]:
        assert (REPOSITORY / name).is_file()
    assert (REPOSITORY / "lit_extract" / "py.typed").is_file()


def test_nothing_that_ships_is_ignored_by_git():
    """hatchling leaves out of the wheel what .gitignore names."""
    files = [
        str(path)
        for path in (REPOSITORY / "lit_extract").rglob("*")
        if path.suffix in (".py", ".jpg", ".csv", ".md", ".j2", ".html", ".css", ".js", ".svg")
    ]
    run = subprocess.run(["git", "check-ignore", *files], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode in (1, 128), f"{run.stdout} (128: not a git checkout)"


def test_the_public_names_are_there_and_no_other():
    assert dir(lit_extract) == sorted(lit_extract.__all__)
    for name in lit_extract.__all__:
        assert getattr(lit_extract, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lit_extract.nonsense


def test_versions_agree():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.get("version", lit_extract.__version__) == lit_extract.__version__
