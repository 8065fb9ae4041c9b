"""Forward hooks that exist for one forward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from greenlet import getcurrent
from torch import Tensor, nn


class _LastLayerReached(Exception):  # noqa: N818  (control flow, not an error)
    """End of the forward pass; :func:`capture` catches it."""


@contextmanager
def capture(
    layers: Mapping[str, nn.Module],
    pool: Callable[[Tensor], Tensor],
    last: str | None = None,
    entrances: Mapping[str, nn.Module] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Collect ``pool(output)`` of named modules during the forward pass in the ``with`` block.

    Concurrent passes in other coroutines are not collected. Pooling runs inside the hook, so the tokens of only one
    layer are in memory. Hooks are removed at the end of the block, whatever happens in it.

    Args:
        layers: Module of each layer to capture, by the layer's name.
        pool: Function from a layer's output (B, T, D) to the kept tensor.
        last: The layer after which the forward pass stops, leaving the ``with`` block; later layers, the final norm and
            the head are then not computed.
        entrances: Modules whose input is captured instead, such as the first block for the embeddings.

    Yields:
        A dict that fills up with the pooled outputs, by layer name.
    """
    pooled: dict[str, Tensor] = {}
    own = getcurrent()

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if getcurrent() is not own:
            return
        pooled[name] = pool(output[0] if isinstance(output, tuple | list) else output)
        if name == last:
            raise _LastLayerReached

    def keep_input(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if getcurrent() is own:
            pooled[name] = pool(args[0] if args else kwargs["hidden_states"])

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in layers.items()]
    for name, module in (entrances or {}).items():
        handles.append(module.register_forward_pre_hook(partial(keep_input, name), with_kwargs=True))
    try:
        yield pooled
    except _LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
