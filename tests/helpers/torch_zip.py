"""Archives as torch.save writes them, made by hand, so that each part of them can be wrong. Small ones only."""

import copy
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st


@dataclass
class Member:
    """A record and its entry in the directory. ``header`` and ``entry`` override fields of theirs."""

    name: bytes
    content: bytes
    header: dict[str, Any] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""  # between the record before and this one
    padding: int = 20
    descriptor: bytes | None = None  # in the place of its own
    is_listed: bool = True


@dataclass
class Archive:
    """Members in the order of the file, and what is around them. ``end`` and ``wide_end`` override fields of theirs."""

    members: list[Member]
    first: bytes = b""
    last: bytes = b""
    end: dict[str, Any] = field(default_factory=dict)
    wide_end: dict[str, Any] = field(default_factory=dict)
    locator: dict[str, Any] = field(default_factory=dict)
    has_wide_end: bool = True
    comment: bytes = b""
    order: list[int] | None = None  # of the directory


def _pack(form: str, fields: dict[str, Any], changes: dict[str, Any]) -> bytes:
    """The fields as the form says; changes are cut to the width of their field."""
    widths = dict(zip(fields, form.replace("<4s", "s"), strict=True))
    known = {key: changes[key] % 256 ** struct.calcsize("<" + widths[key]) for key in changes if key in fields}
    return struct.pack(form, *{**fields, **known}.values())


def read(content: bytes) -> Archive:
    """The members of a good archive."""
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return Archive([Member(info.filename.encode(), archive.read(info)) for info in archive.infolist()])


def write(archive: Archive) -> bytes:
    """The bytes of it."""
    out, entries = bytearray(archive.first), []
    for member in archive.members:
        out += member.before
        at, size, crc = len(out), len(member.content), zlib.crc32(member.content)
        flags = 0x808 if size else 0x800
        name = member.header.get("name", member.name)
        padding = (b"FB" + struct.pack("<H", member.padding - 4)).ljust(member.padding, b"Z")
        fields = {
            "mark": b"PK\3\4",
            "needed": 0,
            "flags": flags,
            "method": 0,
            "time": 0,
            "date": 0,
            "crc": 0,
            "packed": 0,
            "size": 0,
            "name_length": len(name),
            "extra_length": len(padding),
        }
        out += _pack("<4sHHHHHIIIHH", fields, member.header) + name + padding
        out += member.content
        own = struct.pack("<4sIII", b"PK\7\x08", crc, size, size) if size else b""
        out += own if member.descriptor is None else member.descriptor
        name, extra = member.entry.get("name", member.name), member.entry.get("extra", b"")
        fields = {
            "mark": b"PK\1\2",
            "made": 0,
            "needed": 0,
            "flags": flags,
            "method": 0,
            "time": 0,
            "date": 0,
            "crc": crc,
            "packed": size,
            "size": size,
            "name_length": len(name),
            "extra_length": len(extra),
            "comment_length": 0,
            "disk": 0,
            "internal": 0,
            "external": 0,
            "offset": at,
        }
        entry = _pack("<4sHHHHHHIIIHHHHHII", fields, member.entry) + name + extra
        entries += [entry] if member.is_listed else []
    begin = len(out)
    for place in archive.order or range(len(entries)):
        out += entries[place]
    length, at, n = len(out) - begin, len(out), len(entries)
    if archive.has_wide_end:
        fields = {
            "mark": b"PK\6\6",
            "size": 44,
            "made": 0x31E,
            "needed": 45,
            "disk": 0,
            "first_disk": 0,
            "here": n,
            "count": n,
            "length": length,
            "begin": begin,
        }
        out += _pack("<4sQHHIIQQQQ", fields, archive.wide_end)
        out += _pack("<4sIQI", {"mark": b"PK\6\7", "disk": 0, "at": at, "disks": 1}, archive.locator)
    fields = {
        "mark": b"PK\5\6",
        "disk": 0,
        "first_disk": 0,
        "here": n,
        "count": n,
        "length": length,
        "begin": begin,
        "comment": len(archive.comment),
    }
    out += _pack("<4sHHHHIIH", fields, archive.end) + archive.comment
    return bytes(out + archive.last)


_SMALL = st.integers(0, 70) | st.sampled_from([2**15, 2**16 - 1])
_NUMBERS = _SMALL | st.sampled_from([2**31, 2**32 - 1])
_FIELDS = ["needed", "flags", "method", "time", "date", "crc", "packed", "size", "name_length", "extra_length"]
_OF_ENTRIES = ["made", "comment_length", "disk", "internal", "external", "offset"]
_TWO_BYTES = {"needed", "flags", "method", "time", "date", "name_length", "extra_length", "made", "comment_length",
              "disk", "internal"}  # fmt: skip


@st.composite
def changed_archives(draw: Any, good: Archive, decoys: dict[bytes, bytes]) -> bytes:
    """The archive with one to three faults of structure.

    Args:
        draw: Hypothesis'.
        good: What to change.
        decoys: Other content of some members, which another reader might find.
    """
    archive = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        member = draw(st.sampled_from(archive.members))
        draw(st.sampled_from(_FAULTS))(draw, archive, member, decoys)
    return write(archive)


def _rename(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    del archive, decoys
    top, _, rest = member.name.partition(b"/")
    names = [b"other/" + rest, top.upper() + b"/" + rest, top + b"/" + rest.upper(), rest, top + b"//" + rest, b"",
             top + b"/" + rest + b"\0x", top + b"/../" + rest, member.name + b"/", top + b"/constants.pkl",
             top + b"/code/x.py", top + b"/data/00", b"\xff" + rest, member.name.replace(b"/", b"\\")]  # fmt: skip
    name = draw(st.sampled_from(names))
    where = draw(st.sampled_from(["both", "header", "entry"]))
    if where == "both":
        member.name = name
    else:
        getattr(member, where)["name"] = name


def _repeat(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    """Another of the same name, or nearly, with other content."""
    top, _, rest = member.name.partition(b"/")
    name = draw(st.sampled_from([member.name, top + b"/" + rest.upper(), top.upper() + b"/" + rest, b"other/" + rest]))
    content = decoys.get(rest, member.content)
    place = draw(st.sampled_from([0, len(archive.members)]))
    archive.members.insert(place, Member(name, content, is_listed=draw(st.booleans())))


def _set_field(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    del archive, decoys
    where = draw(st.sampled_from(["header", "entry"]))
    name = draw(st.sampled_from(_FIELDS + (_OF_ENTRIES if where == "entry" else [])))
    getattr(member, where)[name] = draw(_SMALL if name in _TWO_BYTES else _NUMBERS)


def _point_elsewhere(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    """Entries of 64 bits that say something else than those of 32."""
    del archive, decoys
    numbers = draw(st.lists(_NUMBERS, min_size=1, max_size=3))
    member.entry["extra"] = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    for name in draw(st.lists(st.sampled_from(["size", "packed", "offset"]), max_size=3)):
        member.entry[name] = 2**32 - 1


def _compress(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    del draw, archive, decoys
    size, crc = len(member.content), zlib.crc32(member.content)
    member.content = zlib.compress(member.content)[2:-4]
    member.header |= {"method": 8}
    member.entry |= {"method": 8, "size": size, "crc": crc}
    member.descriptor = struct.pack("<4sIII", b"PK\7\x08", crc, len(member.content), size)


def _move_around(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    del decoys
    kind = draw(
        st.sampled_from(["order", "first", "last", "comment", "before", "padding", "descriptor", "drop", "unlist"])
    )
    extra = draw(st.sampled_from([b"\0", b"PK\5\6" + bytes(18), bytes(100), b"PK\3\4"]))
    if kind == "order" and all(each.is_listed for each in archive.members):
        archive.order = draw(st.permutations(range(len(archive.members))))
    elif kind in ("first", "last", "comment"):
        setattr(archive, kind, extra)
    elif kind == "before":
        member.before = extra
    elif kind == "padding":
        member.padding = draw(st.integers(4, 200))
    elif kind == "descriptor":
        member.descriptor = draw(st.sampled_from([b"", bytes(16), bytes(24)]))
    elif kind == "drop" and len(archive.members) > 1:
        archive.members.remove(member)
        archive.order = None
    elif kind == "unlist":
        member.is_listed, archive.order = False, None


def _set_end(draw: Any, archive: Archive, member: Member, decoys: dict[bytes, bytes]) -> None:
    del member, decoys
    where = draw(st.sampled_from(["end", "wide_end", "locator", "none"]))
    if where == "none":
        archive.has_wide_end = False
        return
    name = draw(
        st.sampled_from(["disk", "first_disk", "here", "count", "length", "begin", "at", "disks", "size", "comment"])
    )
    getattr(archive, where)[name] = draw(_SMALL if where == "end" else _NUMBERS | st.sampled_from([2**40, 2**63]))


_FAULTS = [_rename, _repeat, _set_field, _point_elsewhere, _compress, _move_around, _set_end]
