"""What all readers of files share: regular files only, limits, strict forms."""

import os
import socket

import pytest
from guard import RIGHT, fuzzed, outcome
from hypothesis import given
from hypothesis import strategies as st
from mutations import HOSTILE, as_json, damaged_bytes, deep
from pydantic import TypeAdapter

from lit_extract.errors import InputError
from lit_extract.untrusted import check_name, plain_values, read_regular, validate_json

FORM = TypeAdapter(dict[str, list[int]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@fuzzed(300)
@given(damaged_bytes(b'{"a": [1, 2, 3], "b": []}') | HOSTILE.map(as_json))
def test_a_record_is_what_its_form_says_or_refused(folder, content):
    def is_right(value):
        return all(type(key) is str and all(type(n) is int for n in numbers) for key, numbers in value.items())

    outcome("JSON record", folder, lambda: validate_json(FORM, content, "record"), is_right)


def test_deep_json_is_refused(folder):
    assert outcome("JSON record", folder, lambda: validate_json(FORM, b"[" * 10**6, "record"), lambda _: False) != RIGHT


@fuzzed(300)
@given(st.text() | HOSTILE.filter(lambda value: isinstance(value, str)))
def test_a_name_stays_in_its_folder(folder, name):
    def is_right(name):
        return (folder / name).parent == folder and len(os.fsencode(folder / name)) < 4096 and "\0" not in name

    outcome("name", folder, lambda: check_name(name, "name"), is_right)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket"))
    for place in (
        tmp_path / "pipe",
        tmp_path / "socket",
        tmp_path,
        tmp_path / "a\0b",
        tmp_path / "\ud800",
        "/dev/zero",
    ):
        with pytest.raises(OSError):  # noqa: PT011 (its number differs)
            read_regular(place, 100)
    bound.close()


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_regular(tmp_path / "large", 100)


def test_plain_values_are_finite_and_plain():
    assert plain_values({"a": [1, "b", None, 0.5, True]}) == {"a": [1, "b", None, 0.5, True]}
    itself: list = []
    itself.append(itself)
    wide: list = ["x"]
    for _ in range(40):  # 2^40 when it is spelled out
        wide = [wide, wide]
    for value in (itself, wide, deep(100), {1: 2}, {"a": object()}, b"x", {"a": (1,)}):
        with pytest.raises(ValueError, match="it "):
            plain_values(value)


def test_the_guard_sees_what_must_not_happen(tmp_path):
    other = tmp_path.with_name("other")
    for act in (
        lambda: os.system("true"),
        lambda: other.write_text("x"),
        lambda: socket.create_connection(("127.0.0.1", 9)),
    ):

        def offend(act=act):
            try:
                act()
            except OSError:
                raise InputError("refused") from None

        with pytest.raises(AssertionError):
            outcome("guard", tmp_path, offend, lambda _: True)
    with pytest.raises(AssertionError, match="KeyError"):
        outcome("guard", tmp_path, lambda: {}["x"], lambda _: True)
    with pytest.raises(AssertionError, match="MB"):
        outcome("guard", tmp_path, lambda: bytes(b"x" * (600 * 10**6)) and None, lambda _: True)
