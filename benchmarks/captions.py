"""Captions a second: a shard of requests at a time, beside one call an image.

    make bench-vllm                                              # a tiny Pixtral with random weights, on CPU
    python benchmarks/captions.py mistralai/Pixtral-12B-2409     # what you have

One engine, loaded once; both ways in turn, so that what drifts in one drifts in the other. Writes the section
"Captions" of RESULTS.md.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import machine, ratio, write_section

ROUNDS = 5
TOKENS = 32
OPTIONS = {"enforce_eager": True}


def ask_each(engine, sources):
    """As scripts of this kind do it: a call an image."""
    return [engine.ask([source])[0] for source in sources]


def ask_all(engine, sources):
    """As lit-extract does it."""
    return engine.ask(sources)


WAYS = {"one call an image": ask_each, "a shard at a time": ask_all}


def measure(model, options):
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
    return rates, sum(a == b for a, b in zip(each, shard, strict=True)), len(sources)


def main():
    if len(sys.argv) > 1:
        rates, same, n = measure(sys.argv[1], None)
        model = sys.argv[1]
    else:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
        from tiny_pixtral import make

        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with tempfile.TemporaryDirectory() as folder:
            rates, same, n = measure(str(make(Path(folder) / "tiny-pixtral")), OPTIONS)
        model = "tiny Pixtral, random weights"
    rows = f"| {model} | " + " | ".join(f"{statistics.median(rates[way]):.1f}" for way in WAYS)
    gain = ratio(rates, *reversed(WAYS))
    rows += f" | {gain:.1f}× | {same} of {n} |"
    text = _TEXT.format(machine=machine(), rounds=ROUNDS, tokens=TOKENS, rows=rows, names=" | ".join(WAYS))
    print(text)
    write_section("Captions", text)


_TEXT = """
`make bench-vllm` on {machine}. Captions a second, of the photographs
that ship here, {tokens} tokens at most; one engine in bf16, medians of {rounds} rounds, ratios taken round by round.

| model | {names} | gain | same caption |
| --- | --- | --- | --- | --- |
{rows}

*Same caption*: in bf16 a number depends on its batch in the last bits, and the replies of a random model are near ties.
"""

if __name__ == "__main__":
    main()
