"""Any server with OpenAI's API, such as ``vllm serve``; the number of simultaneous requests is limited."""

import asyncio
import importlib.util
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lit_extract.captioning.engines import Reply, Request, encode_or_fail
from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.data.sources import ImageSource

SECONDS_TO_GREET = 5.0
SECONDS_BETWEEN_TRIES = 10.0  # at most; the first tries come sooner


class ServerEngine:
    """Client of a server, for one shard of images at a time; at most ``concurrency`` of them are in memory."""

    def __init__(self, request: Request, base_url: str, concurrency: int, timeout: float, patience: float) -> None:
        if importlib.util.find_spec("openai") is None or importlib.util.find_spec("tenacity") is None:
            raise InputError("model.base_url: a server needs the package openai: pip install 'lit-extract[server]'")
        self.request, self.base_url = request, base_url
        self.concurrency, self.timeout, self.patience = concurrency, timeout, patience

    def provenance(self) -> dict[str, Any]:
        """Return the engine; the address of the server does not matter, and its weights are unknown."""
        return {"engine": "server", "weights": "the server's"}

    def start(self) -> None:
        """Check that the server answers and has the model."""
        asyncio.run(self._greet())

    def ask(self, sources: Sequence[ImageSource]) -> list[Reply]:
        """Return the replies about some images; if a request stops the run, the others stop too."""
        return asyncio.run(self._ask_all(sources))

    async def _greet(self) -> None:
        async with self._client() as client:
            names = await self._patiently(lambda: _served(client), SECONDS_TO_GREET)
        if names and self.request.model not in names:
            raise InputError(
                f"model.name: the server at {self.base_url!r} has no {self.request.model!r}; it has {name_some(names)}"
            )

    async def _ask_all(self, sources: Sequence[ImageSource]) -> list[Reply]:
        places = asyncio.Semaphore(self.concurrency)
        async with self._client() as client:
            tasks = [asyncio.ensure_future(self._ask(client, places, source)) for source in sources]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, client: Any, places: asyncio.Semaphore, source: ImageSource) -> Reply:
        async with places:
            image = await asyncio.to_thread(encode_or_fail, source, self.request.max_image_size)
            return await self._complete(client, source, image) if isinstance(image, str) else image

    async def _complete(self, client: Any, source: ImageSource, image: str) -> Reply:
        from openai import APIStatusError

        choices = list(self.request.choices)
        arguments = {
            "model": self.request.model,
            "messages": self.request.messages(image),
            "extra_body": {"structured_outputs": {"choice": choices}} if choices else None,
            **self.request.sampling(source),
        }
        try:
            completion = await self._patiently(lambda: client.chat.completions.create(**arguments), self.patience)
        except APIStatusError as error:  # caused by this image: for example, too large for the context
            return Reply("", f"the server answers {error.status_code}: {one_line(error)}")
        if not completion.choices:
            return Reply("", "the server sent no reply")
        choice = completion.choices[0]
        return Reply(choice.message.content or "", None, choice.finish_reason == "length")

    async def _patiently(self, call: Callable[[], Awaitable[Any]], patience: float) -> Any:
        """Call, and retry with growing pauses while the server is unreachable or busy.

        Raise APIStatusError if the server refuses this one request, InputError if the run must stop.
        """
        from openai import APIConnectionError, APIStatusError
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_away),
            wait=wait_random_exponential(multiplier=0.5, max=SECONDS_BETWEEN_TRIES),
            stop=stop_after_delay(patience),
            reraise=True,
        )

        async def attempt() -> Any:  # tenacity requires a coroutine function
            return await call()

        try:
            return await retrying(attempt)
        except APIConnectionError as error:
            raise InputError(
                f"model.base_url: no server answered at {self.base_url!r} for {patience:g} s ({one_line(error)}); "
                "finished captions are safe: check that the server runs, and run the same command again"
            ) from error
        except APIStatusError as error:
            if _is_away(error) or error.status_code in (401, 403, 404):
                raise InputError(
                    f"model.base_url: the server at {self.base_url!r} answers {error.status_code}: {one_line(error)}; "
                    "finished captions are safe: fix that and run the same command again"
                ) from error
            raise

    def _client(self) -> Any:
        from openai import AsyncOpenAI

        # Local servers need no key, but the client requires one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        return AsyncOpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=0)


async def _served(client: Any) -> list[str]:
    """Return the names of the models on a server."""
    return [model.id async for model in client.models.list()]


def _is_away(error: BaseException) -> bool:
    """Return whether an error comes from the state of the server, not from the request, and may pass."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        return error.status_code in (408, 409, 429, 502, 503, 504)
    return isinstance(error, APIConnectionError)
