"""Pooling of a layer's tokens into one or a few vectors per stimulus. Sums are computed in float32.

A pooling is an entry of ``VISION_POOLINGS`` or ``LANGUAGE_POOLINGS``, or of both. ``verify --parity`` has a
second, independent implementation of each, in parity/.

B batch, T tokens, D hidden size.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from jsonargparse.typing import register_type, restricted_string_type
from torch import Tensor
from torch.nn import functional

from lit_extract.common.errors import InputError, name_some


def _mean_of_mask(hidden: Tensor, mask: Tensor, full: tuple[int, int]) -> Tensor:
    total = hidden[:, slice(*full)].sum(dim=1, dtype=torch.float32)
    for rest in (slice(0, full[0]), slice(full[1], None)):
        # not a product with the mask: padding may be NaN
        total += hidden[:, rest].masked_fill(~mask[:, rest, None], 0).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True)


def _last_of_mask(hidden: Tensor, mask: Tensor, full: tuple[int, int]) -> Tensor:
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, 0).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


def _tokens_of_mask(hidden: Tensor, mask: Tensor, full: tuple[int, int]) -> Tensor:
    more = mask.shape[1] - hidden.shape[1]
    return functional.pad(hidden, (0, 0, 0, more)).masked_fill(~mask[..., None], 0).flatten(1).float()


# Tokens with a norm of more than so many times the median of their caption are attention sinks (Sun et al. 2024,
# "Massive Activations in Large Language Models", arXiv:2402.17762). In the mean of a caption of ten tokens, one sink
# weighs as much as all other tokens together. The paper calls a number massive if it is 1,000 times the median; a
# single one raises the norm of normal numbers 11 times at a width of 4,096, and 28 times at 576. In SmolLM2-135M, sinks
# have 11 to 230 times the median from block 11 on, all other tokens at most 1.4 times.
SINKS_ABOVE = 10.0


def find_sinks(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return a mask (B, T) of the attention sinks among the tokens of ``mask`` (B, T) in a layer (B, T, D).

    The median is the lower one, over the tokens of ``mask``. So one token has the median as its norm, and is never a
    sink. Tokens that are not finite are no sinks either: they must stay visible.
    """
    norms: Tensor = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
    ordered = norms.masked_fill(~mask, torch.inf).sort(dim=1).values
    median = ordered.gather(1, (mask.sum(dim=1, keepdim=True) - 1) // 2)
    return mask & (norms > SINKS_ABOVE * median) & norms.isfinite()


class LayerForm(NamedTuple):
    """The tokens of a layer of a vision model: first prefix tokens, then patch tokens."""

    n_prefix: int
    n_patches: int
    columns: int | None  # of patches, which come row by row; None: the patches form no grid
    width: int

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of the layer."""
        return self.n_prefix + self.n_patches


def _one_vector(form: LayerForm) -> tuple[int, ...]:
    return (form.width,)


class _OfImage(NamedTuple):
    pool: Callable[[Tensor, LayerForm], Tensor]  # from tokens (B, T, D) to pooled numbers (B, …) float32
    shape: Callable[[LayerForm], tuple[int, ...]] = _one_vector  # of the pooled numbers of a row


HEAD = "head"  # a pooling, and the name of its one layer
CLS, TOKENS = "cls", "tokens"
GRID = "gridK"  # stands for grid4 and other grids
GRID_NAME = r"^grid([1-9]|[1-5]\d|6[0-4])$"

# The class token; the mean of the patch tokens; the mean of all tokens; all tokens, unpooled; the model's own output,
# which is already (B, D).
VISION_POOLINGS = {
    CLS: _OfImage(lambda hidden, form: hidden[:, 0].float()),
    "avg": _OfImage(lambda hidden, form: hidden[:, form.n_prefix :].mean(dim=1, dtype=torch.float32)),
    "avg_all": _OfImage(lambda hidden, form: hidden.mean(dim=1, dtype=torch.float32)),
    TOKENS: _OfImage(lambda hidden, form: hidden.float(), lambda form: (form.n_tokens, form.width)),
    HEAD: _OfImage(lambda output, form: output.float()),
}


_ALONE = (HEAD, TOKENS, GRID)


def vision_pooling(name: str) -> _OfImage:
    """Return a pooling of :data:`VISION_POOLINGS`, or the grid of a name such as ``grid4``."""
    return VISION_POOLINGS[name] if name in VISION_POOLINGS else _grid(int(name.removeprefix("grid")))


def _grid(k: int) -> _OfImage:
    """Return the means of patch tokens over a grid of k × k parts of the image, row by row, (B, k·k, D).

    If k does not divide the patches, parts overlap by one row or column, as in torch's adaptive_avg_pool2d.
    """

    def pool(hidden: Tensor, form: LayerForm) -> Tensor:
        patches = hidden[:, form.n_prefix :].float().mT
        patches = patches.reshape(*patches.shape[:2], -1, form.columns or 1)
        return functional.adaptive_avg_pool2d(patches, k).flatten(2).mT

    return _OfImage(pool, lambda form: (k * k, form.width))


# The mean of the tokens of a mask, the last one, or all of them: from tokens (B, T, D), a mask (B, T) bool with one
# token or more in each row, and its full_columns(), or (0, 0), to (B, D) float32. For all tokens, the mask may have
# more or fewer columns than there are tokens: the result is (B, columns · D), with 0 where the mask is not set.
LANGUAGE_POOLINGS = {"avg": _mean_of_mask, "last": _last_of_mask, TOKENS: _tokens_of_mask}
# For a text encoder: these, its class token, and the vector of sentence-transformers.
TEXT_POOLINGS = (*LANGUAGE_POOLINGS, CLS, HEAD)
# For a vision-language model: the means of these tokens of its text.
VISION_LANGUAGE_POOLINGS = ("image", "prompt", "last")

# Tokens of a caption that poolings may leave out: the BOS token; the tokens that the tokenizer adds, and its special
# tokens; the tokens of find_sinks().
SPECIAL, SINKS = "special", "sinks"
EXCLUDED = ("bos", SPECIAL, SINKS)

if TYPE_CHECKING:
    Excluded: TypeAlias = str
    VisionPooling: TypeAlias = str
    LanguagePooling: TypeAlias = str
    TextPooling: TypeAlias = str
    VisionLanguagePooling: TypeAlias = str
else:  # allowed values of --model.pool
    GridPooling = restricted_string_type(GRID, GRID_NAME, docstring="Means over a grid: grid1 to grid64.")
    # otherwise --print_config writes a list of poolings as one string
    register_type(GridPooling, lambda pool: str(GridPooling(pool)), fail_already_registered=False)
    VisionPooling = Literal[tuple(VISION_POOLINGS)] | GridPooling
    VisionLanguagePooling = Literal[VISION_LANGUAGE_POOLINGS]
    LanguagePooling = Literal[tuple(LANGUAGE_POOLINGS)]
    TextPooling = Literal[TEXT_POOLINGS]
    Excluded = Literal[EXCLUDED]


def check_pools(pool: str | Sequence[str], known: Collection[str], allowed: Sequence[str], reason: str) -> list[str]:
    """Return the wanted poolings, one or several of ``known``, as a list.

    Only the ``allowed`` ones are possible for this model, for the ``reason`` in the error.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    kinds = [GRID if re.match(GRID_NAME, pool) else pool for pool in pools]
    if not pools or len(set(pools)) < len(pools) or not set(kinds) <= set(known):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if refused := [p for p, kind in zip(pools, kinds, strict=True) if kind not in allowed]:
        what = name_some([repr(p) for p in refused])
        raise InputError(f"model.pool: {reason}, so there is no {what}; allowed: {', '.join(allowed)}")
    if len(pools) > 1 and (alone := [p for p, kind in zip(pools, kinds, strict=True) if kind in _ALONE]):
        raise InputError(f"model.pool: {pools}: {alone[0]} has its own layers or shapes, so give it alone")
    return pools


def check_exclude(exclude: str | Sequence[str] | None, pool: str | Sequence[str], other: str | None) -> list[str]:
    """Return the kinds of tokens that poolings leave out, in the order of ``EXCLUDED``.

    ``other`` names an older setting that also leaves tokens out, if it is given.
    """
    wanted = [exclude] if isinstance(exclude, str) else list(exclude or ())
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(EXCLUDED):
        raise InputError(f"model.exclude: {exclude!r} must be some of {', '.join(EXCLUDED)}, none twice")
    if wanted and other is not None:
        raise InputError(f"model.exclude: {', '.join(wanted)} can't be combined with {other}; give one of the two")
    others = {TOKENS: "keeps all tokens", CLS: "is one token", HEAD: "is the model's own output"}
    pools = [pool] if isinstance(pool, str) else pool
    if wanted and (alone := [name for name in pools if name in others]):
        raise InputError(
            f"model.exclude: {', '.join(wanted)} can't be combined with model.pool {alone[0]}, which "
            f"{others[alone[0]]}; use avg or last"
        )
    return [kind for kind in EXCLUDED if kind in wanted]


def full_columns(mask: Tensor) -> tuple[int, int]:
    """Return the first run of columns in which all rows of the mask (B, T) are set; they need no copy.

    On a GPU return none: reading the mask would stall the GPU, where copies are fast.
    """
    if mask.device.type != "cpu":
        return 0, 0
    of_all = mask.all(dim=0).numpy()
    start = int(of_all.argmax())
    rest = of_all[start:]
    return start, start + (len(rest) if rest.all() else int(rest.argmin()))
