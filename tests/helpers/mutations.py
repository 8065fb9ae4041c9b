"""Strategies of hypothesis that damage a good file: its bytes, or the values in it."""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

NAMES = ["", ".", "..", "../x", "../../x.pt", "/etc/passwd", "/dev/zero", "a/b", "a\\b", "a\0b", "\ud800", "x" * 300,
         "~", "$HOME", "s3://bucket/x", "file:///etc/passwd", "hf-hub:org/model", "http://127.0.0.1/x", "-rf",
         "__import__('os').system('id')", "\x1b[31mred", "<script>alert(1)</script>",
         "{}", "%s", "  ", "é", "\u202e"]  # fmt: skip
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2,
    2**31,
    2**40,
    2**63 - 1,
    2**63,
    2**70,
    -(2**63) - 1,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
]


def deep(depth: int) -> Any:
    """A list in a list in a list …"""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NUMBERS),
    st.sampled_from([None, True, False, [], {}, [[]], {"a": {}}, [None], [1, "a"], {"": 1}, deep(60)]),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.lists(st.integers() | st.text(max_size=3), max_size=4),
)


@st.composite
def damaged_bytes(draw: Callable, content: bytes) -> bytes:
    """The content with flipped bits, cut, or with parts removed, repeated, zeroed, exchanged or made up."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        n = len(data)
        first, second = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        short = min(second, first + draw(st.sampled_from([1, 2, 4, 8, 64])))
        kind = draw(st.sampled_from(["flip", "cut", "remove", "repeat", "zero", "insert", "set", "exchange", "append"]))
        if kind == "flip" and first < n:
            data[first] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[first:]
        elif kind == "remove":
            del data[first:short]
        elif kind == "repeat":
            data[first:first] = data[first:short]
        elif kind == "zero":
            data[first:short] = bytes(short - first)
        elif kind == "insert":
            data[first:first] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "set" and first < n:
            data[first] = draw(st.integers(0, 255))
        elif kind == "exchange":
            size = min(short - first, n - second)
            data[first : first + size], data[second : second + size] = (
                data[second : second + size],
                data[first : first + size],
            )
        elif kind == "append":
            data += draw(st.binary(min_size=1, max_size=64))
    return bytes(data)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to each value inside a structure of dicts and lists."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def changed_values(draw: Callable, value: Any, hostile: st.SearchStrategy = HOSTILE) -> Any:
    """The structure with one to three of its values replaced, removed, renamed, repeated or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(value)
        if not ways:
            return draw(hostile)
        way = draw(st.sampled_from(ways))
        holder = value
        for key in way[:-1]:
            holder = holder[key]
        key = way[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "exchange", "repeat"]))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(hostile))  # a sampled list is the same object each time
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(NAMES))] = holder.pop(key)
        elif kind == "exchange":
            other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            holder[key], holder[other] = holder[other], holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
    return value


def as_json(value: Any) -> bytes:
    """JSON, also of what JSON can't have: NaN, halves of surrogate pairs."""
    return json.dumps(value).encode()
