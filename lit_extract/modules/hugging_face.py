"""The base of extractors of Transformers models: configuration, weights, and their commit on the hub."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.timing import stopwatch
from lit_extract.modules.base import Extractor
from lit_extract.modules.pretrained import (
    create_random,
    create_streamed,
    load_pretrained,
    load_streamed,
    split_options,
)
from lit_extract.modules.room import loading_shown, where_it_runs
from lit_extract.modules.weights import check_shards, config_sha256
from lit_extract.modules.weights_on_disk import stream_blocks
from lit_extract.storage.layout import FLOAT32


class HuggingFaceExtractor(Extractor):
    """A model of Transformers, from the hub or a local folder.

    The constructor only reads the model's configuration; weights are loaded in :meth:`configure_model`,
    straight to the device and in the run's precision.
    """

    checkpoint_on_hub = True
    auto_class: str  # class of Transformers that creates the model
    parts: ClassVar[str]  # in a local folder besides the configuration and the weights

    def __init__(
        self,
        name: str,
        untrained: bool,
        seed: int,
        checkpoint: str | None,
        revision: str | None,
        options: dict[str, Any] | None,
        models: str | None,
        trust_remote_code: bool = False,
        dtype: str = FLOAT32,
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype)
        self.source = self.checkpoint or name
        self._from = {"trust_remote_code": trust_remote_code, **self.options}
        self._model: list[Any] = []

    @abstractmethod
    def check_loaded(self, model: Any, random: dict[str, str]) -> None:
        """Refuse a model that fails, or whose layers depend on ``random`` parameters (name: reason)."""

    @abstractmethod
    def use_revision(self, commit: str) -> None:
        """Take the parts of the model that the data need, such as the tokenizer, from a commit on the hub."""

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers."""
        own = {} if self.local_checkpoint() else {"source": self.source}  # moved weights are the same weights
        if self.untrained:
            own["config_sha256"] = config_sha256(self.config)
        return {**super().provenance(), **own}

    def use_commit_of(self, recorded: Mapping[str, Any]) -> None:
        """Use the commit of an earlier run, if its configuration is the one that was read.

        Raises:
            InputError: The configurations differ; or code of that commit would run, on the word of a file alone.
        """
        latest = self.commit if "revision" in self._from else None
        super().use_commit_of(recorded)
        if latest is None or self.commit == latest:
            return
        if self._from["trust_remote_code"]:
            raise InputError(
                f"model.trust_remote_code: the features to resume are from commit {self.commit}, whose code would "
                f"run; if you trust it, pass --model.revision {self.commit}"
            )
        self._from["revision"] = self.commit
        if config_sha256(self.load_config()) != config_sha256(self.config):
            raise InputError(
                f"model.revision: the configuration of {self.source!r} has changed since the run to resume, "
                f"which used {self.commit}; resume it with --model.revision {self.commit}"
            )
        self.use_revision(self.commit)

    def configure_model(self) -> None:
        """Load the weights, once, onto the device and in the run's precision.

        The model is hidden from Lightning, which would cast everything to bf16, rotary frequencies included.
        """
        if self._model:
            return
        dtype, device, _ = where_it_runs(self._trainer)
        is_streamed = self.is_streamed(self._trainer)
        load = self._load_streamed if is_streamed else self._load
        with stopwatch("weights"), loading_shown(self, dtype, device, is_streamed):
            try:
                model, random = load(dtype, device)
            except InputError:
                raise
            except Exception as error:  # raised by the hub, the network, the disk and the format
                raise self.unavailable(error) from error
        model.eval().requires_grad_(False)
        self.check_loaded(model, random)
        self._model.append(model)

    def _load(self, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, str]]:
        """Return the model, and the parameters that are random although they should not be."""
        if self.untrained:
            return create_random(self.config, self.settings, self.seed, dtype, device, self.auto_class), {}
        return load_pretrained(self.source, self.settings, dtype, device, self.auto_class)

    def _load_streamed(self, dtype: torch.dtype, device: torch.device) -> tuple[Any, dict[str, str]]:
        """Return the model, with its blocks on disk, and its random parameters, as :meth:`_load` does."""
        random: dict[str, str] = {}
        if self.untrained:
            model, places = create_streamed(
                self.config, self.settings, self.seed, dtype, self.auto_class, self.num_params
            )
        else:
            model, places, random = load_streamed(self.config, self.source, self.settings, dtype, self.auto_class)
        self.streamed = stream_blocks(model, [*self.blocks_of(model)], places, device)
        return model, random

    def blocks_of(self, model: Any) -> Iterable[nn.Module]:
        """Return the blocks of a model that can be streamed."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """Return the model with its head."""
        assert self._model, "configure_model() loads the model"
        return self._model[0]

    @property
    def loaded(self) -> nn.Module | None:
        """Return the model with its weights and its head, once it is loaded."""
        return self._model[0] if self._model else None

    def local_checkpoint(self) -> str | None:
        """Return the folder of local weights; None if they come from the hub."""
        return self.source if os.path.exists(self.source) else None  # noqa: PTH110 (Path's raises if it is too long)

    def weights_source(self) -> tuple[str, Sequence[str]]:
        """Return the repository on the hub."""
        return self.source, ["config.json"]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the current arguments of from_pretrained; the constructor may have changed the attention."""
        known = (*self._from, "attn_implementation")
        return {**self._from, **{name: value for name, value in self.options.items() if name in known}}

    def load_config(self) -> Any:
        """Return the configuration; options for neither the configuration nor the weights become ``other_options``."""
        from transformers import AutoConfig

        if local := self.local_checkpoint():
            self._check_is_folder(Path(local))
            check_shards(local)
        else:
            self._from.setdefault("revision", self._commit_on_hub())
        try:
            config, unused = AutoConfig.from_pretrained(self.source, return_unused_kwargs=True, **self._from)
        except Exception as error:  # raised by the hub, the network, the disk and the format
            raise self.unavailable(error) from error
        self._from, self.other_options = split_options(self._from, unused)
        return config

    def _commit_on_hub(self) -> str:
        try:
            return self.commit
        except InputError:
            from lit_extract.modules.architecture import is_timm_name  # imports timm, for a few seconds

            if self.checkpoint or not is_timm_name(self.source):
                raise
            raise InputError(f"model.name: {self.source!r} is a model of timm, for --model VisionExtractor") from None

    def _check_is_folder(self, local: Path) -> None:
        if local.is_dir():
            return
        gguf = f" and --model.options '{{gguf_file: {local.name}}}'" if local.suffix == ".gguf" else ""
        setting = "model.checkpoint" if self.checkpoint else "model.name"
        raise InputError(f"{setting}: {str(local)!r} is a file; give its folder, --{setting} {local.parent}{gguf}")

    def unavailable(self, error: Exception) -> InputError:
        """Return the error for anything that Transformers raises while loading."""
        if self.local_checkpoint():
            what = f"a local folder needs config.json, the weights and the {self.parts} in Transformers format"
        else:
            what = "for a gated model, accept the conditions on its page and log in with hf auth login"
        reason = f"{type(error).__name__}: {one_line(error)}"
        return InputError(f"model.name: {self.model_name!r} can't be loaded from {self.source!r}: {what} ({reason})")
