"""An engine that answers at once, in place of vLLM."""

import base64
import io

import numpy as np
from PIL import Image

from lit_extract.captioning.engines import Reply, encode_or_fail


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
        image = encode_or_fail(source, self.request.max_image_size)
        if isinstance(image, Reply):
            return image
        pixels = np.asarray(decode(image))
        reply = type(self).reply(source, pixels)
        return reply if isinstance(reply, Reply) else Reply(reply)


def decode(url):
    """The image in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
