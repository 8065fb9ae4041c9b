"""What answers: vLLM in this process, or a server. Both are asked about a shard of images at once."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lit_extract.data.sources import ImageSource


class Reply(NamedTuple):
    """What came back about one image.

    Args:
        text: The reply; empty when there is an error.
        error: Why there is none.
        cut_off: It was longer than ``max_tokens``.
    """

    text: str
    error: str | None = None
    cut_off: bool = False


@dataclass(frozen=True)
class Request:
    """What every image is asked, and how.

    Args:
        model: The model's name.
        text: The prompt.
        choices: Labels of which the reply is one; empty for free text.
        temperature: 0 for the likeliest reply.
        seed: Of the sampling, with the stimulus.
        max_tokens: Tokens of a reply at most.
        max_image_size: Pixels of an image's longer side at most.
    """

    model: str
    text: str
    choices: Sequence[str] = ()
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 128
    max_image_size: int | None = None

    def sampling(self, source: ImageSource) -> dict[str, Any]:
        """How one reply is sampled: with a seed of its own, as one for all would have all roll the same dice."""
        seed = (self.seed + zlib.crc32(str(source.stimulus).encode())) % 2**31
        return {"temperature": self.temperature, "seed": seed, "max_tokens": self.max_tokens}

    def messages(self, image: str) -> list[dict[str, Any]]:
        """The chat about one image, a data URL: the image, then the prompt."""
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


class Engine(Protocol):
    """What a captioner needs of an engine."""

    def provenance(self) -> dict[str, Any]:
        """What about the engine changes the replies."""

    def start(self) -> None:
        """Load the model, or see that the server is there.

        Raises:
            InputError: It can't be had.
        """

    def ask(self, sources: Sequence[ImageSource]) -> list[Reply]:
        """The replies about some images, in their order.

        Raises:
            InputError: The engine as a whole does not answer; an image that fails is a :class:`Reply`.
        """
