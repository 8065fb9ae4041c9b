"""Estimate the needs of one model on one dataset (disk, device, host) from configurations, before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal

import torch

from lit_extract.data.base import Connection, StimulusDataModule
from lit_extract.data.captions import CaptionDataModule
from lit_extract.data.images import ImageDataModule
from lit_extract.data.pixels import geometry
from lit_extract.jobs.outputs import check_pair, output_paths, recorded_provenance
from lit_extract.modules.base import Extractor
from lit_extract.modules.room import bytes_when_streamed, is_streamed
from lit_extract.planning.duration import measure_seconds_left
from lit_extract.planning.memory import SHARDS_HELD, device_bytes, estimate_forward, host_bytes
from lit_extract.planning.streaming import Pass, plan_pass
from lit_extract.storage.disk import Size, bytes_there
from lit_extract.storage.places import AnyPath, place_of
from lit_extract.storage.seen import part_seen

# Tokens of a caption if no captions are given; few captions of images have more.
TOKENS_A_CAPTION = 128
_HOST_BYTES = 64 * 10**9  # assumed host memory of a GPU that is elsewhere


@dataclass(frozen=True)
class Machine:
    """The machine that a job must fit; sizes are in bytes."""

    card: str | None  # None: the run is on the CPU
    memory: int  # of the GPU, or of the host
    precision: str
    free_disk: int | None  # None: not known, because the output goes elsewhere
    host_memory: int | None = None  # of the host of a GPU; None: not known, because the GPU is elsewhere


@dataclass(frozen=True)
class Needs:
    """The needs of one model; sizes are in bytes.

    ``fits`` is "yes"; "split": the batch does not fit, but a part of it does, and the run splits it; "streamed": two
    blocks and all that is not in blocks fit; "host": it fits the device, but not the host's memory; or "no".
    """

    model: str
    problem: str | None = None  # why it can't be estimated; then nothing else is set
    rows: int = 0
    layers: int = 0
    layer_shapes: Sequence[tuple[int, ...]] = ()  # of a row in each layer
    parameters: int = 0  # of the whole model, head included
    pools: Sequence[str] = ()
    batch: tuple[int, int] = (0, 0)  # rows and tokens of the largest batch; 0 tokens for images
    features: int = 0  # all .pt files; 0 if the run makes none
    disk_peak: int = 0  # peak: the store, and the .pt files that are made next to it
    disk_left: int = 0  # disk space still needed for that; 0 if the files exist
    disk_kept: int = 0  # the part that remains in the end
    device: int | None = None  # None on a CPU
    host: int = 0
    fits: Literal["yes", "split", "streamed", "host", "no"] = "no"
    operations: float = 0.0  # in the matrix products of a row, roughly
    seconds_left: float | None = None  # from the shards of a store that an earlier run has started
    streamed: Pass | None = None  # one pass through the blocks, if these come from disk
    checkpoint: str | None = None  # folder or file of local weights
    geometry: str = ""  # how images are prepared; models with the same geometry share a cache of pixels
    pixels: int = 0  # size of that cache
    seen: str = ""  # the part of an image that the model sees, in words


def estimate_needs(
    model: Extractor,
    data: StimulusDataModule,
    rows: int,
    machine: Machine,
    output_dir: AnyPath,
    finalize: bool | None,
    keep_store: bool,
    overwrite: bool,
    tag: str | None = None,
) -> Needs:
    """Estimate what one model on one dataset needs; the data module is set up if it has captions to read."""
    check_pair(model, data)
    finalize = model.makes_files if finalize is None else finalize
    files, store_path = output_paths(model, data, output_dir, tag)
    local = place_of(store_path).local  # no requests to a server are made
    recorded = recorded_provenance(files.values(), store_path) if local is not None and not overwrite else {}
    known = Connection(model.preprocessing, on_gpu=machine.card is not None, recorded=recorded)
    data.connect(known)
    model.take_longest(_longest(model, data))
    data.connect(replace(known, row_bytes=model.row_bytes))
    size = Size(rows, model.layer_shapes, len(model.pools), model.dtype_written)
    shard_rows = data.rows_a_shard(rows)
    store, features = size.store(shard_rows), len(model.pools) * size.file() if finalize else 0
    peak = store + features
    kept = features + (store if keep_store or not finalize else 0)
    existing = bytes_there([store_path, *files.values()])
    is_done = finalize and local is not None and all(place_of(file).exists() for file in files.values())
    cache = getattr(data, "cache", "off")
    keeps_pixels = local is not None if cache == "auto" else cache != "off"
    return Needs(
        model=model.model_name,
        rows=rows,
        layers=len(model.layers),
        layer_shapes=model.layer_shapes,
        parameters=model.num_params,
        pools=list(model.pools),
        features=features,
        disk_peak=peak,
        disk_left=0 if is_done else max(0, peak - existing),
        disk_kept=max(0, kept - existing),
        geometry=str([*geometry(model.preprocessing).values()]) if isinstance(data, ImageDataModule) else "",
        pixels=rows * math.prod(model.preprocessing.get("input_size", [0])) if keeps_pixels else 0,
        seen=part_seen(model.preprocessing),
        checkpoint=model.local_checkpoint(),
        seconds_left=None if local is None or overwrite else measure_seconds_left(local),
        **_estimate_memory(model, data, rows, shard_rows, machine),
    )


def _estimate_memory(
    model: Extractor, data: StimulusDataModule, rows: int, shard_rows: int, machine: Machine
) -> dict[str, Any]:
    """Return the ``batch``, ``device``, ``host`` and ``fits`` of what a model needs."""
    on_gpu = machine.card is not None
    dtype = torch.bfloat16 if machine.precision == "bf16-true" else torch.float32
    streamed = is_streamed(model, dtype, machine.memory)
    weights = bytes_when_streamed(model, dtype) if streamed else model.num_params * dtype.itemsize
    forwards = {
        batch: estimate_forward(model, *batch, machine.precision, on_gpu, weights)
        for batch in _largest_batches(model, data, rows)
    }
    batch, forward = max(forwards.items(), key=itemgetter(1))
    workers = data.num_workers if data.num_workers is not None else data.workers(on_gpu, 1)
    held = SHARDS_HELD * len(model.pools) * shard_rows * model.row_bytes
    one_pass = None
    if streamed:
        n_tokens = data.tokens_a_row if isinstance(data, CaptionDataModule) and data.captions else batch[1]
        one_pass = plan_pass(model, dtype, on_gpu, machine.memory, machine.host_memory or _HOST_BYTES, n_tokens)
        held += 2 * len(model.pools) * one_pass.rows * model.row_bytes
    host = host_bytes(model, forward, on_gpu, held, batch[0] * model.input_bytes(batch[1]), workers, streamed)
    needed = device_bytes(forward) if on_gpu else host
    fits = "streamed" if streamed else "yes"
    if needed > machine.memory:
        one_row = estimate_forward(model, 1, batch[1], machine.precision, on_gpu, weights)
        fits = "split" if on_gpu and device_bytes(one_row) <= machine.memory and not streamed else "no"
    if on_gpu and fits != "no" and machine.host_memory is not None and host > machine.host_memory:
        fits = "host"
    streamed_pass = one_pass if fits == "streamed" else None
    return {
        "batch": batch,
        "device": needed if on_gpu else None,
        "host": host,
        "fits": fits,
        "streamed": streamed_pass,
        "operations": 2.0 * (sum(model.block_params) or model.num_params) * model.tokens_a_row(batch[1]),
    }


def _largest_batches(model: Extractor, data: StimulusDataModule, rows: int) -> set[tuple[int, int]]:
    """Return rows and tokens of the batches that may need the most memory: the largest, and the longest caption's."""
    if isinstance(data, ImageDataModule):
        return {(min(data.batch_size, rows), 0)}
    assert isinstance(data, CaptionDataModule)
    if data.captions is None:
        longest = _longest(model, data) or TOKENS_A_CAPTION
        return {(max(1, min(rows, data.tokens_a_batch // longest)), longest)}
    shapes = [(len(batch), data.lengths[batch[0]]) for batch in data.plan.batches()]  # the longest comes first
    return {max(shapes, key=lambda shape: shape[0] * shape[1]), max(shapes, key=lambda shape: shape[1])}


def _longest(model: Extractor, data: StimulusDataModule) -> int | None:
    """Return the tokens of the longest caption; a guess if no captions are given."""
    if not isinstance(data, CaptionDataModule) or data.captions is not None:
        return data.longest
    return min(TOKENS_A_CAPTION, model.preprocessing["context"] or TOKENS_A_CAPTION)


def disk_needed(models: Sequence[Needs]) -> tuple[int, int]:
    """Return the disk space still needed if models run one after another, and if all run at once."""
    kept = peak = 0
    for needs in models:
        peak = max(peak, kept + needs.disk_left)
        kept += needs.disk_kept
    return peak, sum(needs.disk_left for needs in models)


def fits_disk(models: Sequence[Needs], machine: Machine) -> bool:
    """Return whether there is enough disk space for models that run one after another."""
    return machine.free_disk is None or disk_needed(models)[0] <= machine.free_disk


def pixels_bytes(models: Sequence[Needs]) -> int:
    """Return the size of the caches of pixels, one for all models with the same geometry."""
    return sum({needs.geometry: needs.pixels for needs in models}.values())
