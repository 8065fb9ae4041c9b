"""The parts of a Transformers text encoder: its tower, its blocks, and its hidden states.

A tower is the part that reads text: the text model of CLIP or SigLIP, the encoder of T5, else the model itself.
Skeletons are on the meta device. T tokens, D hidden size.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.modules.hooks import capture
from lit_extract.modules.pretrained import MAX_LAYERS, MAX_WIDTH, create_skeleton, find_blocks
from lit_extract.modules.selection import EMBEDDINGS, NORM, all_blocks

# Trained without an attention mask, on texts padded to one length: padding is part of the text.
_ATTEND_TO_PADDING = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")


def text_config(config: Any, name: str) -> Any:
    """Return the configuration of the part that reads text; raise InputError unless it is a sequence of blocks."""
    config = getattr(config, "text_config", None) or config
    for field, most in (("num_hidden_layers", MAX_LAYERS), ("hidden_size", MAX_WIDTH)):
        value = getattr(config, field, None)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(
                f"model.name: the configuration of {name!r} ({config.model_type}) has {field} {shorten(value)}; it "
                f"must be 1 to {most:,}; choose a text encoder that is a sequence of blocks of equal width"
            )
    return config


def encoder_class(config: Any) -> str:
    """Return the Transformers class of a text encoder; T5 and similar models have no decoder in it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    known = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    return "AutoModelForTextEncoding" if known and known.__name__.endswith("EncoderModel") else "AutoModel"


def make_skeleton(config: Any, settings: Mapping[str, Any], name: str) -> Any:
    """Return a text encoder on the meta device, with eager attention, which reads the fewest values."""
    eager = {**settings, "attn_implementation": "eager"}
    return create_skeleton(config, eager, name, encoder_class(config)).eval()


def find_tower(model: Any, name: str) -> Any:
    """Return the part of a model that reads text."""
    config = getattr(model.config, "text_config", None)
    if config is not None:
        tower = next((part for part in model.modules() if type(getattr(part, "config", None)) is type(config)), None)
    else:
        tower = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    if tower is None or getattr(tower, "main_input_name", "input_ids") != "input_ids":
        raise InputError(f"model.name: {name!r} ({type(model).__name__}) has no part that reads text alone")
    return tower


def attends_to_padding(config: Any) -> bool:
    """Return whether a model needs texts padded to one length, without a mask."""
    return config.model_type in _ATTEND_TO_PADDING


def positions(tower: nn.Module, config: Any) -> int | None:
    """Return the number of token positions of a tower; None if there is no limit.

    RoBERTa, MPNet and similar models count from the padding token's place in the table, which leaves fewer positions.
    """
    known = getattr(config, "max_position_embeddings", None)
    tables = [part for path, part in tower.named_modules() if path.endswith("position_embeddings")]
    starts = [part.padding_idx for part in tables if isinstance(part, nn.Embedding) and part.padding_idx is not None]
    return known - max(starts, default=-1) - 1 if isinstance(known, int) and known > 0 else None


def run_tower(tower: Any, inputs: Mapping[str, Any], **settings: Any) -> Any:
    """Return the output of a tower for texts."""
    takes_it = "use_cache" in inspect.signature(tower.forward).parameters
    return tower(**inputs, **({"use_cache": False} if takes_it else {}), **settings)


def text_features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the projected embeddings of texts (B, D) from a model of images and text."""
    output = model.get_text_features(**inputs)
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def find_example(name: str, tower: Any) -> dict[str, Tensor]:
    """Return the inputs for a text of 8 tokens, in the form that a skeleton takes.

    On the meta device, some models fail because they read the values of a mask, others because they read those of the
    text if there is no mask. A mask of pairs of tokens is used unread, by models that take one.
    """
    ones = torch.ones(1, 8, dtype=torch.int64, device="meta")
    reason: Exception | None = None
    of_pairs = torch.zeros(1, 1, 8, 8, device="meta")
    for mask in ({}, {"attention_mask": ones}, {"attention_mask": of_pairs}):
        example = {"input_ids": ones, **mask}
        try:
            run_tower(tower, example)
        except Exception as error:
            reason = error
        else:
            return example
    assert reason is not None
    raise InputError(
        f"model.name: the forward pass of {name!r} can't be traced without its weights, so its layers are not "
        f"known before a run ({type(reason).__name__}: {one_line(reason)}); choose another model"
    ) from reason


def hidden_states(name: str, tower: Any, config: Any, example: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers that Transformers calls hidden states: the embeddings, then the blocks.

    The last one is the output of the last block or of the final norm, whichever Transformers returns.

    Raises:
        InputError: The blocks differ in shape, or do not match the hidden states.
    """
    blocks = find_blocks(tower, config.num_hidden_layers)
    outputs: list[Any] = []
    layers = dict(zip(all_blocks(len(blocks)), blocks, strict=True))

    def note(output: Any) -> Any:
        outputs.append(output)
        return output

    with torch.no_grad(), capture(layers, note):
        states = run_tower(tower, example, output_hidden_states=True).hidden_states
    shapes = [tuple(output.shape) if isinstance(output, Tensor) else () for output in outputs]
    if shapes != [(1, 8, config.hidden_size)] * len(blocks) or len(states or ()) != len(blocks) + 1:
        found = ", ".join(dict.fromkeys(map(str, shapes))) or "nothing"
        raise InputError(
            f"model.name: the blocks of {name!r} output {found} for 8 tokens, in {len(states or ())} hidden states, "
            f"not (1, 8, {config.hidden_size}) in {len(blocks) + 1}, which is not supported"
        )
    last = [*layers][-1] if states[-1] is outputs[-1] else NORM
    return [EMBEDDINGS, *all_blocks(len(blocks) - 1), last]
