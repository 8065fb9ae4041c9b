"""The footer of a Parquet file, which describes its content: a struct in Thrift's compact protocol.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

pyarrow could read it, but some damaged footers (about one in a thousand) end the process when pyarrow reads the size of
a column.
"""

import struct
from typing import Any, TypeAlias

MAGIC = b"PAR1"
MAX_DEPTH = 20  # of nested structs and lists; Parquet has nine
MAX_VALUES = 2_000_000  # in total; a column has about 20 in each row group

Struct: TypeAlias = dict[int, Any]  # value by field number

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)


def footer_of(content: bytes) -> Struct:
    """Return the footer of a Parquet file; raise ValueError if it is damaged, IndexError if it ends too early."""
    if len(content) < 12 or content[:4] != MAGIC or content[-4:] != MAGIC:
        raise ValueError("it is not a Parquet file, or only the beginning of one")
    (size,) = struct.unpack("<I", content[-8:-4])
    if size > len(content) - 12:
        raise ValueError("it is only the end of a Parquet file")
    return _Reader(content[-8 - size : -8]).struct(0)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.left = data, 0, MAX_VALUES

    def struct(self, depth: int) -> Struct:
        """Read fields until the end of the struct."""
        found: Struct = {}
        number = 0
        while header := self.byte():
            number = number + (header >> 4) if header >> 4 else self.integer()
            kind = header & 15
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth + 1)
        return found

    def value(self, kind: int, depth: int) -> Any:
        """Read a value; booleans are only read here outside of struct fields."""
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its footer has more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise ValueError("its footer is nested too deeply")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self.byte()
        if kind in (_I16, _I32, _I64):
            return self.integer()
        if kind in (_DOUBLE, _UUID, _BINARY):
            return self.bytes({_DOUBLE: 8, _UUID: 16}.get(kind) or self.varint())
        if kind in (_LIST, _SET):
            header = self.byte()
            n = self.varint() if header >> 4 == 15 else header >> 4
            return [self.value(header & 15, depth + 1) for _ in range(n)]
        if kind == _MAP:
            n = self.varint()
            kinds = self.byte() if n else 0
            return [(self.value(kinds >> 4, depth + 1), self.value(kinds & 15, depth + 1)) for _ in range(n)]
        if kind == _STRUCT:
            return self.struct(depth)
        raise ValueError("its footer is damaged")

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def bytes(self, n: int) -> bytes:
        self.place += n
        if self.place > len(self.data):
            raise ValueError("its footer ends too early")
        return self.data[self.place - n : self.place]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("its footer has a number of more than 64 bits")

    def integer(self) -> int:
        number = self.varint()
        return (number >> 1) ^ -(number & 1)
