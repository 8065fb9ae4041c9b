"""What all readers of files share: regular files only, limits, strict forms."""

import os
import socket

import pytest
import yaml
from helpers.guard import OTHER, RIGHT, counts, fuzzed, outcome
from helpers.mutations import HOSTILE, as_json, damaged_bytes, deep
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import check_name, plain_values, read_regular, read_yaml, validate_json

pytestmark = pytest.mark.slow

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
    with pytest.raises(AssertionError, match="wrong"):
        outcome("guard", tmp_path, lambda: 1, lambda _: False)
    assert counts.pop(("guard", OTHER)) == 6


YAML = b"""# names
a:
  text: Is it there?
  choices: ["yes", no_, 3]
  n: 0.5
b: |
  line
  line
c: [null, true, {d: e}]
"""


@fuzzed(300)
@given(damaged_bytes(YAML) | st.text().map(str.encode) | HOSTILE.map(as_json))
def test_yaml_is_plain_values_or_refused(folder, content):
    (folder / "x.yml").write_bytes(content)

    def is_right(value):
        return value == yaml.safe_load(content) or value != value  # nan

    outcome("YAML", folder, lambda: read_yaml(folder / "x.yml", "config"), is_right)


BILLIONS = "a: &a [x]\n" + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{f'*{chr(97 + k)}, ' * 9}]\n" for k in range(20))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff", "utf-8"),
        (b"a: &x [*x]", "alias"),
        (BILLIONS.encode(), "alias"),
        (b"[" * 10**6, "deep"),
        (b"{a: " * 10**5, "deep"),
        (b"- a\n" * 200_000, "50,000 values"),
        (b"a: 1" + b":1" * 400_000, "800001 characters"),
        (b"a: " + b"9" * 5000, "5000 characters"),
        (b"a: !!python/object/apply:os.system [id]", "tag"),
        (b'a: !!int "1:1"', "tag"),
        (b"a: 2020-01-01", "date"),
        (b"a: 2020-13-01", "month"),
        (b"a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
        (b"no: 1", "which is not text"),
        (b"1: 1", "which is not text"),
        (b"? [a]\n: b", "unhashable"),
        (b'a: "\\ud800"', "surrogates"),
        (b"a: \x1b[31m", "special characters"),
        (b"a: b\n---\nc: d", "single document"),
        (b"a: b: c", "line 1"),
        (b" " * (2**20 + 1), "1,048,576 bytes"),
    ],
)
def test_yaml_beyond_plain_values_is_refused(tmp_path, content, message):
    (tmp_path / "x.yml").write_bytes(content)
    assert outcome("YAML", tmp_path, lambda: read_yaml(tmp_path / "x.yml", "config"), lambda _: False) != RIGHT
    with pytest.raises(InputError, match=rf"(?s)^config .*{message}"):
        read_yaml(tmp_path / "x.yml", "config")


def test_yaml_is_read_from_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "named pipe"), (tmp_path, "folder"), (tmp_path / "none", "No such file")):
        with pytest.raises(InputError, match=message):
            read_yaml(path, "config")
    (tmp_path / "empty").touch()
    assert read_yaml(tmp_path / "empty", "config") is None
