"""Engines that answer: vLLM in this process, or a server. Both take a shard of images at once."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lit_extract.common.errors import one_line
from lit_extract.data.sources import ImageSource, encode


class Reply(NamedTuple):
    """The reply about one image, or the reason why there is none."""

    text: str  # empty if there is an error
    error: str | None = None
    cut_off: bool = False  # it was longer than max_tokens


@dataclass(frozen=True)
class Request:
    """The prompt and sampling settings for all images; see :class:`lit_extract.Captioner`."""

    model: str
    text: str
    choices: Sequence[str] = ()
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 128
    max_image_size: int | None = None

    def sampling(self, source: ImageSource) -> dict[str, Any]:
        """Return the sampling settings of one reply, with its own seed, so replies are independent."""
        seed = (self.seed + zlib.crc32(str(source.stimulus).encode())) % 2**31
        return {"temperature": self.temperature, "seed": seed, "max_tokens": self.max_tokens}

    def messages(self, image: str) -> list[dict[str, Any]]:
        """Return the chat about one image, a data URL: the image, then the prompt."""
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


def encode_or_fail(source: ImageSource, max_size: int | None) -> str | Reply:
    """Return the image as a data URL, or a reply with the reason of the failure."""
    try:
        return encode(source, max_size)
    except Exception as error:  # Pillow raises almost anything on a broken file
        reason = one_line(error)
        where = "" if source.path in reason else f"{source.path}: "
        return Reply("", f"{where}{type(error).__name__}: {reason}")
