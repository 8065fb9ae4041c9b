"""Pickles of torch.save with opcodes changed, removed, repeated and exchanged, and with hostile ones put in."""

import pickletools
import struct
from typing import Any

from hypothesis import strategies as st


def opcodes(pickled: bytes) -> list[bytes]:
    """Each opcode with its argument."""
    places = [place for _, _, place in pickletools.genops(pickled)]
    return [pickled[first:last] for first, last in zip(places, [*places[1:], len(pickled)], strict=True)]


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


NESTED_KEYS = b"}" + b")" + b"\x85" * 50_000 + b"Ns"  # a tuple in a tuple in a tuple …, whose hash is wanted
BOMB = b"]q\xf0" + b"".join(b"](" + b"h\xf0" * 10 + b"eq\xf0" for _ in range(20))  # ten times ten times …
ITSELF = b"]q\xf0h\xf0a"
HOSTILE = [
    NESTED_KEYS,
    BOMB,
    ITSELF,
    b"cos\nsystem\n" + text("touch hacked") + b"\x85R",
    b"cbuiltins\neval\n" + text("1") + b"\x85R",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nFloatStorage\n)R",
    b"ccollections\nOrderedDict\n",
    b"ccollections\nOrderedDict\n)R",
    b"ccollections\nOrderedDict\n]\x85R",
    b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    b"ctorch._utils\n_rebuild_parameter\n)R",
    b"}K\x01Ns",
    b"}" + text("a") + b"N" + text("a") + b"Ns",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x8a\x08" + struct.pack("<q", 2**40),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"X\xff\xff\xff\xff",
    text("\ud800"),
    text("a\0b\x1b[31m"),
    b"G\x7f\xf8\0\0\0\0\0\0",
    b"(" * 1000,
    b"]" * 1000,
    b"N" * 1000,
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
    b"h\xff",
    b"B\4\0\0\0abcd",
    b"\x80\4",
    b"\x8f",
    b"0",
    b"2",
    b".",
    b"\xff",
]


@st.composite
def changed_pickles(draw: Any, pickled: bytes) -> bytes:
    """The pickle with one to three of its opcodes changed."""
    steps = opcodes(pickled)
    for _ in range(draw(st.integers(1, 3))):
        place, other = (draw(st.integers(0, len(steps) - 1)) for _ in range(2))
        kind = draw(st.sampled_from(["remove", "repeat", "exchange", "copy", "insert", "replace", "byte"]))
        if kind == "remove" and len(steps) > 1:
            del steps[place]
        elif kind == "repeat":
            steps.insert(place, steps[place])
        elif kind == "exchange":
            steps[place], steps[other] = steps[other], steps[place]
        elif kind == "copy":
            steps[place] = steps[other]
        elif kind == "insert":
            steps.insert(place, draw(st.sampled_from(HOSTILE)))
        elif kind == "replace":
            steps[place] = draw(st.sampled_from(HOSTILE))
        elif kind == "byte":
            step = bytearray(steps[place])
            step[draw(st.integers(0, len(step) - 1))] = draw(st.integers(0, 255))
            steps[place] = bytes(step)
    return b"".join(steps)
