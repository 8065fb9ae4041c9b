"""Read plain values from a pickle of torch.save without executing anything: a few opcodes only, within limits.

Opcodes: https://docs.python.org/3/library/pickletools.html; torch.save writes protocol 2.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from lit_extract.common.untrusted import shorten

# Far above what features of a million stimuli need; they keep a hostile file from filling the memory.
MAX_PICKLE_BYTES = 64 * 2**20
MAX_VALUES = 3_000_000  # opcodes, and values; values and text count as often as they are referred to
MAX_CONTAINERS = 100_000
MAX_TEXT_BYTES = 2**20
MAX_DEPTH = 50

_SCALARS = frozenset({int, float, str, bool, type(None)})


def load_plain(content: bytes, persistent: Callable[[Any], Any], names: Mapping[str, Any], leaf: type) -> Any:
    """Return the content of a pickle.

    Args:
        content: The pickle, of at most ``MAX_PICKLE_BYTES``.
        persistent: Function that returns the object of a persistent id.
        names: Objects for the names of modules, such as ``collections.OrderedDict``; functions are called.
        leaf: Type that may be in the content besides plain values.

    Raises:
        ValueError: It holds something else, is damaged, or is too large.
    """
    try:
        value = _Machine(content, persistent, names).run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise ValueError("its pickle is damaged") from None
    _check_plain(value, leaf)
    return value


def _check_plain(value: Any, leaf: type) -> None:
    """Check that a value is made of plain values and leaves only, and is small, also if all of it is printed."""
    values, text, todo = MAX_VALUES, MAX_PICKLE_BYTES, [(value, 0)]
    while todo:
        item, depth = todo.pop()
        if type(item) not in (dict, list, tuple):
            if type(item) is not leaf and type(item) not in _SCALARS:
                raise ValueError("it holds something that is not a plain value")
            continue
        inner = [*item, *item.values()] if type(item) is dict else item
        types = set(map(type, inner))
        values -= 1 + len(inner)
        text -= sum(len(one) for one in inner if type(one) is str) if str in types else 0
        if values < 0 or text < 0 or depth >= MAX_DEPTH:
            raise ValueError(
                f"it holds more than {MAX_VALUES:,} values or {MAX_PICKLE_BYTES:,} characters, or is nested more than "
                f"{MAX_DEPTH} deep"
            )
        if not types <= _SCALARS:
            todo += [(value, depth + 1) for value in inner if type(value) not in _SCALARS]


class _Machine:
    """Runs the opcodes. Damage raises IndexError, KeyError, struct.error or UnicodeDecodeError."""

    def __init__(self, content: bytes, persistent: Callable[[Any], Any], names: Mapping[str, Any]) -> None:
        self.content, self.persistent, self.names = content, persistent, names
        self.at = 2
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below a mark
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def run(self) -> Any:
        content, steps = self.content, _STEPS
        if content[:2] != b"\x80\x02":
            raise ValueError("it is not a pickle of protocol 2")
        for _ in range(MAX_VALUES):
            opcode = content[self.at]
            self.at += 1
            if opcode == _STOP:
                if self.outer or len(self.stack) != 1 or self.at != len(content):
                    raise ValueError("its pickle is damaged")
                return self.stack[0]
            if opcode not in steps:
                raise ValueError(f"it holds something that is not a plain value (opcode {opcode})")
            steps[opcode](self)
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")

    def number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self.content, self.at)
        self.at += form.size
        return number

    def bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.content):
            raise IndexError
        return self.content[self.at - size : self.at]

    def push_text(self) -> None:
        size = self.number(_UINT4)
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"it holds a text of {size:,} bytes; at most {MAX_TEXT_BYTES:,} are possible")
        self.stack.append(self.bytes(size).decode())

    def push_long(self) -> None:
        self.stack.append(int.from_bytes(self.bytes(self.number(_UINT1)), "little", signed=True))

    def push_container(self, container: list[Any] | dict[str, Any] | tuple[Any, ...]) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise ValueError(f"it holds more than {MAX_CONTAINERS:,} lists, tuples and dicts")
        self.stack.append(container)

    def push_tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise IndexError
        del self.stack[-size:]
        self.push_container(items)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle is damaged")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in keys):
            raise ValueError("it holds a dict with keys that are not text")
        before = len(target)
        target.update(zip(keys, items[1::2], strict=True))
        if len(target) != before + len(keys):
            raise ValueError("it holds a dict with a key twice")

    def push_global(self) -> None:
        end = self.content.find(b"\n", self.content.find(b"\n", self.at) + 1)
        if end < self.at:
            raise IndexError
        name = self.bytes(end - self.at).decode().replace("\n", ".")
        self.at += 1
        if name not in self.names:
            raise ValueError(f"it holds {shorten(name)}, which is not a plain value")
        self.stack.append(self.names[name])

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not callable(called) or type(arguments) is not tuple:
            raise ValueError("its pickle is damaged")
        self.stack.append(called(*arguments))


_UINT1, _UINT2, _UINT4 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
_INT4, _FLOAT = struct.Struct("<i"), struct.Struct(">d")
_STOP = ord(".")


_STEPS: Mapping[int, Callable[[_Machine], None]] = {
    ord("N"): lambda machine: machine.stack.append(None),
    0x88: lambda machine: machine.stack.append(True),
    0x89: lambda machine: machine.stack.append(False),
    ord("K"): lambda machine: machine.stack.append(machine.number(_UINT1)),
    ord("M"): lambda machine: machine.stack.append(machine.number(_UINT2)),
    ord("J"): lambda machine: machine.stack.append(machine.number(_INT4)),
    ord("G"): lambda machine: machine.stack.append(machine.number(_FLOAT)),
    0x8A: _Machine.push_long,
    ord("X"): _Machine.push_text,
    ord("q"): lambda machine: machine.memo.__setitem__(machine.number(_UINT1), machine.stack[-1]),
    ord("r"): lambda machine: machine.memo.__setitem__(machine.number(_UINT4), machine.stack[-1]),
    ord("h"): lambda machine: machine.stack.append(machine.memo[machine.number(_UINT1)]),
    ord("j"): lambda machine: machine.stack.append(machine.memo[machine.number(_UINT4)]),
    ord("("): _Machine.mark,
    ord("]"): lambda machine: machine.push_container([]),
    ord("}"): lambda machine: machine.push_container({}),
    ord(")"): lambda machine: machine.push_container(()),
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    ord("t"): lambda machine: machine.push_container(tuple(machine.pop_to_mark())),
    ord("a"): lambda machine: machine.append([machine.stack.pop()]),
    ord("e"): lambda machine: machine.append(machine.pop_to_mark()),
    ord("s"): lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    ord("c"): _Machine.push_global,
    ord("Q"): lambda machine: machine.stack.append(machine.persistent(machine.stack.pop())),
    ord("R"): _Machine.reduce,
}
