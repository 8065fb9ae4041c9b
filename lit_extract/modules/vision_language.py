"""Vision-language extractor: a Hugging Face model that reads an image and a prompt about it.

B batch, L layers, T tokens, D hidden size, P poolings.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_extract.common.errors import InputError
from lit_extract.modules.chat import Chat, load_chat
from lit_extract.modules.hooks import capture
from lit_extract.modules.hugging_face import HuggingFaceExtractor
from lit_extract.modules.pooling import VISION_LANGUAGE_POOLINGS, VisionLanguagePooling, check_pools
from lit_extract.modules.pretrained import check_parts, create_skeleton, find_language_blocks
from lit_extract.modules.probe import check_looks
from lit_extract.modules.prompts import find_prompt
from lit_extract.modules.selection import EMBEDDINGS, LANGUAGE_LAYERS, NORM, Layers, blocks_among, select_layers
from lit_extract.modules.weights import widest_output

# Numbers that a block of a vision tower holds at once for each input number: a patch of 588 numbers has a width of some
# 1,200, and four times as many in the MLP, before and after its activation.
_NUMBERS_A_PIXEL = 24


class VisionLanguageExtractor(HuggingFaceExtractor):
    """Pooled activations of a vision-language model's language blocks, for each image with one prompt.

    The image and the prompt are put into the model's own chat template, as one turn of the user, up to where the
    model would begin its reply; no reply is generated. Image tokens are the tokens that the image's features replace;
    tokens around them, such as Pixtral's breaks between rows, do not count. Prompt tokens contain at least one
    character of the prompt; the rest of the template (system prompt, roles, turn markers) belongs to neither.

    The constructor only reads the model's configuration and processor; weights are loaded in :meth:`configure_model`,
    straight to the device and in the run's precision. Each image goes through the model by itself, because its size
    decides how many tokens it has: there is no padding, and a row does not depend on its neighbours.

    Args:
        name: The model on the Hugging Face hub, such as "Qwen/Qwen2.5-VL-3B-Instruct", or a local folder in the same
            format; AutoModelForImageTextToText must load it without code from its repository.
        untrained: Use random weights (the architecture's own initialisation) instead of trained ones.
        seed: Seed of the random weights.
        checkpoint: Local folder or repository on the hub to load instead of name. An untrained model takes its
            configuration and processor from there.
        revision: Branch, tag or commit on the hub.
        options: Further arguments for from_pretrained. Arguments that neither the configuration nor the loading of
            weights takes go to the processor, such as {max_pixels: 501760}.
        pool: "image" (mean of the image's tokens), "prompt" (mean of the prompt's tokens), "last" (the last token, from
            which the reply would be predicted), or a list of these, one file per pooling.
        layers: "blocks" (raw block outputs), "hidden_states" (the hidden states of Hugging Face: embeddings, then
            blocks, the last one after the final norm), one block, by its index or its name ("blocks.3"), or a list of
            these; negative indices count from the end.
        prompt: "caption", "motion", "indoor", "scene", another name from prompts, or any text of several words.
        prompt_name: Name of the prompt in the file names; required if prompt is a text.
        prompts: YAML file with further prompts, in the form of the prompts.yml that ships with the package.
        models: YAML file with settings for named models; default: ./models.yml, else the one that ships with the
            package.
        dtype: Data type of the written features, whatever the precision of the run. float16 and bfloat16 halve their
            size. In float16, values beyond 65,504 become infinite, and their rows are listed.
    """

    kind = "vision_language"
    auto_class = "AutoModelForImageTextToText"
    parts = "processor"
    rows_a_pass = 1

    def __init__(
        self,
        name: str,
        untrained: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        pool: VisionLanguagePooling | list[VisionLanguagePooling] = "image",
        layers: Layers = "blocks",
        prompt: str = "caption",
        prompt_name: str | None = None,
        prompts: str | None = None,
        models: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(name, untrained, seed, checkpoint, revision, options, models, dtype=dtype)
        self.prompt = find_prompt(prompt, file=prompts)
        self.prompt_name = prompt_name or self.prompt.name
        if not re.fullmatch(r"[\w+-][\w.+-]*", self.prompt_name):
            raise InputError(
                f"model.prompt_name: {self.prompt_name!r} names files: use letters, digits and ._+- (a prompt text "
                "needs a name of its own)"
            )
        self.file_suffix = f"_prompt-{self.prompt_name}"
        self.pools = check_pools(pool, VISION_LANGUAGE_POOLINGS, [*VISION_LANGUAGE_POOLINGS], "")
        self.config = self.load_config()
        text_config = check_parts(self.config, name)
        if getattr(text_config, "attn_logit_softcapping", None) is not None:
            # the default attention of Transformers silently leaves out Gemma-2's soft cap
            self.options.setdefault("attn_implementation", "eager")
        skeleton = create_skeleton(self.config, self.settings, name, self.auto_class)
        blocks = find_language_blocks(skeleton, name)
        self.n_dim, self._n_heads = int(text_config.hidden_size), int(text_config.num_attention_heads)
        self.block_width = widest_output(blocks[0])
        self.num_params = sum(parameter.numel() for parameter in skeleton.parameters())
        self.layers = select_layers(layers, len(blocks), LANGUAGE_LAYERS)
        self.layer_shapes = [(self.n_dim,)] * len(self.layers)
        self._hooked = blocks_among(self.layers)
        self._load_chat()

    def provenance(self) -> dict[str, Any]:
        """Return everything about the model that determines the numbers; the prompt is in the preprocessing."""
        return {
            **super().provenance(),
            "prompt_name": self.prompt_name,
            "prompt_text": self.prompt.text,
            "chat_tokens_sha256": hashlib.sha256(np.array(self.chat.tokens, "<i4").tobytes()).hexdigest(),
            "image_token": self.chat.image_token,
        }

    def use_revision(self, commit: str) -> None:
        """Take the processor from a commit on the hub."""
        self.other_options["revision"] = commit
        self._load_chat()

    def check_loaded(self, model: Any, random: dict[str, str]) -> None:
        """Refuse a model that does not put images in the place of its image tokens, or has random parameters."""
        last = None if NORM in self.layers else max(self._hooked.values())
        examples = [self._to_device(row, model) for row in self.chat.examples]
        check_looks(self.model_name, self.source, model, random, last, examples, self.chat.image_token_id)

    def compute(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Return :meth:`activations` of each batch; images go through the model one at a time."""
        return [self.activations(inputs) for inputs in batches]

    def activations(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Turn the processor's outputs for B images, row by row, into pooled activations (B, P, L·D) float32."""
        rows = [{name: inputs[name][row] for name in self.inputs} for row in range(len(inputs["input_ids"]))]
        return {"feats": torch.stack([self._activations_of(self._to_device(row, self.model)) for row in rows])}

    def _activations_of(self, row: dict[str, Tensor]) -> Tensor:
        """Return pooled activations of one image (P, L·D)."""
        ids = row["input_ids"][0]
        places = {  # not masks, which would stall a GPU in each layer
            "image": (ids == self.chat.image_token_id).nonzero()[:, 0],
            "prompt": self.chat.prompt_places(ids),
            "last": torch.tensor([len(ids) - 1], device=ids.device),
        }
        pooled_places = [places[pool] for pool in self.pools]
        blocks = find_language_blocks(self.model, self.model_name)

        def pool(hidden: Tensor) -> Tensor:
            return torch.stack([hidden[0, at].mean(dim=0, dtype=torch.float32) for at in pooled_places])

        output = None
        with capture(
            {layer: blocks[k] for layer, k in self._hooked.items()},
            pool,
            last=None if NORM in self.layers else max(self._hooked, key=self._hooked.__getitem__),
            entrances={EMBEDDINGS: blocks[0]} if EMBEDDINGS in self.layers else None,
        ) as pooled:
            output = self.model.base_model(**row, use_cache=False).last_hidden_state
        if NORM in self.layers:
            assert output is not None
            pooled[NORM] = pool(output)
        return torch.cat([pooled[layer] for layer in self.layers], dim=1)

    def _to_device(self, row: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Return a row on the device, with pixels in the model's data type."""
        weight = model.get_input_embeddings().weight
        return {
            name: values.to(weight.device, weight.dtype if values.is_floating_point() else None)
            for name, values in row.items()
        }

    def numbers_a_row(self, n_tokens: int) -> int:
        """Estimate the numbers of a block's MLP, which may be gated, in the language model or the vision tower."""
        example = self.chat.examples[0]
        n = example["input_ids"].shape[1]
        is_eager = self.options.get("attn_implementation") == "eager"
        scores = 3 * n * self._n_heads if is_eager else 0
        pixels = sum(values.numel() for values in example.values() if values.is_floating_point())
        return max(n * (4 * self.n_dim + 4 * self.block_width + scores), _NUMBERS_A_PIXEL * pixels)

    def input_bytes(self, n_tokens: int) -> int:
        """Return the bytes of the processor's output for an image."""
        return sum(values.nbytes for values in self.chat.examples[0].values())

    def _load_chat(self) -> None:
        """Load the processor, and describe it for the data module."""
        try:
            self.chat: Chat = load_chat(self.source, self.other_options, self.prompt.text, self.config)
        except InputError as error:
            raise InputError(f"model.name: {self.model_name!r}: {error}") from error
        except Exception as error:  # raised by the hub, the disk, the template and the processor's own code
            raise self.unavailable(error) from error
        self.inputs = [*self.chat.examples[0]]
        self.preprocessing = {**self.chat.preprocessing, "source": self.source, "revision": self._from.get("revision")}
