"""The command line in process, with an engine that answers at once."""

from pathlib import Path

import pytest
from helpers.fake_engine import FakeEngine
from PIL import Image


@pytest.fixture
def engine(monkeypatch):
    """The class of the engine that all captioners get."""
    fake = type("Fake", (FakeEngine,), {"asked": [], "failures": {}, "dies_after": None, "started": 0})
    monkeypatch.setattr("lit_extract.captioning.captioner.OfflineEngine", fake)
    return fake


@pytest.fixture
def images(tmp_path):
    """Ten small images of different colours: 00.png … 09.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (8, 6), (number * 20,) * 3).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def caption(cli, engine, images, tmp_path):
    """A function that captions the images in shards of four; it returns the output besides what ``cli`` does."""
    config = Path(__file__).parents[2] / "configs" / "folder" / "captions.yaml"

    def caption(*options, output=tmp_path / "out.csv"):
        settings = ("--data.root", images, "--data.shard_rows", 4, "--output", output)
        return output, *cli("predict", "--config", config, *settings, *options)

    return caption
