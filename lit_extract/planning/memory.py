"""Estimate in closed form, from the sizes of a model, the memory that a run needs on its device and its host.

A forward pass holds the weights in the run's precision, the batch, and the activations of one block, most of them in
its MLP. ``benchmarks/memory.py`` compares this with measured memory. Not counted: workspaces of libraries, and the
system's cache of files, which gives way to programs.
"""

from lit_extract.modules.base import Extractor

# A GPU's context with the workspaces of its libraries; and a tenth for memory that the allocator can't use.
CONTEXT_BYTES = 600 * 10**6
FRAGMENTATION = 1.1

# Measured on CPUs: an interpreter with torch, Lightning and transformers; a worker process, which prepares batches.
PROCESS_BYTES, WORKER_BYTES = 700 * 10**6, 150 * 10**6
# Host memory of a CUDA context; not measured here.
CUDA_HOST_BYTES = 10**9
SHARDS_HELD = 4  # filling, waiting, being written, and being encoded
BATCHES_A_WORKER = 2


def estimate_forward(
    model: Extractor, n_rows: int, n_tokens: int, precision: str, on_gpu: bool, weights: int | None = None
) -> int:
    """Estimate the peak bytes, weights included, while a batch goes through a model; on a CPU, in slices.

    The longest caption has ``n_tokens``; for images, the model knows their number. A streamed model holds only some
    ``weights``.
    """
    if weights is None:
        weights = model.num_params * (2 if precision == "bf16-true" else 4)
    rows = min(n_rows, model.rows_a_pass or (None if on_gpu else model.rows_a_pass_on_cpu) or n_rows)
    pooled = 2 * 4 * n_rows * len(model.pools) * model.n_numbers  # by layer, and stacked
    activations = rows * model.numbers_a_row(n_tokens) * (4 if precision == "32-true" else 2)
    inputs = n_rows * model.input_bytes(n_tokens)
    return weights + inputs + activations + pooled + model.constant_bytes


def host_bytes(
    model: Extractor, forward: int, on_gpu: bool, held: int, batch: int, workers: int, streamed: bool = False
) -> int:
    """Estimate the peak memory on the host, while weights are loaded or during the run.

    ``held`` is the bytes of results that wait to be written, ``batch`` those of a batch; ``workers`` processes prepare
    batches. For a ``streamed`` model, two blocks are on their way to a GPU.
    """
    copies = 0 if streamed else 1 if model.untrained else model.copies_while_loading
    loading = copies * 4 * model.num_params
    on_the_way = 2 * 4 * max(model.block_params) if streamed and on_gpu else 0
    running = held + on_the_way + max(1, BATCHES_A_WORKER * workers) * batch + (0 if on_gpu else forward)
    return PROCESS_BYTES + workers * WORKER_BYTES + on_gpu * CUDA_HOST_BYTES + max(loading, running)


def device_bytes(forward: int) -> int:
    """Estimate the GPU memory for a forward pass, with the context and what the allocator can't use."""
    return CONTEXT_BYTES + round(FRAGMENTATION * forward)
