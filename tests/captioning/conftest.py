"""An engine that answers at once, in place of vLLM, and the command line in process."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_extract.modules.engines import Reply
from lit_extract.modules.engines.offline import encode_or_say


class DiedError(Exception):
    """The run ends here, as if it were killed."""


class FakeEngine:
    """Replies with the mean colour of an image. What it is asked, and what it should do, is in class attributes."""

    asked: list
    failures: dict
    dies_after: int | None
    reply = staticmethod(lambda source, pixels: f"An image of colour {int(pixels.mean())}.")

    def __init__(self, request, revision, options):
        self.request, self.options = request, options

    def provenance(self):
        return {"engine": "fake", "engine_options": self.options}

    def start(self):
        type(self).started += 1

    def ask(self, sources):
        cls = type(self)
        if cls.dies_after is not None and len(cls.asked) >= cls.dies_after:
            raise DiedError
        cls.asked.append([source.stimulus for source in sources])
        return [self._reply(source) for source in sources]

    def _reply(self, source):
        if type(self).failures.get(source.stimulus, 0):
            type(self).failures[source.stimulus] -= 1
            return Reply("", "it has a cold")
        image = encode_or_say(source, self.request.max_image_size)
        if isinstance(image, Reply):
            return image
        pixels = np.asarray(decode(image))
        reply = type(self).reply(source, pixels)
        return reply if isinstance(reply, Reply) else Reply(reply)


def decode(url):
    """The image in a data URL."""
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.fixture
def engine(monkeypatch):
    """The class of the engine that all captioners get."""
    fake = type("Fake", (FakeEngine,), {"asked": [], "failures": {}, "dies_after": None, "started": 0})
    monkeypatch.setattr("lit_extract.modules.caption.OfflineEngine", fake)
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
def run(capsys):
    """A function that runs ``lit-extract ARGUMENTS``; it returns exit code, stdout and stderr."""
    from lit_extract.cli import main

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def caption(run, engine, images, tmp_path):
    """A function that captions the images in shards of four; it returns the output besides what ``run`` does."""
    config = Path(__file__).parents[2] / "configs" / "folder" / "captions.yaml"

    def caption(*options, output=tmp_path / "out.csv"):
        settings = ("--data.root", images, "--data.shard_rows", 4, "--output", output)
        return output, *run("predict", "--config", config, *settings, *options)

    return caption
