"""Images a second, end to end, beside a plain loop and beside the limits.

    python benchmarks/vision.py            # measures and writes the section "Vision" of RESULTS.md

Photographs of NSD's size (425 × 425) are cut from those that ship with the package. Weights are random:
they cost the same.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import machine, ratio, rounds, write_section

MODELS = {"vit_tiny_patch16_224": 2048, "vit_base_patch16_224": 256}  # images, enough that start-up does not count
BATCH = 64
ROUNDS = 3


def make_photographs(folder, n):
    from PIL import Image

    from lit_extract.datasets import load_dataset

    sources = [Image.open(path).convert("RGB") for path in load_dataset("demo")["image"]]
    generator = random.Random(0)
    for number in range(n):
        source = sources[number % len(sources)]
        side = generator.randint(min(source.size) // 2, min(source.size))
        x, y = generator.randint(0, source.width - side), generator.randint(0, source.height - side)
        crop = source.crop((x, y, x + side, y + side)).resize((425, 425), Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:05d}.jpg", quality=90)


def plain(model, folder, n):
    """As scripts of this kind do it: float32, batches of 4 decoded in the main process, torch.fx, a list."""
    import timm
    import torch
    from PIL import Image
    from torchvision.models.feature_extraction import create_feature_extractor

    backbone = timm.create_model(model).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone))
    nodes = [f"blocks.{k}.add_1" for k in range(len(backbone.blocks))]
    extractor = create_feature_extractor(backbone, nodes)
    paths = sorted(Path(folder).glob("*.jpg"))[: max(64, n // 8)]  # a rate; it need not see them all
    feats = []
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(paths), 4):
            images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[first : first + 4]])
            outputs = extractor(images)
            feats.append(torch.stack([outputs[node][:, 0] for node in nodes], dim=1))
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": torch.cat(feats)}, file.name)
    return len(paths) / (time.perf_counter() - start)


def decode(model, folder, n):
    """Decoding, resizing and cropping alone, on all cores: by workers, which share nothing."""
    import os

    data = _data(model, folder)
    data.num_workers = len(os.sched_getaffinity(0))
    loader = data.predict_dataloader()
    start = time.perf_counter()
    done = sum(len(batch["index"]) for batch in loader)
    assert done == n
    return done / (time.perf_counter() - start)


def forward(model, folder, n):
    """The bare forward pass in the run's precision, on images that are in memory already."""
    import timm
    import torch

    from lit_extract.predict import default_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if default_precision("auto") == "bf16-true" else torch.float32
    backbone = timm.create_model(model).eval().to(device, dtype)
    batch = BATCH if device == "cuda" else 16  # what is fastest here, and what lit-extract does
    images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)
    with torch.inference_mode():
        backbone(images)
        start = time.perf_counter()
        for _ in range(n // batch):
            backbone(images).cpu()
    return n // batch * batch / (time.perf_counter() - start)


def ours(model, folder, n):
    """The whole job: decoding, forward, pooling, store, finalize."""
    from lit_extract import VisionExtractor, extract
    from lit_extract.predict import predict_trainer

    extractor = VisionExtractor(model, untrained=True)
    trainer = predict_trainer()
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        extract(extractor, _data(model, folder), trainer, output_dir=output)
        return n / (time.perf_counter() - start)


def _data(model, folder):
    from lit_extract import ImageFolderDataModule, VisionExtractor

    preprocessing = VisionExtractor(model, untrained=True).preprocessing
    return ImageFolderDataModule(root=folder, batch_size=BATCH, preprocessing=preprocessing)


def main():
    rows = []
    for model, n in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            make_photographs(Path(folder), n)
            settings = {"model": model, "folder": folder, "n": n}
            names = ("plain", "decode", "forward", "ours")
            numbers = rounds(__file__, {name: (name, settings) for name in names}, ROUNDS)
        limits = [1 / (1 / d + 1 / f) for d, f in zip(numbers["decode"], numbers["forward"], strict=True)]
        numbers["limit"] = limits
        columns = ("plain", "decode", "forward", "limit", "ours")
        medians = [f"{statistics.median(numbers[name]):.0f}" for name in columns]
        gain, share = ratio(numbers, "ours", "plain"), ratio(numbers, "ours", "limit")
        rows.append(f"| {model} | {' | '.join(medians)} | {gain:.1f}× | {share:.2f} |")
    write_section("Vision", _TEXT.format(machine=machine(), rounds=ROUNDS, rows="\n".join(rows)))


_TEXT = """
`python benchmarks/vision.py` on {machine}. Images a second; medians of {rounds} rounds, ratios taken round by round.

| model | plain loop | decoding alone | bare forward alone | sharing the cores | lit-extract | of plain | of limit |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

*Plain loop*: float32, batches of 4 decoded in the main process, torch.fx feature extractor, a list in memory,
`torch.save`. *Bare forward*: the model in the run's precision, on images in memory (16 at a time on a CPU, which is
fastest, else 64), no hooks. *Sharing the
cores*: 1 / (1/decoding + 1/forward), the most that cores can do that have both to do; on a GPU the limit is the
smaller of the two. *lit-extract*: the whole job, from files to the finished `.pt`.
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(globals()[sys.argv[2]](**json.loads(sys.argv[3])))
    else:
        main()
