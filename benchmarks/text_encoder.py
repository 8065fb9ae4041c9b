"""Captions a second of a text encoder: whole jobs of all layers, next to sentence-transformers, which gives one."""

import tempfile
import time
from pathlib import Path
from typing import Any

from common import Job, Numbers, device, dtype, in_process, rounds, seconds_of_extract
from language import CAPTIONS, PRECISIONS, ROUNDS, N, make_captions
from report import OURS, PEER, Table

NAME, TITLE = "text_encoder", "Text encoders"
SHAPES = {
    "all-mpnet-base-v2": {"model_type": "mpnet", "vocab_size": 30527, "hidden_size": 768, "intermediate_size": 3072,
                          "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 514},
}  # fmt: skip
BATCH_SIZE = 32  # the default of encode

TABLES = [
    Table(
        unit="captions a second",
        rows={"sentence-transformers, last layer": PEER, "lit-extract, all layers": OURS},
        shares=(("lit-extract, all layers", "sentence-transformers, last layer"),),
    ),
]

TEXT = f"""
From a caption file to the finished `.pt` of the mean tokens of all blocks, of a model of the named shape with random
weights. Loading the model does not count. Captions are those of the section Language.

- *sentence-transformers*: `encode` of all captions at once, which sorts them by length, in batches of {BATCH_SIZE}, the
  default; mean of the last hidden states, normalised, and saved.
- *lit-extract*: the whole job, including tokenizing and finalizing.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for models and captions."""
    captions = folder / "captions.csv"
    make_captions(captions, max(N[setting].values()))
    jobs, has_bfloat16 = [], "bfloat16" in str(in_process(dtype))
    for shape in SHAPES:
        model = folder / shape
        in_process(make_model, folder=model, shape=shape)
        for precision, name in PRECISIONS.items():
            if name == "bfloat16" and not has_bfloat16:
                continue  # it is emulated
            common = {"model": model, "captions": captions, "n": N[setting][precision]}
            jobs += [
                Job(f"{shape}, {name}", sentence_transformers, {**common, "dtype": name}, is_peer=True),
                Job(f"{shape}, {name}", lit_extract, {**common, "precision": precision}),
            ]
    return rounds(jobs, ROUNDS[setting])


def make_model(folder: Path, shape: str) -> None:
    """A folder as sentence-transformers writes it: random weights, and a tokenizer of the captions' words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
    from tokenizers import models as tokenizer_models
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train([str(CAPTIONS)], trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    ends = [(token, special.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=384,
    )  # fmt: skip
    plain = folder.with_name(f"{folder.name}-plain")
    fast.save_pretrained(plain)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**SHAPES[shape], pad_token_id=1)).save_pretrained(plain)
    transformer = modules.Transformer(str(plain), max_seq_length=384)
    pooling = modules.Pooling(SHAPES[shape]["hidden_size"])
    SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu").save(str(folder))


def sentence_transformers(model: Path, captions: Path, n: int, dtype: str) -> dict[str, float]:
    """Its own way, as its documentation has it."""
    import pandas as pd
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device=device(), model_kwargs={"dtype": getattr(torch, dtype)})
    texts = pd.read_csv(captions)["caption"].tolist()[:n]
    start = time.perf_counter()
    feats = encoder.encode(texts, batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False)
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": feats.float().cpu()}, file.name)
    return {"sentence-transformers, last layer": n / (time.perf_counter() - start)}


def lit_extract(model: Path, captions: Path, n: int, precision: str) -> dict[str, float]:
    """The whole job."""
    extractor, data = _job(model, captions, n)
    _, seconds = seconds_of_extract(extractor, data, precision=precision)
    return {"lit-extract, all layers": n / seconds}


def _job(model: Path, captions: Path, n: int) -> tuple[Any, Any]:
    from lit_extract import CaptionDataModule, TextEncoderExtractor

    extractor = TextEncoderExtractor("benchmark", checkpoint=str(model))
    data = CaptionDataModule(
        str(captions), "benchmark", query=f"nsd_id < {n}", subset="some", preprocessing=extractor.preprocessing
    )
    return extractor, data
