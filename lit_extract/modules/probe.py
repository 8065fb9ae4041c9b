"""Checks of a loaded model with two short texts or two pictures; an unsuitable model is refused before the run.

T tokens, D hidden size.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.modules.checkpoint import refuse_random
from lit_extract.modules.hidden_states import StateForms, observe, token_shape
from lit_extract.modules.hooks import capture
from lit_extract.modules.logits import logits_of
from lit_extract.modules.precision import ieee_float32, in_float32
from lit_extract.modules.pretrained import find_backbone, find_language_blocks, find_with_head
from lit_extract.modules.selection import EMBEDDINGS, NORM, all_blocks, blocks_among
from lit_extract.modules.streaming import call_each
from lit_extract.modules.weights import default_float32

N_TOKENS = 8
# In float32, these hidden states of a causal model are bitwise equal, because both passes have the same shape; only
# experts, which get other numbers of tokens, may round differently. A model that looks ahead differs by more than this.
TOLERANCE = 1e-5
# A text with and without padding is computed in different shapes, which round differently.
PADDING_TOLERANCE = 1e-4


def check_model(
    name: str,
    source: str,
    model: Any,
    random: dict[str, str],
    layers: Sequence[str],
    forms: StateForms,
    loss: bool,
    run: Callable[[Sequence[Callable[[], Any]]], list[Any]],
) -> None:
    """Check that the forward pass works, is causal, depends on no random weights, and returns the expected states.

    Args:
        name: Name of the model.
        source: Source of its weights.
        model: The model with its head.
        random: Reasons why parameters and buffers are random, by their names.
        layers: The wanted layers.
        forms: The expected hidden states of the model.
        loss: True if the head is needed.
        run: Function that calls functions, each of which sends a text through the model, and returns their results.
    """
    backbone, blocks = find_backbone(model)
    needs_end = loss or NORM in layers
    n_needed = len(blocks) if needs_end else max(blocks_among(layers).values(), default=0) + 1
    hooked = dict(zip(all_blocks(n_needed), blocks, strict=False))
    last = None if needs_end else [*hooked][-1]
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    texts = [text.to(model.device) for text in _probe_tokens(len(model.get_input_embeddings().weight), context)]

    def states_of(ids: Tensor) -> list[Tensor]:
        with capture(hooked, Tensor.clone, last) as states:
            backbone(input_ids=ids, use_cache=False)
        return [forms.tokens(states[layer]) for layer in hooked]

    with_head: Any = find_with_head(model, backbone) if loss else backbone
    reached = set(blocks.modules())
    with torch.no_grad(), default_float32():
        try:
            with register_module_forward_pre_hook(lambda module, _: reached.add(module)):
                run([partial(with_head, input_ids=texts[0], use_cache=False) if loss else partial(states_of, texts[0])])
            outside = set(model.modules()) - set(backbone.modules())
            norms = {part for part in backbone.modules() if "norm" in type(part).__name__.lower()}
            unneeded = {part for block in blocks[n_needed:] for part in block.modules()}
            _check_complete(source, model, random, unneeded | ((outside | norms) - reached))
            with ieee_float32(), in_float32(model, streamed=run is not call_each):
                calls: list[Callable[[], Any]] = [partial(observe, backbone, blocks, texts[0])]
                calls += [partial(states_of, text) for text in texts]
                if loss:
                    calls += [partial(part, input_ids=texts[0], use_cache=False) for part in (backbone, with_head)]
                (seen, returned), first, other, *outputs = run(calls)
                _check_states(name, seen, returned, texts[0], layers, forms)
                _check_causal(name, first, other)
                if loss:
                    _check_logits(name, with_head, backbone, outputs[0], outputs[1], texts[0])
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # raised by the model's own code
            raise InputError(
                f"model.name: the forward pass of {name!r} fails: {type(error).__name__}: {one_line(error)}"
            ) from error


def check_looks(
    name: str,
    source: str,
    model: Any,
    random: dict[str, str],
    last_block: int | None,
    examples: Sequence[Mapping[str, Tensor]],
    image_token_id: int,
) -> None:
    """Check that a vision-language model puts images in the place of its image tokens, and has no random weights.

    Args:
        name: Name of the model.
        source: Source of its weights.
        model: The model with its head.
        random: Reasons why parameters and buffers are random, by their names.
        last_block: Index of the last needed block of its language model; None if the end of the backbone is needed.
        examples: The processor's output for two images that differ everywhere, on the model's device.
        image_token_id: The token that images replace.
    """
    blocks = find_language_blocks(model, name)
    n_needed = len(blocks) if last_block is None else last_block + 1
    layers = dict(zip(all_blocks(n_needed), blocks, strict=False))
    last = None if last_block is None else [*layers][-1]
    width = model.config.get_text_config(decoder=True).hidden_size
    reached = set(blocks.modules())
    entering = []
    with torch.no_grad(), default_float32():
        try:
            with register_module_forward_pre_hook(lambda module, _: reached.add(module)):
                for example, stop in zip(examples, (last, next(iter(layers))), strict=True):
                    with capture(layers, Tensor.clone, stop, entrances={EMBEDDINGS: blocks[0]}) as states:
                        states[NORM] = model.base_model(**example, use_cache=False).last_hidden_state
                    of_image = example["input_ids"] == image_token_id
                    for layer, hidden in states.items():
                        if hidden.shape != (*of_image.shape, width):
                            raise InputError(
                                f"model.name: {name!r} has {tuple(hidden.shape)} numbers in {layer}, not {width} per "
                                "token"
                            )
                    entering.append(states[EMBEDDINGS][of_image])
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # raised by the model's own code
            raise InputError(
                f"model.name: the forward pass of {name!r} fails: {type(error).__name__}: {one_line(error)}"
            ) from error
    norms = {part for part in model.base_model.modules() if "norm" in type(part).__name__.lower()}
    of_no_use = [*blocks[n_needed:], model.get_output_embeddings()]
    unneeded = {part for outer in of_no_use for part in outer.modules()}
    _check_complete(source, model, random, unneeded | (norms - reached))
    if torch.equal(*entering):
        raise InputError(
            f"model.name: in {name!r}, the input of the blocks at the image tokens is the same for every image; choose "
            "a model that puts images there, such as LLaVA, Pixtral and Qwen-VL (some do not with random weights: the "
            "image projection of Gemma-3 is 0 until it is trained)"
        )


def check_padding(
    name: str,
    model: Any,
    layers_of: Callable[[Any, Mapping[str, Tensor]], Tensor],
    texts: Sequence[Sequence[int]],
    pad_id: int,
) -> None:
    """Refuse a text encoder whose tokens depend on padding in spite of the attention mask.

    Args:
        name: Name of the model.
        model: The model with its weights.
        layers_of: Function from a model and its inputs ``input_ids`` and ``attention_mask`` (1, T) to its layers, with
            all tokens (L, 1, T, D) or pooled (L, 1, D).
        texts: Tokens of a short text and of a longer one.
        pad_id: The token that pads.
    """
    short, n_padded = torch.tensor([texts[0]]), max(map(len, texts))
    n = short.shape[1]
    inputs = []
    for length in (n, n_padded):
        padding = torch.full((1, length - n), pad_id)
        mask = torch.cat([torch.ones_like(short), torch.zeros_like(padding)], dim=1)
        ids = torch.cat([short, padding], dim=1)
        inputs.append({"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)})
    with torch.no_grad(), default_float32(), ieee_float32(), in_float32(model):
        try:
            alone, padded = (layers_of(model, given) for given in inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # raised by the model's own code
            raise InputError(
                f"model.name: the forward pass of {name!r} fails: {type(error).__name__}: {one_line(error)}"
            ) from error
    padded = padded[:, :, :n] if alone.ndim == 4 else padded
    change = ((alone - padded).norm(dim=-1) / alone.norm(dim=-1).clamp_min(1e-30)).max().item()
    if alone.isfinite().all() and not change <= PADDING_TOLERANCE:
        raise InputError(
            f"model.name: tokens of {name!r} attend to padding (it changes activations by {change:.2g} of their size), "
            "so a caption's features would depend on its neighbours; choose another model"
        )


def _probe_tokens(vocabulary: int, context: int | None) -> tuple[Tensor, Tensor]:
    """Return two texts (1, T) with the same first half, and a second half that differs in each token."""
    n = min(N_TOKENS, context or N_TOKENS)
    start = vocabulary // 4  # special tokens are mostly first
    ids = torch.tensor([start + k * (vocabulary - 1 - start) // (2 * n) for k in range(2 * n)])
    first, other = ids[:n].clone(), ids[:n].clone()
    other[n // 2 :] = ids[n + n // 2 :]
    return first[None], other[None]


def _check_causal(name: str, first: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Refuse a model in which an early token depends on a later one, as it would depend on padding.

    This needs no list of architectures. In float32, only looking ahead makes a difference. ``first`` and ``other`` are
    the hidden states (1, T, D) of the blocks, in order, for two texts with the same first half.
    """
    for block, (of_first, of_other) in enumerate(zip(first, other, strict=True)):
        n_same = of_first.shape[1] // 2
        before, after = of_first[0, :n_same], of_other[0, :n_same]
        if not (before.isfinite().all() and after.isfinite().all()):
            continue
        change = ((before - after).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)).max().item()
        if change > TOLERANCE:
            raise InputError(
                f"model.name: {name!r} is not a causal language model: its tokens attend to later ones (a later token "
                f"changes earlier activations by {change:.2g} of their size in blocks.{block}), so a caption's "
                "features would depend on padding; use TextEncoderExtractor"
            )


def _check_states(
    name: str,
    seen: Mapping[str, Tensor],
    returned: Sequence[Tensor] | None,
    ids: Tensor,
    layers: Sequence[str],
    forms: StateForms,
) -> None:
    """Refuse a model whose layers (1, T, …) are not those that Transformers ``returned`` as hidden states."""
    for layer in layers:
        before, shape = 0 if layer == NORM else forms.before, tuple(seen[layer].shape)
        if shape[before : before + 2] != ids.shape or token_shape(seen[layer], before) != forms.shapes[layer]:
            raise InputError(
                f"model.layers: {name!r} has {shape} numbers in {layer} for {ids.shape[1]} tokens, "
                f"not {forms.shapes[layer]} per token"
            )
    if returned is None:
        return
    unlike = [
        layer
        for place, layer in enumerate(forms.names)
        if layer in layers and not (len(returned) == len(forms.names) and _are_same(seen[layer], returned[place]))
    ]
    if unlike:
        raise InputError(
            f"model.layers: {name_some(unlike)} of {name!r} are not the hidden states that Transformers returns"
        )


def _are_same(first: Tensor, other: Tensor) -> bool:
    return first.shape == other.shape and torch.allclose(first, other, rtol=0, atol=0, equal_nan=True)


def _check_logits(name: str, model: Any, backbone: nn.Module, output: Any, with_logits: Any, ids: Tensor) -> None:
    """Refuse a model whose logits are not a function of its last hidden state, token by token.

    ``output`` and ``with_logits`` are the outputs of the backbone and of the model with its head, for tokens (1, T).
    """
    expected = with_logits.logits[0]
    found = logits_of(model, backbone, output, output.last_hidden_state[0], ids[0])
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise InputError(f"model.loss: the logits of {name!r} do not come from its last hidden state alone")


def _check_complete(source: str, model: Any, random: dict[str, str], unneeded: Collection[nn.Module]) -> None:
    """Refuse a model if the requested layers depend on weights that did not come from the checkpoint.

    The layers do not depend on later blocks, nor on norms and modules outside the backbone that a forward pass does not
    reach.
    """
    refuse_random(source, random, lambda name: model.get_submodule(name.rpartition(".")[0]) not in unneeded)
