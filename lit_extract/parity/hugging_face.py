"""Models of Transformers, rebuilt from a provenance."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError
from lit_extract.modules.pretrained import split_options
from lit_extract.modules.weights import check_shards, config_sha256, on_cpu_in_float32
from lit_extract.parity.provenance_form import UNTRAINED
from lit_extract.parity.reference import Reference, check_memory, check_same, no_weights

_OWN = {"dtype": torch.float32, "attn_implementation": "eager"}


class HuggingFaceReference(Reference):
    """A model of Transformers, with plain attention ("eager")."""

    packages: tuple[str, ...] = ("torch", "transformers")
    auto_class: str  # class of Transformers that makes the model
    parts: ClassVar[str]  # the files of a local folder besides the configuration

    def find_model(self) -> None:
        """Find the model and read its configuration, which must be that of the file."""
        known = self.provenance
        self.source: str = known["source"] if "source" in known else self._folder()
        options = {key: value for key, value in known["options"].items() if key != "attn_implementation"}
        options["trust_remote_code"] = self.settings.trust_remote_code
        if "revision" in known:
            options["revision"] = known["revision"]
        self.config, unused = self.load("config", "AutoConfig", options, return_unused_kwargs=True)
        if "config_sha256" in known:
            check_same("config_sha256", known["config_sha256"], config_sha256(self.config))
        self.options, self.other_options = split_options(options, unused)

    def build(self) -> nn.Module:
        """Make the model of the provenance, in float32."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        check_memory(self._make(torch.device("meta")))
        if self.provenance["weights"] == UNTRAINED:
            return self._make(on_cpu_in_float32(self.provenance["seed"]))
        loaded: nn.Module = self.load("weights", self.auto_class, self.options, **_OWN)
        for parameter in loaded.parameters():
            if parameter.dtype == torch.bfloat16:  # MXFP4 is dequantized to it
                parameter.data = parameter.data.float()
        return loaded

    def _make(self, where: AbstractContextManager[Any]) -> nn.Module:
        """Make the model from its configuration."""
        import transformers

        try:
            with where:
                made: nn.Module = getattr(transformers, self.auto_class).from_config(
                    self.config, trust_remote_code=self.settings.trust_remote_code, **_OWN
                )
                return made
        except Exception as error:  # in the model's own code
            raise no_weights(self.provenance["model"], self.source, error) from error

    def cast(self) -> None:
        """Change parameters to bf16, not buffers: rotary frequencies stay float32."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16()

    def load(self, what: str, loader: str, options: dict[str, Any], **own: Any) -> Any:
        """Call from_pretrained of a class of Transformers."""
        import transformers

        try:
            return getattr(transformers, loader).from_pretrained(self.source, **options, **own)
        except Exception as error:  # of the hub, the network, the disk and the format
            raise no_weights(f"{what} of {self.provenance['model']}", self.source, error) from error

    def _folder(self) -> str:
        """Return the model's local folder, with these weights or, for an untrained model, with this configuration."""
        folder = self.settings.checkpoint
        if self.provenance["weights"] != UNTRAINED:
            folder = self.checkpoint()
        elif folder is None or not Path(folder).is_dir():
            what = f"{folder!r} is not a folder; " if folder else ""
            raise InputError(f"checkpoint: {what}give --checkpoint DIR with config.json and the {self.parts}")
        check_shards(folder)
        return folder


def before_final_norm(base: nn.Module, last_state: Callable[[], Tensor], normed: Tensor) -> Tensor:
    """Return the last block's output (1, T, D), which transformers returns only after the final norm.

    For a second forward pass, the norm is replaced by the identity. Each time it is checked that this was the norm:
    applied to the new result, it must give the earlier one.

    Args:
        base: The module with the blocks and the norm.
        last_state: Computes the last hidden state (1, T, D) in a forward pass.
        normed: The result of ``last_state`` with the norm.

    Raises:
        InputError: There is no such norm.
    """
    inside = {part for blocks in base.modules() if isinstance(blocks, nn.ModuleList) for part in blocks.modules()}
    for name, norm in reversed(list(base.named_modules())):
        if norm in inside or "norm" not in type(norm).__name__.lower():
            continue
        base.set_submodule(name, nn.Identity())
        try:
            raw = last_state()
        finally:
            base.set_submodule(name, norm)
        if torch.allclose(norm(raw).float(), normed.float(), rtol=1e-2, atol=1e-2):
            return raw
    raise InputError(f"parity: no final norm found in {type(base).__name__}, so its last block can't be checked")
