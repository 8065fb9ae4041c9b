"""A model whose weights stay on disk: the place of each of its tensors.

Transformers renames the tensors of a checkpoint, and rearranges some, such as the weights of experts. So Transformers
loads the model from stand-ins, which need no memory: a tensor that is still a stand-in afterwards is unchanged in the
checkpoint. Rearranged and random tensors are written to a file without a name.
"""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import FileIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.streaming import OnDisk, StreamedBlocks

# Makes a model from a state dict, in a data type, on a device; also returns the missing keys.
Load = Callable[[Mapping[str, Tensor], torch.dtype, str], tuple[Any, dict[str, Any]]]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
ALIGNED = 64  # bytes, the alignment of torch on a CPU


class _Unnamed(FileIO):
    """A file that is closed, and so deleted, with the last reference to it."""

    def __del__(self) -> None:
        self.close()


class ScratchFile:
    """Disk space for tensors, in a file without a name that is deleted when the process ends, in any way.

    Args:
        room: Bytes that are reserved on the disk at once.
        limit: Bytes that may be used; bytes beyond ``room`` are allocated when they are written.

    Raises:
        InputError: The disk is full.
    """

    def __init__(self, room: int, limit: int) -> None:
        self._used, limit = 0, max(room, limit, ALIGNED)
        folder = tempfile.gettempdir()
        try:
            descriptor, path = tempfile.mkstemp(prefix="lit-extract-", dir=folder)
            self.file = _Unnamed(descriptor, "r+b")
            try:
                if room and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, room)
                os.truncate(descriptor, limit)
                self._storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=limit)
            finally:
                os.unlink(path)  # noqa: PTH108
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"model.stream: {as_size(room)} of weights can't be kept in {folder} during the run: "
                f"{one_line(error)}; set the environment variable TMPDIR to a folder on a disk with free space"
            ) from error

    def keep(self, tensor: Tensor, copy: bool = True) -> Tensor:
        """Return a tensor like this one in the file, with its numbers if ``copy`` is true."""
        first = -(-self._used // ALIGNED) * ALIGNED
        self._used = first + tensor.nbytes
        assert self._used <= self._storage.nbytes(), "more weights than the model has"
        kept = torch.empty(0, dtype=tensor.dtype)
        kept.set_(self._storage, first // tensor.itemsize, tensor.shape)  # type: ignore[call-overload]
        return kept.copy_(tensor) if copy else kept

    def place_of(self, tensor: Tensor, wanted: torch.dtype) -> OnDisk | None:
        """Return the place of a tensor in the file; None if it is not there."""
        if tensor.is_meta or tensor.untyped_storage().data_ptr() != self._storage.data_ptr():
            return None
        offset = int(tensor.storage_offset()) * tensor.itemsize
        return OnDisk(self.file, offset, tuple(tensor.shape), tensor.dtype, wanted)

    @contextmanager
    def parameters_kept(self, copy: bool = True, but: Collection[int] = ()) -> Iterator[None]:
        """Put the parameters that modules get in the ``with`` block into the file.

        Parameters without memory, or at one of the addresses in ``but``, stay as they are.
        """

        def keep(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
            if parameter is None or parameter.is_meta or parameter.data_ptr() in but:
                return None
            if self.place_of(parameter, parameter.dtype) is not None:
                return None
            kept = nn.Parameter(self.keep(parameter.data, copy), requires_grad=parameter.requires_grad)
            kept.__dict__.update(parameter.__dict__)
            return kept

        handle = register_module_parameter_registration_hook(keep)  # type: ignore[arg-type]
        try:
            yield
        finally:
            handle.remove()

    def places_of(self, model: nn.Module, dtype: torch.dtype) -> dict[str, OnDisk]:
        """Return the places of the model's tensors in the file, by name; in the model they have ``dtype``."""
        found = {name: self.place_of(tensor, dtype) for name, tensor in model.state_dict().items()}
        return {name: place for name, place in found.items() if place is not None}


def read_headers(files: Sequence[str]) -> dict[str, OnDisk]:
    """Return the places of the tensors in safetensors files, by their names.

    Raises:
        InputError: A file is damaged, or has a data type that can't be streamed.
    """
    from safetensors import safe_open

    places: dict[str, OnDisk] = {}
    for path in files:
        try:
            with safe_open(path, "pt"):  # checks the header, also against the size of the file
                pass
            with open(path, "rb") as file:  # noqa: PTH123
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
        except Exception as error:  # raised by the disk and the format
            raise InputError(f"model.checkpoint: {path} can't be read as safetensors: {one_line(error)}") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if (dtype := _DTYPES.get(entry["dtype"])) is None:
                raise InputError(f"model.stream: {path} has {name} of type {entry['dtype']}, which can't be streamed")
            places[name] = OnDisk(path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), dtype, dtype)
    return places


def load_on_disk(
    checkpoint: Mapping[str, OnDisk], load: Load, dtype: torch.dtype
) -> tuple[Any, dict[str, OnDisk], dict[str, Any]]:
    """Load a model as for a run in ``dtype``, but leave its weights on disk.

    Returns:
        The model, without the numbers of its parameters and persistent buffers; their places, by name; and the names
        missing from the ``checkpoint``.
    """
    without_numbers = {name: torch.empty(at.shape, dtype=at.dtype, device="meta") for name, at in checkpoint.items()}
    skeleton, info = load(without_numbers, dtype, "meta")
    wanted = {name: tensor.dtype for name, tensor in skeleton.state_dict().items()}
    limit = 2 * sum(4 * tensor.numel() + ALIGNED for tensor in skeleton.state_dict().values())

    stand_ins = {name: _stand_in(at, torch.float32) for name, at in checkpoint.items()}
    origins = {tensor.data_ptr(): name for name, tensor in stand_ins.items()}
    scratch = ScratchFile(0, limit)  # only used for random parameters
    with scratch.parameters_kept(copy=False, but=origins):
        model, _ = load(stand_ins, torch.float32, "cpu")
    unchanged = {
        name: origins[tensor.data_ptr()] for name, tensor in model.state_dict().items() if tensor.data_ptr() in origins
    }
    random = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if rearranged := wanted.keys() - unchanged.keys() - random:
        model, scratch = _rearrange(checkpoint, load, {*unchanged.values()}, rearranged, wanted)
    places = {name: replace(checkpoint[origin], wanted=wanted[name]) for name, origin in unchanged.items()}
    for name, tensor in model.state_dict().items():
        if name not in places:
            place = scratch.place_of(tensor, wanted[name]) or scratch.place_of(scratch.keep(tensor), wanted[name])
            assert place is not None
            places[name] = place
    dtypes = {name: buffer.dtype for name, buffer in skeleton.named_buffers()}
    for name, buffer in model.named_buffers():
        if name not in places:  # computed, such as rotary frequencies
            buffer.data = buffer.data.to(dtypes[name])
    return model, places, info


def _rearrange(
    checkpoint: Mapping[str, OnDisk],
    load: Load,
    unchanged: Collection[str],
    rearranged: Collection[str],
    wanted: Mapping[str, torch.dtype],
) -> tuple[Any, ScratchFile]:
    """Load a model, with the rearranged tensors of the checkpoint in a scratch file."""
    from safetensors import safe_open

    sources = {name: at for name, at in checkpoint.items() if name not in unchanged}
    dtypes = {at.dtype for at in sources.values() if at.dtype.is_floating_point}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32 if dtypes else torch.bfloat16
    skeleton, _ = load(
        {name: torch.empty(at.shape, dtype=at.dtype, device="meta") for name, at in checkpoint.items()}, dtype, "meta"
    )
    sizes = {name: tensor.nbytes + ALIGNED for name, tensor in skeleton.state_dict().items()}
    scratch = ScratchFile(sum(sizes[name] for name in rearranged), 2 * sum(sizes.values()))
    stand_ins = {name: _stand_in(at, dtype) for name, at in checkpoint.items() if name in unchanged}
    with ExitStack() as opened:
        paths = {at.file for at in sources.values()}
        files = {path: opened.enter_context(safe_open(path, "pt")) for path in paths}
        tensors = {name: files[at.file].get_tensor(name) for name, at in sources.items()}  # mapped, not read
        with scratch.parameters_kept(but={tensor.data_ptr() for tensor in stand_ins.values()}):
            model, _ = load({**tensors, **stand_ins}, dtype, "cpu")
    return model, scratch


def stream_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], places: Mapping[str, OnDisk], device: torch.device
) -> StreamedBlocks:
    """Put a model on a device, except for the weights of its blocks, which are streamed from disk."""
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in places}
    homes: dict[int, set[int]] = {id(tensor): set() for tensor in tensors.values()}  # blocks that contain each tensor
    for k, block in enumerate(blocks):
        for tensor in (*block.parameters(), *block.buffers()):
            homes.setdefault(id(tensor), set()).add(k)
    weights: list[list[tuple[Tensor, OnDisk]]] = [[] for _ in blocks]
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in tensors.items()}.values():  # tied tensors once
        if len(homes[id(tensor)]) == 1:
            weights[homes[id(tensor)].pop()].append((tensor, places[name]))
        else:
            tensor.data = places[name].read(device)
    streamed = StreamedBlocks(blocks, weights, device)
    model.to(device)
    return streamed


def _stand_in(at: OnDisk, dtype: torch.dtype) -> Tensor:
    """Return a tensor with memory for a single number, shared by all of its places."""
    return torch.zeros((), dtype=dtype if at.dtype.is_floating_point else at.dtype).expand(at.shape)
