"""Read untrusted files: within limits, and checked completely before anything uses them.

Each format is described once, where it is read, as a type that pydantic checks strictly (no "1" for 1, no 1 for True).
This module has what the formats share.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import yaml
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError

from lit_extract.common.errors import UNPRINTABLE, InputError, one_line

# Limits far above those of real files; they keep a hostile file from filling the memory.
MAX_RECORD_BYTES = 64 * 2**20  # of a JSON record that is read as a whole
MAX_JSON_VALUES = 8_000_000  # in a JSON record, each 32 bytes of memory before it is checked
MAX_SHOWN = 2**20  # bytes of a record whose values may appear in errors: pydantic copies them
MAX_DEVIATIONS = 10_000  # more are counted, but none is named
MAX_CONFIG_BYTES = 2**20  # of a YAML file
MAX_CONFIG_VALUES = 50_000  # in a YAML file: PyYAML needs 30 microseconds for each
MAX_CONFIG_NUMBER = 100  # characters of a number: YAML 1.1 reads 1:1:1:… in base 60, which may take hours
MAX_NAME_BYTES = 255  # of a file or folder name, on all file systems of Linux
MAX_PATH_BYTES = 4095

T = TypeVar("T")

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes; a named pipe or a device may block, or never end."""
    return os.fdopen(_descriptor(path, os.O_RDONLY), "rb")


def open_own(path: Path, flags: int) -> int:
    """Open a file of our own, such as a lock or a cache, and return its descriptor; links are not followed."""
    return _descriptor(path, flags | os.O_NOFOLLOW)


def _descriptor(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"not a possible name ({error})", str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return descriptor


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file; raise OSError if it has more than ``limit``."""
    try:
        content = _read(path, limit + 1)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        content = _read(path, limit + 1)  # another machine has just replaced the file that was open
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes, the most that is read of such a file", str(path))
    return content


def _read(path: Path, n_bytes: int) -> bytes:
    with open_regular(path) as file:
        return file.read(n_bytes)


def check_not_empty(path: str, setting: str) -> str:
    """Return a path unless it is empty, which would be the working directory."""
    if not path.strip():
        raise InputError(f"{setting}: {path!r} is empty; give a path (. is the working directory), or leave it out")
    return path


def absolute_path(path: str | Path, setting: str) -> Path:
    """Return an absolute path, with ``~`` and ``~name`` replaced by the home of a user."""
    return expanded_path(path, setting).absolute()


def expanded_path(path: str | Path, setting: str) -> Path:
    """Return a path with ``~`` and ``~name`` replaced by the home of a user."""
    check_not_empty(str(path), setting)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{setting}: {str(path)!r}: there is no such user; write ./~ for a name that begins with ~"
        ) from None


def validate(form: "TypeAdapter[T]", value: object, what: str) -> T:
    """Return a value if it strictly has its form; else raise InputError with ``what`` and the first few deviations."""
    try:
        return form.validate_python(value, strict=True)
    except ValidationError as error:
        raise InputError(f"{what}: {_deviations(error)}") from None


def validate_json(form: "TypeAdapter[T]", content: bytes | str, what: str, max_values: int = MAX_JSON_VALUES) -> T:
    """Parse JSON (UTF-8) and check its form strictly, like :func:`validate`.

    The number of values is limited, because pydantic copies them for some of its errors.
    """
    if content.count("," if isinstance(content, str) else b",") > max_values:  # type: ignore[arg-type]
        raise InputError(f"{what}: it has more than {max_values:,} values, the most that are read")
    try:
        return form.validate_json(content, strict=True)
    except ValidationError as error:
        raise InputError(f"{what}: {_deviations(error, len(content) <= MAX_SHOWN)}") from None


def _deviations(error: ValidationError, with_values: bool = True, limit: int = 3) -> str:
    if error.error_count() > MAX_DEVIATIONS:
        return f"{error.error_count():,} of its values are not what they must be"
    found = error.errors(include_url=False, include_context=False, include_input=with_values)
    shown = [_deviation(".".join(map(str, one["loc"])), one["msg"], one.get("input", {})) for one in found[:limit]]
    more = f"; … ({len(found)} in all)" if len(found) > limit else ""
    return "; ".join(shown) + more


def _deviation(place: str, message: str, value: object) -> str:
    found = "" if isinstance(value, dict | list | bytes) else f", not {shorten(repr(value))}"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{shorten(place) + ': ' if place else ''}{message[:1].lower()}{message[1:]}{found}"


def shorten(value: object, limit: int = 80) -> str:
    """Return a value as text that is safe to print: on one line, without control characters, and short."""
    text = value if isinstance(value, str) and is_printable(value) else ascii(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_printable(text: str) -> bool:
    """Return whether text has neither control characters, which a terminal obeys, nor halves of surrogate pairs."""
    return UNPRINTABLE.search(text) is None


def is_path_like(text: str) -> bool:
    """Return whether text may be a path, or an id, which may be a path: printable, and not too long."""
    return is_printable(text) and len(text.encode()) <= MAX_PATH_BYTES


def _printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("must have no control characters and no halves of surrogate pairs")
    return text


def _one_name(text: str) -> str:
    if text in ("", ".", "..") or re.search(r"[/\\]", text) or len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"must be a plain name of at most {MAX_NAME_BYTES} bytes, without / and \\")
    return text


Text = Annotated[str, StringConstraints(max_length=100_000), AfterValidator(_printable)]  # one line, safe to print
ShortText = Annotated[Text, StringConstraints(min_length=1, max_length=500)]
OneName = Annotated[Text, AfterValidator(_one_name)]  # of a file or folder in another
Count = Annotated[int, Field(ge=0, lt=2**63)]


def check_name(name: str, setting: str) -> str:
    """Return ``name`` if it is a plain name of a file or folder; paths are refused."""
    return validate(_ONE_NAME, name, setting)


_ONE_NAME: TypeAdapter[str] = TypeAdapter(OneName)


def plain_values(value: Any, max_depth: int = 50, max_items: int = 10_000_000) -> Any:
    """Return a value if it consists of dicts with text keys, lists, numbers, text, booleans and None; else ValueError.

    Its depth and its number of values are limited; an object that occurs twice counts twice.
    """
    left = max_items
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        left -= 1
        if depth > max_depth:
            raise ValueError(f"it is nested more than {max_depth} deep")
        if isinstance(item, dict):
            for key in item:
                if type(key) is not str:
                    raise ValueError(f"it has a key {shorten(key)}, which is not text")
            todo += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            todo += [(inner, depth + 1) for inner in item]
        elif item is not None and type(item) not in (bool, int, float, str):
            raise ValueError(f"it has a {type(item).__name__}, which is not a plain value")
        if left < len(todo):
            raise ValueError(f"it has more than {max_items:,} values")
    return value


def read_yaml(path: Path, what: str) -> Any:
    """Return the plain values of a YAML file; errors call it ``what``."""
    try:
        return parse_yaml(read_regular(path, MAX_CONFIG_BYTES), what)
    except OSError as error:
        raise InputError(f"{what} can't be read: {error.strerror or one_line(error)}") from None


def parse_yaml(content: bytes | str, what: str) -> Any:
    """Return the plain values of YAML (UTF-8), see :func:`plain_values`; None if it is empty.

    Tags, which name types, are refused; so are aliases, by which a few lines make billions of values or an endless one,
    and duplicate keys, of which one would be ignored.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        check_yaml(text)
        return plain_values(yaml.load(text, Loader=_OneOfEachKey))  # noqa: S506 (a SafeLoader)
    except Exception as error:  # PyYAML raises almost anything on text that only looks like a date or a number
        raise InputError(f"{what} can't be read: {shorten(one_line(error), 400)}") from None


def check_yaml(content: str, max_depth: int = 50) -> None:
    """Raise ValueError for YAML that can't be constructed safely, while parsing, before anything is constructed."""
    depth = 0
    event: Any
    for count, event in enumerate(yaml.parse(content, Loader=yaml.SafeLoader)):
        where = f"line {event.start_mark.line + 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if count > MAX_CONFIG_VALUES or depth > max_depth:
            raise ValueError(f"{where}: more than {MAX_CONFIG_VALUES:,} values, or nested more than {max_depth} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{where}: it has an alias, *{event.anchor}; write out what it stands for")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: it has a tag, {event.tag}; put text that looks like something else in quotes")
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode()
            if "\0" in event.value:
                raise ValueError(f"{where}: it has a NUL character")
            if event.implicit[0] and len(event.value) > MAX_CONFIG_NUMBER and _NUMBER.fullmatch(event.value):
                raise ValueError(f"{where}: it has a number of {len(event.value)} characters")


_NUMBER = re.compile(r"[-+0-9a-fx_:.]+", re.IGNORECASE)


class _OneOfEachKey(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} occurs twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)
