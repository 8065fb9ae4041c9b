"""Captions a second: a shard of requests at a time, next to one call an image.

    make bench-vllm                                              # a tiny Pixtral with random weights, on CPU
    python benchmarks/captions.py mistralai/Pixtral-12B-2409     # what you have

One engine, loaded once; both ways in turn, so that what drifts in one drifts in the other. A command of its own, as
vLLM has an environment of its own.
"""

import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Numbers, describe_machine, versions
from report import OURS, PEER, Table, save_section, write_results

NAME, TITLE = "captions", "Captions"
ROUNDS = 5
TOKENS = 32
OPTIONS = {"enforce_eager": True}
TABLES = [
    Table(
        unit="captions a second",
        rows={"one call an image": PEER, "lit-extract, a shard at a time": OURS},
        shares=(("lit-extract, a shard at a time", "one call an image"),),
    )
]

TEXT = f"""
`make bench-vllm`: captions of the photographs that ship with the package, {TOKENS} tokens at most, by one engine in
bf16.
"""


def ask_each(engine, sources):
    """As scripts of this kind do it: a call an image."""
    return [engine.ask([source])[0] for source in sources]


def ask_all(engine, sources):
    """As lit-extract does it."""
    return engine.ask(sources)


WAYS = {"one call an image": ask_each, "lit-extract, a shard at a time": ask_all}


def measure(model: str, column: str, options: dict | None) -> tuple[Numbers, list[str]]:
    """Captions a second of each way, a round each, and how many captions are the same."""
    from lit_extract import Captioner, ImageSourceDataModule

    captioner = Captioner(model, max_tokens=TOKENS, engine_options=options)
    data = ImageSourceDataModule("demo", preprocessing=captioner.preprocessing)
    data.setup()
    captioner.configure_model()
    engine, sources = captioner.engine, data.sources
    ask_all(engine, sources)  # warm up
    rates, texts = {way: [] for way in WAYS}, {}
    for turn in range(ROUNDS):
        for way, ask in WAYS.items():
            start = time.perf_counter()
            replies = ask(engine, sources)
            rates[way].append(len(replies) / (time.perf_counter() - start))
            assert all(reply.error is None for reply in replies)
            texts[way] = [reply.text for reply in replies]
            print(f"round {turn + 1}: {way}: {rates[way][-1]:.2f}", flush=True)
    each, shard = texts.values()
    same = sum(a == b for a, b in zip(each, shard, strict=True))
    note = (
        f"{same} of {len(sources)} captions are the same: in bf16 the last bits of a number depend on its batch, "
        "and a random model's choices of tokens are near ties."
    )
    return {column: rates}, [note]


def main() -> None:
    """Measure, save, write."""
    if len(sys.argv) > 1:
        numbers, notes = measure(sys.argv[1], sys.argv[1], None)
    else:
        sys.path.insert(0, str(REPOSITORY / "tests/with_vllm"))
        from helpers.tiny_pixtral import make

        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with tempfile.TemporaryDirectory() as folder:
            model = str(make(Path(folder) / "tiny-pixtral"))
            numbers, notes = measure(model, "tiny Pixtral, random weights", OPTIONS)
    section = {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "rounds": ROUNDS,
        "numbers": numbers,
        "notes": notes,
    }
    here = Path(__file__).parent
    save_section(here, describe_machine(), NAME, section)
    write_results(here, [sys.modules[__name__]])


if __name__ == "__main__":
    main()
