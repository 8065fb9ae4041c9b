"""Try which architectures of timm give features, and write docs/vision-models.md.

Models are built on the meta device, without memory for weights. Run it from the root of the repository; it takes a few
minutes: python scripts/vision_models.py
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import timm

from lit_extract.common.errors import InputError
from lit_extract.modules.vision import VisionExtractor

PAGE = Path("docs/vision-models.md")
POOLS = ["cls", "avg", "avg_all"]
REMARKS = {
    "cait": "blocks of patches only: the class token joins after them, so only `norm` can give it",
    "coat": "the tokens, without the class token of each stage",
    "convit": "the class token joins before the last two blocks: `cls` of these only, `--model.layers '[-2, -1]'`",
    "crossvit": "two branches: first the layers of one, then those of the other, without their class tokens",
    "deepseek_vit": "the blocks of the encoder; their tokens are merged after them",
    "gemma4_vit": "the blocks of the encoder; their tokens are merged after them",
    "mlp_mixer": "not transformers: blocks without attention",
    "naflexvit": "images of one size, so no tokens are padding",
    "qwen3_vit": "the blocks of the encoder; their tokens are merged after them",
    "tnt": "the outer tokens, without the class token",
    "vitamin": "vitamin_xlarge_336 gives features with `--model.options '{img_size: 336}'`",
    "xcit": "blocks of patches only: the class token joins after them, so only `norm` can give it",
}


INTRODUCTION = """# Vision models of timm

Of the {n_all:,} architectures of timm {version}, {blocks:,} give the tokens of their blocks and {stages:,} the maps of
their stages; {refused:,} refused, with the reason in one line, before weights are loaded. A family is a module of timm.
Weights (the part of a name after the dot) make no difference here. `python scripts/vision_models.py` tries each
architecture and writes this page.

Pooling `head`, the output of the model itself, works for every model whose output is one vector per image.
"""
BLOCKS = """
## Blocks

These models are a sequence of blocks whose tokens have one width. The layers are `blocks.0`, `blocks.1`, … and, if
the tokens have a final norm, `norm`. All have the pooling `avg_all` too.

| family | architectures | give blocks | blocks | width | tokens before the patches | poolings | remarks |
| --- | --: | --: | --- | --- | --- | --- | --- |
"""
STAGES = """
## Stages

All others give what timm's own `forward_intermediates` returns: a map (C, H, W) for each stage; widths may differ.
`layers: blocks` means all stages, and indices count stages. `avg` is the mean over the places of a map, without the
norm that comes after the last stage; there is no `cls`, `avg_all` or `norm`. A stage is named after the module that
outputs it, such as `layer4`, or `intermediates.3` if timm lists no module with exactly this output.

Random weights (`untrained`) are timm's own initialization. In ResNets the last norm of each block starts at zero, so
blocks add nothing to their input; `--model.options '{zero_init_last: false}'` changes that.

| family | architectures | give stages | stages | widths | first and last layer, for example | remarks |
| --- | --: | --: | --- | --- | --- | --- |
"""


class Answer(NamedTuple):
    """The result for one architecture: its layers, or the reason why it gives no features."""

    name: str
    kind: str = ""  # blocks or stages
    layers: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()  # of the layers
    n_tokens: int = 0  # of the last layer: tokens, or places of a map
    n_prefix: int = 0  # of them before the patches
    pools: tuple[str, ...] = ()
    reason: str = ""

    @property
    def family(self) -> str:
        """Return the module of timm that has it."""
        return timm.model_entrypoint(self.name).__module__.rpartition(".")[2]


def main() -> None:
    PAGE.write_text(page(map(ask, timm.list_models())))


def ask(name: str) -> Answer:
    try:
        model = VisionExtractor(name, untrained=True, pool="avg")
    except InputError as error:
        return Answer(name, reason=str(error))
    found = model.layer_set
    widths = tuple(form.width for form in found.forms)
    last = found.forms[-1]
    pools = tuple(pool for pool in POOLS if pool in found.allowed)
    kind = type(found).__name__.lower()
    return Answer(name, kind, tuple(model.layers), widths, last.n_tokens, last.n_prefix, pools)


def page(answers: Iterable[Answer]) -> str:
    families: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        families[answer.family].append(answer)
    every = [answer for family in families.values() for answer in family]
    kinds = Counter(answer.kind for answer in every)
    by_kind = {
        kind: [name for name in sorted(families) if kind in {answer.kind for answer in families[name]}]
        for kind in ("blocks", "stages")
    }
    introduction = INTRODUCTION.format(
        n_all=len(every), version=timm.__version__, blocks=kinds["blocks"], stages=kinds["stages"], refused=kinds[""]
    )
    return "".join(
        [
            introduction,
            BLOCKS,
            *(row_of_blocks(name, families[name]) for name in by_kind["blocks"]),
            STAGES,
            *(row_of_stages(name, families[name]) for name in by_kind["stages"]),
        ]
    )


def row_of_blocks(name: str, family: list[Answer]) -> str:
    good = [answer for answer in family if answer.kind == "blocks"]
    prefixes = ", ".join(str(n) for n in sorted({answer.n_prefix for answer in good}))
    n_cls = sum("cls" in answer.pools for answer in good)
    cls = "`cls`, " if n_cls == len(good) else f"`cls` ({n_cls}), " if n_cls else ""
    return in_a_row(name, len(family), len(good), numbers(good), extent(good), prefixes, f"{cls}`avg`", remarks(family))


def row_of_stages(name: str, family: list[Answer]) -> str:
    good = [answer for answer in family if answer.kind == "stages"]
    first = good[0]
    layers = f"`{first.layers[0]}` … `{first.layers[-1]}` ({first.name})"
    return in_a_row(name, len(family), len(good), numbers(good), extent(good), layers, remarks(family))


def in_a_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def remarks(family: list[Answer]) -> str:
    reasons = Counter(short(answer.reason) for answer in family if answer.reason)
    counted = [reason if n == len(family) else f"{reason} ({n})" for reason, n in reasons.most_common()]
    name = family[0].family
    return "; ".join(counted + ([REMARKS[name]] if name in REMARKS else []))


def numbers(family: list[Answer]) -> str:
    """Return how many layers architectures have."""
    return span({len(answer.layers) for answer in family})


def extent(family: list[Answer]) -> str:
    """Return how wide layers are."""
    return span({width for answer in family for width in answer.widths})


def span(values: set[int]) -> str:
    return "…".join(map(str, dict.fromkeys([min(values), max(values)])))


def short(reason: str) -> str:
    """Return a reason without the name of the model, its numbers in brackets, and what to use instead."""
    text = re.sub(r"^model\.name: '.*?' is not supported: ", "", reason).partition("; ")[0]
    return re.sub(r" \(.*\)$", "", text)


if __name__ == "__main__":
    main()
