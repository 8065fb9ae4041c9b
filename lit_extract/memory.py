"""How much memory a run needs on its device and its host, from configurations: no weights, no device.

On the device: the extractor's own forward pass, hooks and pooling included, runs on tensors that have a shape and no
numbers, while the storages that are alive are added up. Counted so are weights and buffers in the run's precision, the
batch, and every tensor that PyTorch makes for as long as it lives, in the blocks of 512 bytes that its allocator gives.
A GPU differs in its attention: fused kernels never hold the scores of tokens × tokens, where they can run; eager
attention (Gemma-2) does. Added, as they can't be seen in this way: the CUDA context with the workspaces of its
libraries, and a tenth for what the allocator can't use between blocks. Not counted: workspaces of convolutions.

On the host: the process itself, weights while they are loaded (images: in float32, cast and moved afterwards; random
ones of language models too), batches on their way, and shards on theirs. Not counted: the system's cache of files,
which gives way.

B batch, T tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lit_extract.errors import InputError, one_line
from lit_extract.modules.base import Extractor
from lit_extract.modules.weights import default_float32

BLOCK = 512
CONTEXT_BYTES = 600 * 10**6
FRAGMENTATION = 1.1


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive, and remembers the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: WeakSet[Any] = WeakSet()

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            finalize(storage, self._forget, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it makes."""
        if function is torch.ops.aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _all_places(index)], *args[2:])
        if function is torch.ops.aten.nonzero.default:
            output = torch.empty(args[0].numel(), args[0].ndim, dtype=torch.int64, device=args[0].device)
        else:
            output = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, output)
        return output


def _all_places(index: Tensor | None) -> list[Tensor | None]:
    """What a mask chooses when all of it is true: how many that is depends on numbers, which are not there."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.empty(index.numel(), dtype=torch.int64, device=index.device) for _ in index.shape]


class GPUAttention(TorchFunctionMode):
    """Attention holds what it does on a GPU: the output and a number a query; the scores where no fused kernel runs."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, attention in our way."""
        kwargs = dict(kwargs or {})
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        if _has_fused_kernel(*args[:4], **kwargs):
            query, value = args[0], args[2]
            log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
            return torch.empty(*log_sum.shape, value.shape[-1], dtype=query.dtype, device=query.device)
        return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]


def _has_fused_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    enable_gqa: bool = False,
    **_settings: Any,
) -> bool:
    """Whether flash attention runs, or the memory-efficient kernel, which also takes float32 and masks."""
    width = query.shape[-1]
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    flash = is_half and attn_mask is None and width <= 256
    efficient = not enable_gqa and width % (8 if is_half else 4) == 0
    return flash or efficient


@dataclass(frozen=True)
class Forward:
    """Bytes of one forward pass.

    Args:
        weights: Weights and buffers, in the run's precision.
        peak: The most at once, weights, batch and activations together.
    """

    weights: int
    peak: int


def estimate(model: Extractor, n_rows: int, n_tokens: int, precision: str, on_gpu: bool) -> Forward:
    """:func:`forward_bytes` of a batch as a run puts it through: on a CPU in slices.

    Raises:
        InputError: This model's can't be had.
    """
    rows = n_rows if on_gpu else min(n_rows, model.rows_a_pass_on_cpu or n_rows)
    try:
        return forward_bytes(model, rows, n_tokens, precision, on_gpu)
    except Exception as error:  # a backbone whose path depends on the numbers, say
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"the memory of {model.model_name!r} can't be estimated ({reason})") from error


def forward_bytes(model: Extractor, n_rows: int, n_tokens: int, precision: str, on_gpu: bool) -> Forward:
    """Run the extractor's forward pass without numbers.

    Args:
        model: The extractor, which stays as it is.
        n_rows: Rows of the batch.
        n_tokens: Tokens of its longest caption; images know their own.
        precision: The trainer's.
        on_gpu: Whether attention is that of a GPU.
    """
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    network = model.skeleton(dtype).eval().requires_grad_(False)
    live = LiveBytes()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _give_fake_tensors(network, partial(FakeTensor, mode, device=torch.device("cpu")))
    model = copy(model)
    model._modules = dict(model._modules)
    model.adopt(network)
    with mode, torch.no_grad(), default_float32():
        for tensor in (*network.parameters(), *network.buffers()):
            live.count(tensor)
        weights = live.now
        inputs = model.blank_inputs(n_rows, n_tokens)
        for tensor in inputs.values():
            live.count(tensor)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
        with GPUAttention() if on_gpu else nullcontext(), autocast, _no_look_at_numbers(model), live:
            model.activations(inputs)
    return Forward(weights, live.peak)


@contextmanager
def _no_look_at_numbers(model: Extractor) -> Iterator[None]:
    """Transformers looks for several texts in a row, else makes a mask; pooling for columns that need no copy."""
    if model.kind != "language":
        yield
        return
    with (
        patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None, create=True),
        patch("lit_extract.modules.language.full_columns", return_value=(0, 0)),
    ):
        yield


def _give_fake_tensors(network: nn.Module, fake: Callable[[Tensor], Tensor]) -> None:
    """Put fake tensors in the places of meta tensors; what shares one goes on sharing it."""
    made: dict[Tensor, Tensor] = {}
    for module in network.modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in places:
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    made[tensor] = fake(tensor.detach().to("meta"))
                tensors[name] = None if tensor is None else made[tensor]


# Measured on CPUs: an interpreter with torch, Lightning and transformers; a process that prepares batches.
PROCESS_BYTES, WORKER_BYTES = 700 * 10**6, 150 * 10**6
# What the host keeps of a CUDA context; not measured here.
CUDA_HOST_BYTES = 10**9
SHARDS_HELD = 4  # filling, waiting, being written, and encoded for that
BATCHES_A_WORKER = 2


def host_bytes(model: Extractor, forward: Forward, on_gpu: bool, shard: int, batch: int, workers: int) -> int:
    """The most memory on the host at once: while weights are loaded, or while the run is under way.

    Args:
        model: The extractor.
        forward: What a forward pass needs; without a GPU it is on the host.
        on_gpu: Whether there is a GPU.
        shard: Bytes of a shard, of all poolings.
        batch: Bytes of a batch.
        workers: Processes that prepare batches.
    """
    in_float32 = 4 * model.num_params
    if model.kind == "vision":
        loading = in_float32 if model.untrained else 2 * in_float32  # the checkpoint beside the model
    else:
        loading = in_float32 if model.untrained else 0  # trained ones go from the file to the device
    running = SHARDS_HELD * shard + max(1, BATCHES_A_WORKER * workers) * batch + (0 if on_gpu else forward.peak)
    return PROCESS_BYTES + workers * WORKER_BYTES + on_gpu * CUDA_HOST_BYTES + max(loading, running)


def device_bytes(forward: Forward) -> int:
    """What a GPU must have for a forward pass: with its context, and with what its allocator can't use."""
    return CONTEXT_BYTES + round(FRAGMENTATION * forward.peak)
