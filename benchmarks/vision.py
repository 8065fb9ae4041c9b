"""Images a second: whole jobs, next to what people write themselves, other packages, and the limits."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    REPOSITORY,
    Job,
    Numbers,
    device,
    dtype,
    in_process,
    make_photographs,
    n_cores,
    rounds,
    seconds_of_extract,
)
from report import ASIDE, LIMIT, OURS, PEER, Table

NAME, TITLE = "vision", "Vision"
MODELS = {"ViT-tiny": "vit_tiny_patch16_224", "ViT-base": "vit_base_patch16_224", "ViT-large": "vit_large_patch16_224"}
# Images of a job: so many that it takes ten seconds and more where nothing else runs, a few where it is a large model.
IMAGES = {
    "cpu": {"ViT-tiny": 4096, "ViT-base": 256, "ViT-large": 96},
    "cuda": {"ViT-tiny": 32768, "ViT-base": 16384, "ViT-large": 8192},
    "quick": {"ViT-tiny": 32, "ViT-base": 8, "ViT-large": 4},
}
PLAIN_PART = {"cpu": 8, "cuda": 32, "quick": 1}  # slow, and a rate: it need not see them all
PEERS_PART = {"cpu": 3, "cuda": 4, "quick": 1}
BATCH = {"cpu": 64, "cuda": 256}  # lit-extract's own on a CPU; what configs/trainer/a40.yaml recommends on a GPU
PASS = {"cpu": 16, "cuda": 256}  # images a forward pass of the others: what is fastest here
WRITTEN = {"cpu": 2**28, "cuda": 2**30, "quick": 2**22}  # bytes, enough that the disk is asked
ROUNDS = {"cpu": 3, "cuda": 2, "quick": 1}
THINGSVISION = REPOSITORY / ".venv-thingsvision/bin/python"

TABLES = [
    Table(
        unit="images a second",
        rows={
            "plain loop": PEER,
            "thingsvision": PEER,
            "Hugging Face pipeline": PEER,
            "timm forward_intermediates": PEER,
            "lit-extract, images decoded": OURS,
            "lit-extract, from the pixel cache": OURS,
            "decoding alone": ASIDE,
            "bare forward": LIMIT,
            "writing alone": ASIDE,
            "decoding and forward": LIMIT,
        },
        shares=(
            ("lit-extract, images decoded", "plain loop"),
            ("lit-extract, images decoded", "timm forward_intermediates"),
            ("lit-extract, images decoded", "decoding and forward"),
            ("lit-extract, from the pixel cache", "plain loop"),
            ("lit-extract, from the pixel cache", "bare forward"),
        ),
    )
]

TEXT = """
From JPEGs of NSD's size to the finished `.pt` of class tokens of all blocks. Weights are random, which costs the same.
No rate includes loading the model.

- *plain loop*: a typical script: float32, batches of 4 decoded in the main process, `torch.fx`, a list in memory,
  `torch.save`.
- *thingsvision*: all blocks with `extract_features(module_names=…)`, which decodes in the main process, runs in
  float32 and keeps all tokens of all blocks in memory. Version 2.7.3 requires torch 2.0.1, so it is measured in its
  own environment (`make thingsvision`), and left out if there is none.
- *Hugging Face pipeline*: `image-feature-extraction` on a ViT of the same shape, in the precision of lit-extract's
  run, with one decoding worker per core. It gives the last hidden state only.
- *timm forward_intermediates*: a script by a careful user: a DataLoader with one worker per core, autocast to
  bfloat16 (if lit-extract runs in it too), batches of the best size, `torch.save`.
- *lit-extract*: a whole job, with every image decoded (`--data.cache off`), and with the pixels that an earlier
  model left.
- *decoding alone*: images decoded, resized and cropped on all cores. *bare forward*: the model alone, in the precision
  of lit-extract's run, on images in memory. *writing alone*: the bytes of the store, written and synced. *decoding and
  forward*: the most that a machine can do of both: 1 ÷ (1/decoding + 1/forward) if they share the cores; the slowest
  of decoding, forward and writing if the model has a GPU.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for photographs and pixels."""
    images, cache = folder / "photographs", folder / "pixels"
    sizes = IMAGES[setting]
    in_process(make_photographs, folder=images, n=max(sizes.values()))
    in_process(decode, model=MODELS["ViT-tiny"], images=images, n=max(sizes.values()), cache=str(cache))
    jobs = []
    for column, model in MODELS.items():
        all_of = {"model": model, "images": images, "n": sizes[column]}
        some = {**all_of, "n": max(4, sizes[column] // PLAIN_PART[setting])}
        more = {**all_of, "n": max(4, sizes[column] // PEERS_PART[setting])}
        jobs += [
            Job(column, plain_loop, some, is_peer=True),
            Job(column, hugging_face_pipeline, more, is_peer=True),
            Job(column, timm_forward_intermediates, more, is_peer=True),
            Job(column, lit_extract_decoding, all_of),
            Job(column, lit_extract_cached, {**all_of, "cache": str(cache)}),
            Job(column, decode, all_of),
            Job(column, bare_forward, {"model": model, "n": max(1, sizes[column] // 2)}),
            Job(column, write, {"model": model, "folder": folder, "n_bytes": WRITTEN[setting]}),
        ]
        if THINGSVISION.exists():
            jobs.append(Job(column, thingsvision, some, is_peer=True))
    numbers, left_out = rounds(jobs, ROUNDS[setting])
    for rows in numbers.values():
        parts = rows["decoding alone"], rows["bare forward"], rows["writing alone"]
        rows["decoding and forward"] = [limit(on_gpu, *speeds) for speeds in zip(*parts, strict=True)]
    if not THINGSVISION.exists():
        left_out.append("thingsvision was left out: it has no environment here (`make thingsvision`)")
    counts = ", ".join(f"{sizes[column]:,} with {column}" for column in MODELS)
    return numbers, [f"Images of a job: {counts}; the others get a part of them.", *left_out]


def limit(on_gpu: bool, decoding: float, forward: float, writing: float) -> float:
    """The most images a second that a machine can do that has all to do."""
    return min(decoding, forward, writing) if on_gpu else 1 / (1 / decoding + 1 / forward)


def plain_loop(model: str, images: Path, n: int) -> dict[str, float]:
    """As scripts of this kind do it."""
    import timm
    import torch
    from PIL import Image
    from torchvision.models.feature_extraction import create_feature_extractor

    backbone = timm.create_model(model).eval().to(device())
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone))
    nodes = [f"blocks.{k}.add_1" for k in range(len(backbone.blocks))]
    extractor = create_feature_extractor(backbone, nodes)
    paths = sorted(images.glob("*.jpg"))[:n]
    feats = []
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, n, 4):
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[first : first + 4]])
            outputs = extractor(batch.to(device()))
            feats.append(torch.stack([outputs[node][:, 0] for node in nodes], dim=1).cpu())
    _save(torch.cat(feats))
    return {"plain loop": n / (time.perf_counter() - start)}


class _Decoded:
    """A dataset of a file each."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.paths[item]).convert("RGB"))


def timm_forward_intermediates(model: str, images: Path, n: int) -> dict[str, float]:
    """As a careful user writes it today."""
    import timm
    import torch
    from torch.utils.data import DataLoader

    where = device()
    backbone = timm.create_model(model).eval().to(where)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone))
    dataset = _Decoded(sorted(images.glob("*.jpg"))[:n], transform)
    feats = []
    start = time.perf_counter()
    loader = DataLoader(dataset, PASS[where], num_workers=n_cores(), pin_memory=where == "cuda")
    with torch.inference_mode(), torch.autocast(where, dtype(), enabled=dtype() != torch.float32):
        for batch in loader:
            outputs = backbone.forward_intermediates(
                batch.to(where, non_blocking=True),
                norm=False,
                intermediates_only=True,
                output_fmt="NLC",
                return_prefix_tokens=True,
            )
            feats.append(torch.stack([prefix[:, 0] for _, prefix in outputs], dim=1).float().cpu())
    _save(torch.cat(feats))
    return {"timm forward_intermediates": n / (time.perf_counter() - start)}


def hugging_face_pipeline(model: str, images: Path, n: int) -> dict[str, float]:
    """Hugging Face's own way, on a model of the same shape."""
    import timm
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel, pipeline

    with torch.device("meta"):
        same = timm.create_model(model)
    shape = ViTConfig(
        hidden_size=same.embed_dim,
        num_hidden_layers=len(same.blocks),
        num_attention_heads=same.blocks[0].attn.num_heads,
        intermediate_size=same.blocks[0].mlp.fc1.out_features,
    )
    backbone = ViTModel(shape, add_pooling_layer=False).eval().to(device(), dtype())
    pipe = pipeline("image-feature-extraction", model=backbone, image_processor=ViTImageProcessor(), device=device())
    paths = [str(path) for path in sorted(images.glob("*.jpg"))[:n]]
    start = time.perf_counter()
    outputs = pipe(paths, batch_size=PASS[device()], num_workers=n_cores(), return_tensors=True)
    _save(torch.cat([output[:, 0].float() for output in outputs]))
    return {"Hugging Face pipeline": n / (time.perf_counter() - start)}


def thingsvision(model: str, images: Path, n: int) -> dict[str, float]:
    """Through the Python that has it."""
    script = Path(__file__).with_name("with_thingsvision.py")
    settings = json.dumps({"model": model, "images": str(images), "n": n, "batch": PASS[device()], "device": device()})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(THINGSVISION), str(script), settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return {"thingsvision": float(done.stdout.split()[-1])}


def lit_extract_decoding(model: str, images: Path, n: int) -> dict[str, float]:
    """The whole job, every image decoded."""
    return {"lit-extract, images decoded": n / _seconds(model, images, n, "off")}


def lit_extract_cached(model: str, images: Path, n: int, cache: str) -> dict[str, float]:
    """The whole job, from the pixels that an earlier one left."""
    return {"lit-extract, from the pixel cache": n / _seconds(model, images, n, cache)}


def _seconds(model: str, images: Path, n: int, cache: str) -> float:
    from lit_extract import VisionExtractor

    _, seconds = seconds_of_extract(VisionExtractor(model, untrained=True), _data(model, images, n, cache))
    return seconds


def decode(model: str, images: Path, n: int, cache: str = "off") -> dict[str, float]:
    """Decoding, resizing and cropping alone, on all cores: by workers, which share nothing."""
    data = _data(model, images, n, cache)
    data.num_workers = n_cores()
    start = time.perf_counter()
    done = sum(len(batch["index"]) for batch in data.predict_dataloader())
    assert done == n
    return {"decoding alone": n / (time.perf_counter() - start)}


def bare_forward(model: str, n: int) -> dict[str, float]:
    """The model alone in the run's precision, on images that are in memory already."""
    import timm
    import torch

    where = device()
    backbone = timm.create_model(model).eval().to(where, dtype())
    size = min(n, PASS[where])
    images = torch.randn(size, 3, 224, 224, device=where, dtype=dtype())
    with torch.inference_mode():
        backbone(images).cpu()
        start = time.perf_counter()
        for _ in range(n // size):
            backbone(images).cpu()
    return {"bare forward": n // size * size / (time.perf_counter() - start)}


def write(model: str, folder: Path, n_bytes: int) -> dict[str, float]:
    """The bytes of the store alone, on the disk that the job writes to."""
    from lit_extract import VisionExtractor

    extractor = VisionExtractor(model, untrained=True)
    row_bytes = extractor.n_numbers * 4
    part = os.urandom(2**22)
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(n_bytes // len(part)):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        return {"writing alone": n_bytes / row_bytes / (time.perf_counter() - start)}


def _data(model: str, images: Path, n: int, cache: str) -> Any:
    from lit_extract import ImageFolderDataModule, VisionExtractor

    # A choice of rows of one folder, so that all models share one cache.
    return ImageFolderDataModule(
        str(images),
        query=f"name < '{n:05d}'",
        subset="some",
        batch_size=BATCH[device()],
        cache=cache,
        preprocessing=VisionExtractor(model, untrained=True).preprocessing,
    )


def _save(feats: Any) -> None:
    import torch

    with tempfile.NamedTemporaryFile() as file:
        torch.save({"feats": feats}, file.name)
