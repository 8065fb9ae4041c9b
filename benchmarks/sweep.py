"""Seconds that five models take on one folder of images: one ``lit-extract sweep``."""

import shutil
import time
from pathlib import Path

import vision
from common import Job, Numbers, in_process, make_photographs, rounds, run
from report import LIMIT, OURS, PEER, Table

NAME, TITLE = "sweep", "Five models"
# All see images alike: 224 × 224, bicubic, crop 0.9. Small ones, since there decoding weighs most.
MODELS = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch32_224",
    "vit_small_patch16_224",
]
IMAGES = {"cpu": (256, 1024), "cuda": (1024, 16384), "quick": (8, 16)}
PLAIN_PART = {"cpu": 8, "cuda": 32, "quick": 1}
ROUNDS = {"cpu": 2, "cuda": 3, "quick": 1}

TABLES = [
    Table(
        unit="seconds for five models",
        rows={
            "plain loop": PEER,
            "five cold runs of lit-extract": OURS,
            "lit-extract, images decoded": OURS,
            "lit-extract, with the pixel cache": OURS,
            "bare forwards and one decoding": LIMIT,
        },
        shares=(
            ("lit-extract, with the pixel cache", "plain loop"),
            ("lit-extract, with the pixel cache", "five cold runs of lit-extract"),
            ("lit-extract, with the pixel cache", "lit-extract, images decoded"),
            ("lit-extract, with the pixel cache", "bare forwards and one decoding"),
        ),
        more_is_better=False,
    )
]

TEXT = f"""
`lit-extract sweep` over five models: one command per model, in sequence, each with start-up, model and features file.
The models are {", ".join(f"`{model}`" for model in MODELS)}, with random weights.

- *plain loop*: as in the section Vision, five times, without start-up; from its rate on a part of the images.
- *five cold runs*: five `lit-extract predict` commands in sequence, with `--data.cache off`.
- *images decoded*: a sweep with `--data.cache off`. *with the pixel cache*: the default, with an empty cache at the
  start.
- *bare forwards and one decoding*: each model's forward pass alone, and all images decoded once; on a GPU, the
  longer of the two.

With few images, most of the time is start-up, which a sweep has once. With many images, the share of decoding in the
time counts. If models are slow, as on a CPU, this share is small, and a sweep is not much faster than cold runs.
"""


def measure(setting: str, on_gpu: bool, folder: Path) -> tuple[Numbers, list[str]]:
    """All of it; ``folder`` has room for photographs, pixels and features."""
    models, sizes = folder / "models.yml", IMAGES[setting]
    models.write_text("vision:\n" + "".join(f"  - {model}\n" for model in MODELS), encoding="utf-8")
    jobs = []
    for n in sizes:
        in_process(make_photographs, folder=_photographs(folder, n), n=n)
        common = {"models": models, "images": _photographs(folder, n), "output": folder / "features"}
        jobs += [Job(_column(n), function, common) for function in (cold_runs, sweep_decoding, sweep_cached)]
    images, most = _photographs(folder, sizes[-1]), sizes[-1]
    part = {"images": images, "n": max(4, most // PLAIN_PART[setting])}
    for model in MODELS:
        jobs += [
            Job(model, vision.plain_loop, {"model": model, **part}),
            Job(model, vision.bare_forward, {"model": model, "n": max(1, most // 4)}),
        ]
    jobs.append(Job(MODELS[0], vision.decode, {"model": MODELS[0], "images": images, "n": most}))
    measured, notes = rounds(jobs, ROUNDS[setting])

    def seconds(n: int, label: str) -> list[float]:
        """Of all models together, round by round."""
        return [sum(n / rate for rate in rates) for rates in zip(*(measured[m][label] for m in MODELS), strict=True)]

    numbers = {}
    for n in sizes:
        numbers[_column(n)] = whole = measured[_column(n)]
        decodings, forwards = (n / rate for rate in measured[MODELS[0]]["decoding alone"]), seconds(n, "bare forward")
        both = zip(decodings, forwards, strict=True)
        whole["bare forwards and one decoding"] = [max(times) if on_gpu else sum(times) for times in both]
        whole["plain loop"] = seconds(n, "plain loop")
    return numbers, notes


def _photographs(folder: Path, n: int) -> Path:
    return folder / f"photographs-{n}"


def _column(n: int) -> str:
    return f"{n:,} images"


def cold_runs(models: Path, images: Path, output: Path) -> dict[str, float]:
    """A command a model, which know nothing of each other."""
    start = time.perf_counter()
    for model in MODELS:
        what = ("--model.models", str(models), "--model.name", model, "--model.untrained", "true")
        run("predict", "--config", "configs/folder/vision.yaml", *what, *_where(images, output), "--data.cache", "off")
    return {"five cold runs of lit-extract": _end(start, output)}


def sweep_decoding(**settings: Path) -> dict[str, float]:
    """Every image decoded for every model."""
    return {"lit-extract, images decoded": _sweep("--data.cache", "off", **settings)}


def sweep_cached(**settings: Path) -> dict[str, float]:
    """As it is by default."""
    return {"lit-extract, with the pixel cache": _sweep(**settings)}


def _sweep(*options: str, models: Path, images: Path, output: Path) -> float:
    config = ("--config", "configs/folder/vision.yaml", "--models", str(models))
    start = time.perf_counter()
    run("sweep", *config, "--untrained", *_where(images, output), *options)
    return _end(start, output)


def _where(images: Path, output: Path) -> tuple[str, ...]:
    batch = str(vision.BATCH[vision.device()])
    return "--data.root", str(images), "--output_dir", str(output), "--data.batch_size", batch


def _end(start: float, output: Path) -> float:
    """Seconds since the start; what was made is counted, and removed for the next."""
    seconds = time.perf_counter() - start
    files = list(output.rglob("*.pt"))
    assert len(files) == len(MODELS), files
    shutil.rmtree(output)
    return seconds
