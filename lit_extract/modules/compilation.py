"""Blocks through torch.compile, each by itself, such that numbers do not depend on what was computed before.

Blocks are alike, so what one compiles serves all. Their ``forward`` is compiled and not the modules: hooks stay
outside, come and go without a compilation, and see what they see without it.

Left to itself, torch.compile makes kernels for the sizes that happen to come first and uses them for others later; a
resumed run, which begins elsewhere, would have other last bits. Here only blank batches of fixed sizes are compiled.
What they compiled is used by all batches that it serves; any other batch is computed without.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lit_extract.errors import InputError, one_line

BACKEND: str | Callable[..., Any] = "inductor"
# As many as it takes: beyond its own limit, which models of one process share, torch.compile gives up.
_MOST_COMPILATIONS = 10_000


def check_compiler(device: torch.device) -> None:
    """See that there is what compiling for a device needs.

    Raises:
        InputError: There is no C++ compiler for a CPU, no Triton for a GPU, or torch.compile is switched off.
    """
    from torch._dynamo import config

    if config.disable:
        raise InputError("model.compile is true, but torch.compile is switched off by TORCH_COMPILE_DISABLE")
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise InputError(
                "model.compile: for a CPU it needs a C++ compiler, g++ or what CXX names, and there is none that "
                "works; install one, or leave model.compile out"
            ) from None
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise InputError(
            f"model.compile: for {device.type} it needs Triton (pip install triton) and a GPU that Triton knows; "
            "leave model.compile out"
        )


def compile_blocks(blocks: Iterable[nn.Module], dynamic: bool) -> None:
    """Have blocks compiled when they first run.

    Args:
        blocks: Each is compiled by itself, whole: what can't be compiled is an error.
        dynamic: Kernels for all sizes, else for the sizes at hand.
    """
    options: dict[str, Any] | None = None
    if BACKEND == "inductor":
        from torch._inductor import config

        # no kernel is chosen by timing several, where that changes numbers; not known to torch 2.9
        options = {"deterministic": True} if hasattr(config, "deterministic") else None
    for block in blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=dynamic, backend=BACKEND, options=options)


def compile_for(compute: Callable[[], object], serve: Callable[[], object], name: str) -> None:
    """Run blank inputs through compiled blocks, which compiles them.

    Args:
        compute: Runs those to compile for.
        serve: Runs others, for which nothing further may be compiled.
        name: The model.

    Raises:
        InputError: The blocks can't be compiled, or what was compiled serves its own sizes only.
    """
    from torch._dynamo import config

    most = {"recompile_limit": _MOST_COMPILATIONS, "accumulated_recompile_limit": _MOST_COMPILATIONS}
    try:
        with config.patch(most):
            compute()
        with torch.compiler.set_stance("fail_on_recompile"):
            serve()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).rpartition("Output:\n")[2]  # of a C++ compiler, behind a page of its command
        raise InputError(
            f"model.compile: the blocks of {name!r} can't be compiled here: {one_line(RuntimeError(reason))}; leave it "
            "out, and pass --overwrite if a store was begun with it"
        ) from error
