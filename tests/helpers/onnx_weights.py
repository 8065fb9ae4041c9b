"""The weights in an ONNX file, read from its bytes (Protocol Buffers) without the package onnx."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# numbers of fields, and of a type, in onnx.proto
GRAPH, NODES, TENSORS = 7, 1, 5
INPUTS, NODE_NAME, OPERATOR = 1, 3, 4
SHAPE, DTYPE, TENSOR_NAME, RAW = 1, 2, 8, 9
FLOAT32 = 1


def read_onnx_weights(file: Path) -> dict[str, np.ndarray]:
    """Return the float32 weights by the names that they had in the model that was exported.

    The export transposes the weight of a linear layer and calls it by a number. Here it is as in the model, with the
    name of the node that multiplies with it: ``/encoder/mlp/MatMul`` multiplies with ``encoder.mlp.weight``.
    """
    model = dict(_fields(memoryview(file.read_bytes())))
    graph = [*_fields(model[GRAPH])]
    weights = {}
    for tensor in ([*_fields(value)] for number, value in graph if number == TENSORS):
        known = dict(tensor)
        if known[DTYPE] == FLOAT32:
            shape = [value for number, value in tensor if number == SHAPE]
            weights[_text(known[TENSOR_NAME])] = np.frombuffer(known[RAW], dtype="<f4").reshape(shape)
    for node in ([*_fields(value)] for number, value in graph if number == NODES):
        inputs = [_text(value) for number, value in node if number == INPUTS]
        known = dict(node)
        if _text(known[OPERATOR]) == "MatMul" and inputs[1] in weights:
            layer = _text(known[NODE_NAME]).strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = weights.pop(inputs[1]).T
    return weights


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field, an integer or bytes."""
    at = 0
    while at < len(message):
        key, at = _integer(message, at)
        number, form = key >> 3, key & 7
        if form == 0:
            value, at = _integer(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(form)
        if size is None:
            size, at = _integer(message, at)
        yield number, message[at : at + size]
        at += size


def _integer(message: memoryview, at: int) -> tuple[int, int]:
    """Return the integer at this place, of 7 bits a byte, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
