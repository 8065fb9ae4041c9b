"""What one model on one dataset will need of disk, device and host, before anything runs.

Everything comes from configurations: shapes from the extractors' skeletons, memory by
``memory.py``, room from what a job writes (``disk.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_extract.data.base import Connection, StimulusDataModule
from lit_extract.data.captions import CaptionDataModule
from lit_extract.data.images import ImageDataModule
from lit_extract.data.pixels import GEOMETRY
from lit_extract.data.plan import default_shard_rows
from lit_extract.jobs.outputs import output_paths, recorded_provenance
from lit_extract.modules.base import Extractor
from lit_extract.planning.memory import device_bytes, estimate_forward, host_bytes
from lit_extract.storage.disk import bytes_there, features_bytes, store_bytes
from lit_extract.storage.paths import AnyPath

# A caption's tokens when there are none to look at; few captions of images have more.
TOKENS_A_CAPTION = 128


@dataclass(frozen=True)
class Machine:
    """What a plan must fit.

    Args:
        card: Name of the GPU; None: the run is on the CPU.
        memory: Bytes of the GPU, or of the host.
        precision: The trainer's.
        free_disk: Bytes that are free for the output; None: not known, as it goes elsewhere.
        host_memory: Bytes of the host beside a GPU; None: not known, as the GPU is elsewhere.
    """

    card: str | None
    memory: int
    precision: str
    free_disk: int | None
    host_memory: int | None = None


@dataclass(frozen=True)
class Plan:
    """What one model needs; sizes are in bytes.

    Args:
        model: Its name.
        problem: Why it can't be planned; then there is nothing else.
        rows: Stimuli.
        layers: Layers.
        width: Dimensions of a layer.
        parameters: Of the whole model, head included.
        pools: Poolings, a features file each.
        batch: Rows and tokens of the largest batch; an image has no tokens of ours.
        features: All its .pt files.
        disk_peak: The most on the disk at once: the store, and the .pt files that are made beside it.
        disk_left: What the disk must still give for that; 0 when the files are there.
        disk_kept: What of it stays in the end.
        device: Memory of the GPU; None on a CPU.
        host: Memory of the host.
        fits: "yes"; "split": the batch does not fit, but less of it does, and the run splits it; "host": the
            device suffices, but not the memory of the host; "no".
        geometry: How the model sees images; models with the same share a cache of pixels.
        pixels: Bytes of that cache.
    """

    model: str
    problem: str | None = None
    rows: int = 0
    layers: int = 0
    width: int = 0
    parameters: int = 0
    pools: Sequence[str] = ()
    batch: tuple[int, int] = (0, 0)
    features: int = 0
    disk_peak: int = 0
    disk_left: int = 0
    disk_kept: int = 0
    device: int | None = None
    host: int = 0
    fits: Literal["yes", "split", "host", "no"] = "no"
    geometry: str = ""
    pixels: int = 0


def plan_model(
    model: Extractor,
    data: StimulusDataModule,
    rows: int,
    machine: Machine,
    output_dir: AnyPath,
    finalize: bool = True,
    keep_store: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Plan one model on one dataset.

    Args:
        model: The extractor.
        data: The data module; it is set up when it has captions to look at.
        rows: Number of stimuli.
        machine: What it must fit.
        output_dir: Folder of the features.
        finalize: Whether .pt files are made.
        keep_store: Whether the store stays.
        overwrite: Whether what is there is replaced; otherwise a run goes on with its batches.
    """
    shape = rows, len(model.layers), model.n_dim
    row_bytes = 4 * len(model.layers) * model.n_dim
    images = data.batch_size if isinstance(data, ImageDataModule) else 1
    shard_rows = data.shard_rows or default_shard_rows(rows, images, row_bytes)
    n_pools = len(model.pools)
    store, features = store_bytes(*shape, shard_rows, n_pools), n_pools * features_bytes(*shape)
    peak = store + (features if finalize else 0)
    kept = (features if finalize else 0) + (store if keep_store or not finalize else 0)
    files, store_path = output_paths(model, data, output_dir)
    there = bytes_there([store_path, *files.values()])
    is_done = finalize and all(isinstance(file, Path) and file.exists() for file in files.values())
    on_gpu = machine.card is not None
    is_resumed = isinstance(store_path, Path) and not overwrite
    recorded = recorded_provenance(files.values(), store_path) if is_resumed else {}
    data.connect(Connection(model.preprocessing, row_bytes, on_gpu, recorded))
    forwards = {
        batch: estimate_forward(model, *batch, machine.precision, on_gpu)
        for batch in _largest_batches(model, data, rows)
    }
    batch = max(forwards, key=lambda batch: forwards[batch].peak)
    forward = forwards[batch]
    workers = data.num_workers if data.num_workers is not None else data.workers(on_gpu, 1)
    batch_bytes = batch[0] * model.input_bytes(batch[1])
    host = host_bytes(model, forward, on_gpu, n_pools * shard_rows * row_bytes, batch_bytes, workers)
    needed = device_bytes(forward) if on_gpu else host
    fits: Literal["yes", "split", "host", "no"] = "yes" if needed <= machine.memory else "no"
    if fits == "no" and on_gpu:
        one_row = estimate_forward(model, 1, batch[1], machine.precision, on_gpu)
        fits = "split" if device_bytes(one_row) <= machine.memory else "no"
    if on_gpu and fits != "no" and machine.host_memory is not None and host > machine.host_memory:
        fits = "host"
    size = model.preprocessing.get("input_size", [0])
    cache = getattr(data, "cache", "off")
    keeps_pixels = isinstance(store_path, Path) if cache == "auto" else cache != "off"
    return Plan(
        model=model.model_name,
        rows=rows,
        layers=len(model.layers),
        width=model.n_dim,
        parameters=model.num_params,
        pools=list(model.pools),
        batch=batch,
        features=features,
        disk_peak=peak,
        disk_left=0 if is_done else max(0, peak - there),
        disk_kept=max(0, kept - there),
        device=needed if on_gpu else None,
        host=host,
        fits=fits,
        geometry=str([model.preprocessing.get(key) for key in GEOMETRY]),
        pixels=rows * math.prod(size) if keeps_pixels else 0,
    )


def _largest_batches(model: Extractor, data: StimulusDataModule, rows: int) -> set[tuple[int, int]]:
    """Rows and tokens of the batches that may need the most memory: the largest, and that of the longest caption."""
    if isinstance(data, ImageDataModule):
        return {(min(data.batch_size, rows), 0)}
    assert isinstance(data, CaptionDataModule)
    if data.captions is None:
        longest = min(TOKENS_A_CAPTION, model.preprocessing["context"] or TOKENS_A_CAPTION)
        return {(max(1, min(rows, data.tokens_a_batch // longest)), longest)}
    shapes = [(len(batch), data.lengths[batch[0]]) for batch in data.plan.batches()]  # the longest comes first
    return {max(shapes, key=lambda shape: shape[0] * shape[1]), max(shapes, key=lambda shape: shape[1])}


def room(plans: Sequence[Plan]) -> tuple[int, int]:
    """What the disk must still give when the models run one after another, and when all run at once."""
    kept = peak = 0
    for plan in plans:
        peak = max(peak, kept + plan.disk_left)
        kept += plan.disk_kept
    return peak, sum(plan.disk_left for plan in plans)


def fits_disk(plans: Sequence[Plan], machine: Machine) -> bool:
    """Whether the disk has room for them one after another."""
    return machine.free_disk is None or room(plans)[0] <= machine.free_disk


def pixels_bytes(plans: Sequence[Plan]) -> int:
    """Size of the caches of pixels, one for all models that see images alike."""
    return sum({plan.geometry: plan.pixels for plan in plans}.values())
