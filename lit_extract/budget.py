"""How many tokens a batch of captions may have: as many as the free memory takes, while that makes a run faster.

A batch that does not fit is split (``modules/base.py``), after a pass that was for nothing.
"""

from bisect import bisect_left
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lit_extract.data.plan import TOKENS_A_BATCH
from lit_extract.errors import InputError
from lit_extract.host import host_memory
from lit_extract.memory import FRAGMENTATION, estimate
from lit_extract.modules.base import Extractor
from lit_extract.ranks import say

SMALLEST = 1024
LARGEST_ON_CPU = 2048  # the activations of more fill the caches: 8192 tokens take 1.0 to 1.5 times as long for each
LARGEST = 32768  # with so many tokens every GPU has all hands full: more of them take more memory and no less time
SHARE = 0.8  # of the free memory; the rest is for what no estimate sees

# On a CPU, beside the weights twice: that is plainly enough for captions of these lengths, and nothing is estimated.
PLENTY, SHORT = 8 * 10**9, 512


def choose_token_budget(model: Extractor, longest: int, precision: str, free: int, on_gpu: bool) -> int:
    """The largest power of two whose batches fit, by an estimate of the forward pass over the longest captions.

    Args:
        model: The extractor.
        longest: Tokens of the longest caption.
        precision: The trainer's.
        free: Bytes that weights, batches and activations may take together; see :func:`free_memory`.
        on_gpu: Whether the device is a GPU.

    Returns:
        Tokens, at least :data:`SMALLEST`, also when nothing fits.

    Raises:
        InputError: The memory of this model can't be estimated.
    """
    if not on_gpu and longest <= SHORT and free >= 2 * 4 * model.num_params + PLENTY:
        return LARGEST_ON_CPU

    def is_too_large(budget: int) -> bool:
        # The same number of tokens in shorter captions needs less for attention, and little more for what is pooled.
        forward = estimate(model, max(1, budget // longest), longest, precision, on_gpu)
        return (FRAGMENTATION if on_gpu else 1) * forward.peak > SHARE * free

    largest = LARGEST if on_gpu else LARGEST_ON_CPU
    if not is_too_large(largest):
        return largest
    budgets = [1 << k for k in range(SMALLEST.bit_length() - 1, largest.bit_length() - 1)]
    return budgets[max(1, bisect_left(budgets, True, key=is_too_large)) - 1]


def settle_token_budget(model: Extractor, trainer: Trainer, longest: int) -> int:
    """:func:`choose_token_budget` for the device of a run, before weights are on it; says what was chosen."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    free = free_memory(device) // (1 if on_gpu else trainer.num_devices)
    try:
        budget = choose_token_budget(model, longest, str(trainer.precision), free, on_gpu)
    except InputError as error:
        budget = TOKENS_A_BATCH
        say(f"{error}; batches of up to {budget} tokens")
    else:
        say(f"batches of up to {budget} tokens")
    return budget


def free_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of the host, that this process may still take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps of an earlier job of this process
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return min(int(fields["MemAvailable"].split()[0]) * 1024, host_memory())
    return host_memory()
