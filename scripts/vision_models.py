"""Ask every architecture of timm whether it gives features, and write docs/vision-models.md.

Models are built on the meta device, without memory for weights. Run it from the root of the repository; it takes some
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
    "cait": "blocks of patches alone: the class token joins after them, in blocks that are no layers",
    "convit": "the class token joins before the last two blocks: `cls` of these alone, `--model.layers '[-2, -1]'`",
    "deepseek_vit": "the blocks of the encoder; what merges their tokens comes after them",
    "gemma4_vit": "the blocks of the encoder; what merges their tokens comes after them",
    "mlp_mixer": "no transformers: blocks without attention",
    "naflexvit": "images of one size, so that no tokens are padding",
    "qwen3_vit": "the blocks of the encoder; what merges their tokens comes after them",
    "vitamin": "vitamin_xlarge_336 gives features with `--model.options '{img_size: 336}'`",
    "xcit": "blocks of patches alone: the class token joins after them, in blocks that are no layers",
}


class Answer(NamedTuple):
    """What one architecture gives: tokens and prefix tokens of the last block, or the reason why it gives nothing."""

    name: str
    n_tokens: int = 0
    n_dim: int = 0
    n_prefix: int = 0
    n_layers: int = 0
    pools: tuple[str, ...] = ()
    reason: str = ""

    @property
    def family(self) -> str:
        """Return the module of timm that has it."""
        return timm.model_entrypoint(self.name).__module__.rpartition(".")[2]


def main() -> None:
    PAGE.write_text(page(map(ask, timm.list_models())))


def ask(name: str) -> Answer:
    reason = ""
    for pools in (POOLS, POOLS[1:]):
        try:
            model = VisionExtractor(name, untrained=True, pool=pools)
        except InputError as error:
            reason = str(error)
            if not reason.startswith("model.pool: "):
                break
        else:
            return Answer(name, model.n_tokens, model.block_dim, model.n_prefix, len(model.layers), tuple(pools))
    return Answer(name, reason=reason)


def page(answers: Iterable[Answer]) -> str:
    families: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        families[answer.family].append(answer)
    n_all = sum(len(family) for family in families.values())
    n_good = sum(1 for family in families.values() for answer in family if answer.pools)
    counts = f"{n_good:,} give features and {n_all - n_good:,} are refused"
    in_order = sorted(families, key=lambda name: (not any(answer.pools for answer in families[name]), name))
    return "\n".join(
        [
            "# Vision models of timm",
            "",
            f"Of the {n_all:,} architectures of timm {timm.__version__}, {counts}, in one line with the reason,",
            "before weights are loaded. `python scripts/vision_models.py` asks each of them and writes this page.",
            "A family is a module of timm. The weights, the part of a name after the dot, change nothing here.",
            "",
            "| family | architectures | give features | tokens before the patches | poolings | "
            "reason of the others, remarks |",
            "| --- | --: | --: | --- | --- | --- |",
            *(row(name, families[name]) for name in in_order),
            "",
        ]
    )


def row(name: str, family: list[Answer]) -> str:
    good = [answer for answer in family if answer.pools]
    prefixes = ", ".join(str(n) for n in sorted({answer.n_prefix for answer in good}))
    n_cls = sum("cls" in answer.pools for answer in good)
    cls = "`cls`, " if n_cls == len(good) else f"`cls` ({n_cls}), " if n_cls else ""
    pools = f"{cls}`avg`, `avg_all`" if good else ""
    reasons = Counter(short(answer.reason) for answer in family if answer.reason)
    counted = [reason if n == len(family) else f"{reason} ({n})" for reason, n in reasons.most_common()]
    remarks = "; ".join(counted + ([REMARKS[name]] if name in REMARKS else []))
    return f"| {name} | {len(family)} | {len(good) or '–'} | {prefixes} | {pools} | {remarks} |"


def short(reason: str) -> str:
    """Return a reason without the name of the model, its numbers in brackets, and what to use instead."""
    text = re.sub(r"^model\.name: '.*?' does not fit: ", "", reason).partition("; ")[0]
    return re.sub(r" \(.*\)$", "", text)


if __name__ == "__main__":
    main()
