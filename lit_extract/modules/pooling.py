"""From the tokens of a layer to one vector a stimulus, or a few. Sums run in float32, whatever comes in.

A pooling is an entry of ``VISION_POOLINGS`` or ``LANGUAGE_POOLINGS``, or of both. ``verify --parity`` has a
second implementation of each, in parity/, which shares nothing with this one.

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
        # not a product with the mask: what stands in the padding may be NaN
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
# "Massive Activations in Large Language Models", arXiv:2402.17762). In the mean of a caption of ten tokens, one of them
# weighs as much as all others together. A single number 1,000 times as large as the median one, which is massive
# there, makes a norm 11 times as large as that of normal numbers at a width of 4,096, and 28 times at 576. Of
# SmolLM2-135M sinks have 11 to 230 times the median from block 11 on, all other tokens 1.4 times at most.
SINKS_ABOVE = 10.0


def find_sinks(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return which tokens of a mask, both (B, T), are attention sinks in a layer (B, T, D).

    The median is the lower one, of the tokens of the mask. So one of them has it as its norm, and is never a sink. What
    is not finite is none either: it must be seen.
    """
    norms: Tensor = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
    ordered = norms.masked_fill(~mask, torch.inf).sort(dim=1).values
    median = ordered.gather(1, (mask.sum(dim=1, keepdim=True) - 1) // 2)
    return mask & (norms > SINKS_ABOVE * median) & norms.isfinite()


class LayerForm(NamedTuple):
    """The tokens of a layer of a vision model: first those that stand for no place of the image, then the patches."""

    n_prefix: int
    n_patches: int
    columns: int | None  # of patches, which come row by row; None: they are no grid
    width: int

    @property
    def n_tokens(self) -> int:
        """Return how many tokens the layer has."""
        return self.n_prefix + self.n_patches


def _one_vector(form: LayerForm) -> tuple[int, ...]:
    return (form.width,)


class _OfImage(NamedTuple):
    pool: Callable[[Tensor, LayerForm], Tensor]  # from tokens (B, T, D) to what is kept of them (B, …) float32
    shape: Callable[[LayerForm], tuple[int, ...]] = _one_vector  # of what is kept


HEAD = "head"  # a pooling, and the name of its one layer
CLS, TOKENS = "cls", "tokens"
GRID = "gridK"  # stands for grid4 and the like
GRID_NAME = r"^grid([1-9]|[1-5]\d|6[0-4])$"

# The class token; the mean of the patch tokens; the mean of all tokens; all tokens, as they are; what the model itself
# outputs, (B, D) already.
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

    Where k does not divide the patches, parts overlap by one row or column of them, as in torch's adaptive_avg_pool2d.
    """

    def pool(hidden: Tensor, form: LayerForm) -> Tensor:
        patches = hidden[:, form.n_prefix :].float().mT
        patches = patches.reshape(*patches.shape[:2], -1, form.columns or 1)
        return functional.adaptive_avg_pool2d(patches, k).flatten(2).mT

    return _OfImage(pool, lambda form: (k * k, form.width))


# The mean, or the last, of the tokens of a mask, or all of them. From tokens (B, T, D), a mask (B, T) bool with one of
# them at least in each row, and its full_columns(), or (0, 0), to (B, D) float32. Of all tokens the mask has as many
# columns as are kept, more or fewer than there are: (B, columns · D), 0 where the mask is not set.
LANGUAGE_POOLINGS = {"avg": _mean_of_mask, "last": _last_of_mask, TOKENS: _tokens_of_mask}
# Of a text encoder: these, its class token, and what sentence-transformers makes of the caption.
TEXT_POOLINGS = (*LANGUAGE_POOLINGS, CLS, HEAD)
# Of a language model that looks at an image: the means of these tokens of its text.
VISION_LANGUAGE_POOLINGS = ("image", "prompt", "last")

# Tokens of a caption that poolings may leave out: the BOS token; all that the tokenizer adds, and its special ones;
# those of find_sinks().
SPECIAL, SINKS = "special", "sinks"
EXCLUDED = ("bos", SPECIAL, SINKS)

if TYPE_CHECKING:
    Excluded: TypeAlias = str
    VisionPooling: TypeAlias = str
    LanguagePooling: TypeAlias = str
    TextPooling: TypeAlias = str
    VisionLanguagePooling: TypeAlias = str
else:  # what --model.pool may be
    GridPooling = restricted_string_type("GridPooling", GRID_NAME, docstring="Means over a grid: grid1 to grid64.")
    # else --print_config writes a list of poolings as the text of one
    register_type(GridPooling, lambda pool: str(GridPooling(pool)), fail_already_registered=False)
    VisionPooling = Literal[tuple(VISION_POOLINGS)] | GridPooling
    VisionLanguagePooling = Literal[VISION_LANGUAGE_POOLINGS]
    LanguagePooling = Literal[tuple(LANGUAGE_POOLINGS)]
    TextPooling = Literal[TEXT_POOLINGS]
    Excluded = Literal[EXCLUDED]


def check_pools(pool: str | Sequence[str], known: Collection[str], allowed: Sequence[str], reason: str) -> list[str]:
    """Return the wanted poolings, one or several of ``known``, as a list.

    The model can give only those that are ``allowed``, for a reason that the error has.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    kinds = [GRID if re.match(GRID_NAME, pool) else pool for pool in pools]
    if not pools or len(set(pools)) < len(pools) or not set(kinds) <= set(known):
        raise InputError(f"model.pool: {pool!r} must be one or more of {', '.join(allowed)}, none twice")
    if refused := [p for p, kind in zip(pools, kinds, strict=True) if kind not in allowed]:
        what = name_some([repr(p) for p in refused])
        raise InputError(f"model.pool: {reason}, so it can't give {what}; allowed: {', '.join(allowed)}")
    if len(pools) > 1 and (alone := [p for p, kind in zip(pools, kinds, strict=True) if kind in _ALONE]):
        raise InputError(f"model.pool: {pools}: {alone[0]} has layers or shapes of its own, so it is a job of its own")
    return pools


def check_exclude(exclude: str | Sequence[str] | None, pool: str | Sequence[str], other: str | None) -> list[str]:
    """Return the kinds of tokens that poolings leave out, in the order of ``EXCLUDED``.

    ``other`` is an older setting that leaves tokens out too, if it is given.
    """
    wanted = [exclude] if isinstance(exclude, str) else list(exclude or ())
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(EXCLUDED):
        raise InputError(f"model.exclude: {exclude!r} must be some of {', '.join(EXCLUDED)}, none twice")
    if wanted and other is not None:
        raise InputError(f"model.exclude: {', '.join(wanted)} with {other}; give one of the two")
    others = {TOKENS: "keeps all tokens", CLS: "is one token", HEAD: "is what the model itself makes of them"}
    pools = [pool] if isinstance(pool, str) else pool
    if wanted and (alone := [name for name in pools if name in others]):
        raise InputError(
            f"model.exclude: {', '.join(wanted)} with model.pool {alone[0]}, which {others[alone[0]]}; avg and last "
            "leave tokens out"
        )
    return [kind for kind in EXCLUDED if kind in wanted]


def full_columns(mask: Tensor) -> tuple[int, int]:
    """Return the first run of columns that the mask (B, T) has in all rows, which need no copy.

    Of a GPU none: it would have to be waited for, and copies in no time.
    """
    if mask.device.type != "cpu":
        return 0, 0
    of_all = mask.all(dim=0).numpy()
    start = int(of_all.argmax())
    rest = of_all[start:]
    return start, start + (len(rest) if rest.all() else int(rest.argmin()))
