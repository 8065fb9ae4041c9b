"""Captions a second: whole jobs, next to scripts of one's own, Hugging Face's pipeline, and the bare forward."""

import csv
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from common import REPOSITORY, Job, Numbers, device, in_process, rounds, seconds_of_extract
from report import LIMIT, OURS, PEER, Table

NAME, TITLE = "language", "Language"
CAPTIONS = REPOSITORY / "derivatives/captions/demo-captions-handwritten.csv"
SHAPES = {
    "SmolLM2-135M": {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                     "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                     "max_position_embeddings": 2048, "tie_word_embeddings": True},
    "BLOOM-shaped": {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 512, "n_layer": 12, "n_head": 8},
}  # fmt: skip
PRECISIONS = {"32-true": "float32", "bf16-true": "bfloat16"}
# Captions of a job: ten seconds or more where nothing else runs, and on two cores half a minute.
N = {
    "cpu": {"32-true": 700, "bf16-true": 2048},
    "cuda": {"32-true": 20_000, "bf16-true": 60_000},
    "quick": {"32-true": 24, "bf16-true": 24},
}
PLAIN_N = {"cpu": 60, "cuda": 2_400, "quick": 12}  # slow, and a rate
PIPELINE_PART = {"cpu": 3, "cuda": 8, "quick": 1}
PIPELINE_BATCH = {"cpu": 16, "cuda": 128}
ROUNDS = {"cpu": 3, "cuda": 3, "quick": 1}

TABLES = [
    Table(
        unit="captions a second",
        rows={
            "plain loop, float32": PEER,
            "Hugging Face pipeline": PEER,
            "lit-extract": OURS,
            "bare forward": LIMIT,
        },
        shares=(
            ("lit-extract", "plain loop, float32"),
            ("lit-extract", "Hugging Face pipeline"),
            ("lit-extract", "bare forward"),
        ),
    ),
    Table(
        unit="seconds before the first caption",
        rows={"lit-extract: weights read, hashed and loaded": OURS},
        has_picture=False,
    ),
]

TEXT = """
From a caption file to the finished `.pt` of the mean tokens of all blocks. No rate includes loading
the model; for lit-extract, the second table has that time. Captions have 8 to 80 words, most of them 15 to 30, like
generated captions. Weights are random, in the named shape, which costs the same. The BLOOM-shaped model has BLOOM's
vocabulary of 250,880 words.

- *plain loop*: a typical script: float32, the corpus padded to its longest caption, batches of 12, all hidden states
  and logits, then pooled.
- *Hugging Face pipeline*: `feature-extraction`, in the precision of the column. It gives the last hidden state
  only.
- *lit-extract*: the whole job, including tokenizing and finalizing.
- *bare forward*: the transformer alone, without head, over the same number of tokens, in batches of lit-extract's
  size, without padding.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for models and captions."""
    captions = folder / "captions.csv"
    make_captions(captions, max(N[setting].values()))
    jobs, n_tokens = [], 0.0
    for shape in SHAPES:
        model = folder / shape
        in_process(make_model, folder=model, shape=shape)
        n_tokens = in_process(mean_tokens, model=model, captions=captions)
        common = {"model": model, "captions": captions}
        jobs.append(Job(shape, plain_loop, {**common, "n": PLAIN_N[setting]}, is_peer=True))
        for precision, name in PRECISIONS.items():
            column, n = f"{shape}, {name}", N[setting][precision]
            some = max(4, n // PIPELINE_PART[setting])
            jobs += [
                Job(column, hugging_face_pipeline, {**common, "n": some, "dtype": name}, is_peer=True),
                Job(column, lit_extract, {**common, "n": n, "precision": precision}),
                Job(column, bare_forward, {**common, "n": n, "dtype": name}),
            ]
    numbers, left_out = rounds(jobs, ROUNDS[setting])
    for shape in SHAPES:  # the plain loop knows one precision
        for label, rates in numbers.pop(shape, {}).items():
            for name in PRECISIONS.values():
                numbers[f"{shape}, {name}"][label] = rates
    counts = ", ".join(f"{n:,} in {PRECISIONS[precision]}" for precision, n in N[setting].items())
    note = f"Captions of a job: {counts}, of {n_tokens:.1f} tokens on average; the others get a part of them."
    return numbers, [note, *left_out]


def make_captions(path: Path, n: int) -> None:
    """Captions out of those of the demo photographs, of the lengths that generated ones have."""
    sentences = [row["caption"] for row in csv.DictReader(CAPTIONS.read_text(encoding="utf-8").splitlines())]
    words = " ".join(sentences).split()
    generator = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["nsd_id", "caption"])
        for number in range(n):
            length = min(80, max(8, round(generator.lognormvariate(3.1, 0.35))))
            start = generator.randrange(len(words) - length)
            writer.writerow([number, " ".join(words[start : start + length])])


def make_model(folder: Path, shape: str) -> None:
    """A folder of the hub's format: a configuration, random weights, and a tokenizer of the captions' words."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape])).save_pretrained(folder)


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of the captions' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train([str(CAPTIONS)], trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def mean_tokens(model: Path, captions: Path) -> float:
    """Tokens of a caption, in the mean."""
    _, data = _job(model, captions, None)
    data.setup()
    return sum(data.lengths) / len(data.lengths)


def plain_loop(model: Path, captions: Path, n: int) -> dict[str, float]:
    """As scripts of this kind do it."""
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(device())
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    texts = pd.read_csv(captions)["caption"].tolist()
    longest = max(map(len, tokenizer(texts)["input_ids"]))  # of the whole corpus, of which n are done here
    feats = []
    start = time.perf_counter()
    tokens = tokenizer(texts[:n], padding="max_length", max_length=longest, return_tensors="pt")
    with torch.no_grad():
        for first in range(0, n, 12):
            ids, mask = (tokens[key][first : first + 12].to(device()) for key in ("input_ids", "attention_mask"))
            output = network(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = torch.stack(output.hidden_states, dim=1)  # (B, L, T, D)
            weights = mask[:, None, :, None]
            feats.append(((hidden * weights).sum(2) / weights.sum(2)).cpu())
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": torch.cat(feats)}, file.name)
    return {"plain loop, float32": n / (time.perf_counter() - start)}


def hugging_face_pipeline(model: Path, captions: Path, n: int, dtype: str) -> dict[str, float]:
    """Hugging Face's own way."""
    import pandas as pd
    import torch
    from transformers import AutoModel, AutoTokenizer, pipeline

    network = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    pipe = pipeline("feature-extraction", model=network, tokenizer=tokenizer, device=device())
    texts = pd.read_csv(captions)["caption"].tolist()[:n]
    start = time.perf_counter()
    outputs = pipe(texts, batch_size=PIPELINE_BATCH[device()], return_tensors=True)
    feats = torch.stack([output[0].float().mean(0) for output in outputs])
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": feats}, file.name)
    return {"Hugging Face pipeline": n / (time.perf_counter() - start)}


def bare_forward(model: Path, captions: Path, n: int, dtype: str) -> dict[str, float]:
    """The transformer alone, over rows of the mean length of each of our batches: as many tokens, no padding."""
    import torch
    from transformers import AutoModel

    from lit_extract.data.base import Connection

    extractor, data = _job(model, captions, n)
    row_bytes = extractor.n_numbers * 4
    data.connect(Connection(extractor.preprocessing, row_bytes, on_gpu=device() == "cuda"))
    network = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval().to(device())
    batches = [(len(rows), round(sum(data.lengths[row] for row in rows) / len(rows))) for rows in data.plan.batches()]
    with torch.inference_mode():
        parts = [torch.randint(0, 500, shape, device=device()) for shape in batches]
        network(input_ids=parts[-1], use_cache=False).last_hidden_state[:, -1].cpu()
        start = time.perf_counter()
        for part in parts:
            network(input_ids=part, use_cache=False).last_hidden_state[:, -1].cpu()
        seconds = time.perf_counter() - start
    done = sum(rows * tokens for rows, tokens in batches) / sum(data.lengths)  # rounding
    return {"bare forward": n * done / seconds}


def lit_extract(model: Path, captions: Path, n: int, precision: str) -> dict[str, float]:
    """The whole job."""
    extractor, data = _job(model, captions, n)
    before, seconds = seconds_of_extract(extractor, data, precision=precision)
    return {"lit-extract": n / seconds, "lit-extract: weights read, hashed and loaded": before}


def _job(model: Path, captions: Path, n: int | None) -> tuple[Any, Any]:
    from lit_extract import CaptionDataModule, LanguageExtractor

    extractor = LanguageExtractor("benchmark", checkpoint=str(model))
    some = {} if n is None else {"query": f"nsd_id < {n}", "subset": "some"}
    return extractor, CaptionDataModule(str(captions), "benchmark", preprocessing=extractor.preprocessing, **some)
