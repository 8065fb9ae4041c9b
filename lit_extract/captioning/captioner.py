"""Captioner: a vision-language model that describes or labels images."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from lit_extract.captioning.engines import Reply, Request
from lit_extract.captioning.engines.offline import OfflineEngine
from lit_extract.captioning.engines.server import ServerEngine
from lit_extract.common.errors import InputError
from lit_extract.data.sources import ImageSource
from lit_extract.modules.base import Predictor, check_seed
from lit_extract.modules.prompts import find_prompt
from lit_extract.modules.weights import default_float32

_LINE_ENDS = re.compile(r"\r\n?|\x85|\u2028|\u2029")


class Captioner(Predictor):
    """Captions or labels of images, from a vision-language model.

    The constructor refuses wrong settings; the model is loaded, or the server contacted, in :meth:`configure_model`,
    when a run starts.

    Args:
        name: The model: a name on the hub, a local folder, or the server's name for it.
        prompt: "caption", "motion", "indoor", "scene", another name from prompts, or any text of several words.
        choices: Labels that replace those of the prompt; the reply is exactly one of them.
        prompts: YAML file with further prompts, in the form of the prompts.yml that ships with the package.
        engine: "vllm" (in this process) or "server"; default: server if base_url is given, else vllm.
        base_url: Address of a server with OpenAI's API, such as http://localhost:8000/v1. Its key, if it needs one, is
            read from the environment variable OPENAI_API_KEY.
        temperature: Sampling temperature; 0 always takes the likeliest token.
        seed: Seed of the sampling; each reply has a seed of its own, derived from this one and the stimulus.
        max_tokens: Maximum number of tokens in a reply; labels always get as many as they need.
        max_image_size: Maximum length of an image's longer side in pixels; larger images are reduced. Default: no
            limit.
        attempts: Number of times that a failing image is tried before its error is recorded.
        revision: Branch, tag or commit of the weights on the hub.
        engine_options: Further arguments for vllm.LLM, such as {tensor_parallel_size: 2}.
        concurrency: Maximum number of simultaneous requests to a server.
        timeout: Seconds to wait for a server's reply.
        patience: Seconds to wait for a server that has stopped answering before the run stops.
    """

    def __init__(
        self,
        name: str = "mistralai/Pixtral-12B-2409",
        prompt: str = "caption",
        choices: list[str] | None = None,
        prompts: str | None = None,
        engine: Literal["vllm", "server"] | None = None,
        base_url: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 128,
        max_image_size: int | None = None,
        attempts: int = 3,
        revision: str | None = None,
        engine_options: dict[str, Any] | None = None,
        concurrency: int = 64,
        timeout: float = 120.0,
        patience: float = 300.0,
    ) -> None:
        super().__init__()
        check_seed(seed)
        for setting, value, least in (
            ("max_tokens", max_tokens, 1),
            ("max_image_size", max_image_size, 1),
            ("attempts", attempts, 1),
            ("concurrency", concurrency, 1),
            ("temperature", temperature, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"model.{setting}: {value} must be {least} or more")
        engine = engine or ("server" if base_url else "vllm")
        _check_engine(engine, base_url, revision, engine_options)
        self.model_name, self.attempts = name, attempts
        self.prompt = find_prompt(prompt, choices, prompts)
        if self.prompt.choices:  # a label has at most as many tokens as bytes
            max_tokens = max(len(choice.encode()) for choice in self.prompt.choices) + 2
        self.request = Request(
            model=name,
            text=self.prompt.text,
            choices=self.prompt.choices,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            max_image_size=max_image_size,
        )
        self.preprocessing = {"max_image_size": max_image_size}
        self.engine: ServerEngine | OfflineEngine = (
            ServerEngine(self.request, base_url, concurrency, timeout, patience)
            if base_url
            else OfflineEngine(self.request, revision, engine_options or {})
        )

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model and the prompt that determines the captions."""
        return {
            "model": self.model_name,
            **self.engine.provenance(),
            "prompt": self.prompt.name,
            "prompt_text": self.prompt.text,
            "choices": list(self.prompt.choices),
            "temperature": self.request.temperature,
            "seed": self.request.seed,
            "max_tokens": self.request.max_tokens,
        }

    def configure_model(self) -> None:
        """Start the engine."""
        with default_float32():  # with Lightning's bf16-true, vLLM would prepare images in bf16
            self.engine.start()

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> dict[str, Any]:
        """Return replies about a shard of images: ``index`` (B,) and ``replies``, B of them."""
        with default_float32():
            return {"index": batch["index"].cpu(), "replies": self.replies(batch["sources"])}

    def replies(self, sources: Sequence[ImageSource]) -> list[Reply]:
        """Return one reply per image; failed images are tried again, together."""
        replies: dict[int, Reply] = {}
        left = list(range(len(sources)))
        for _ in range(self.attempts):
            if not left:
                break
            asked = self.engine.ask([sources[place] for place in left])
            replies.update(zip(left, map(self._judge, asked), strict=True))
            left = [place for place in left if replies[place].error is not None]
        return [replies[place] for place in range(len(sources))]

    def _judge(self, reply: Reply) -> Reply:
        """Return the reply to record; a reply outside the labels is an error."""
        if reply.error is not None:
            return reply
        text = clean(reply.text)
        if self.prompt.choices and text not in self.prompt.choices:
            allowed = ", ".join(self.prompt.choices)
            return Reply(
                "", f"the reply {text[:80]!r} is not one of {allowed}; use a server that supports structured outputs"
            )
        return Reply(text, None, reply.cut_off)


def clean(text: str) -> str:
    r"""Return a reply that can be stored in a file: without surrounding blanks, lines ended by ``\n``, valid Unicode.

    A NUL, which ends the field in most CSV readers, becomes the replacement character.
    """
    text = text.encode("utf-8", "replace").decode()
    return _LINE_ENDS.sub("\n", text).replace("\0", "\N{REPLACEMENT CHARACTER}").strip()


def _check_engine(
    engine: str, base_url: str | None, revision: str | None, engine_options: dict[str, Any] | None
) -> None:
    if engine == "server" and not base_url:
        raise InputError("model.engine: server needs an address: pass --model.base_url http://localhost:8000/v1")
    if base_url is None:
        return
    if not re.match(r"https?://[^/]+", base_url):
        raise InputError(f"model.base_url: {base_url!r} must start with http:// or https:// and a host")
    if engine == "vllm":
        raise InputError(
            f"model.base_url: {base_url!r} is for the engine server, but model.engine is vllm; leave one of them out"
        )
    if revision is not None or engine_options:
        raise InputError("model.revision, model.engine_options: only for the engine vllm; configure the server instead")
