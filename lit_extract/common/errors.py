"""Errors that the user can fix, and the format of messages."""

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 4000  # characters
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # a terminal obeys some; others can't be encoded


class InputError(ValueError):
    """An error that the user can fix: the setting, its value, and what is allowed.

    The command line prints it as one message without a traceback. Any other exception is a defect of ours and keeps its
    traceback. The message is safe for a terminal, whatever a file put into it.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


class NothingLeft(Exception):  # noqa: N818 (not an error)
    """There is nothing to compute, or rank zero reports why."""


def printable(text: str) -> str:
    """Return text on one line, with escapes for control characters and halves of surrogate pairs."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def name_some(items: list[str], limit: int = 5) -> str:
    """Return the first few of many items, with the count of all."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with the words that follow it: ``one`` after 1, else ``many``, by default with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def line_of(row: int) -> str:
    """Return the place of a row of a table, counted from 0, as a spreadsheet numbers it: the header is line 1."""
    return f"line {row + 2}"


def nearest(name: str, known: Iterable[str], limit: int = 1) -> str:
    """Return the end of an error's sentence, with the known names most similar to a wrong one; "" if there are none.

    Upper and lower case count as the same.
    """
    names = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), names, n=limit, cutoff=0.6)
    return f"; did you mean {name_some([names[one] for one in close])}?" if close else ""


def must_be_one_of(value: object, allowed: Sequence[str], or_else: str = "") -> str:
    """Return the end of an error's sentence about a value that is not allowed, with the nearest one that is."""
    hint = nearest(str(value), allowed) if re.fullmatch(r"[\w. -]+", str(value)) else ""  # not for a list
    return f"{shown_as(value)} must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}{or_else}{hint}"


def shown_as(value: object) -> str:
    """Return a value as it is shown in errors: text in quotes, also if it is the text of a list or a mapping."""
    return value if isinstance(value, str) and value[:1] in ("[", "{") else repr(value)


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Return an error of another library or program for use in our messages: one line, printable, short."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def wrong_setting(error: BaseException) -> InputError | None:
    """Return what is wrong with a command line, from jsonargparse's error, which lists all that it tried.

    The result is our own error if a class refused its settings; else the innermost reason, after the names of the
    settings that lead to it. None if there is neither: then the error is a defect of ours.
    """
    names: list[str] = []
    types = ""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, InputError):
            return reason
        key = re.match(r'Parser key "(.+?)":(?:[^\[]*Subtypes: \[(.+)\]\n)?', str(reason))
        if key is not None and key[1] not in names:
            names.append(key[1])
            types = key[2] or ""
        innermost, reason = reason, reason.__cause__ or reason.__context__
    if not isinstance(error, ArgumentError):
        return None
    return InputError(f"{'.'.join(names)}{': ' if names else ''}{_in_words(one_line(innermost), types)}")


_TYPES = {
    "int": "a whole number (int)",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping, such as '{name: value}'",
}


def _in_words(reason: str, types: str) -> str:
    """Rephrase jsonargparse's message about a value of the wrong type, with all that is allowed.

    ``types`` are those of the setting if it has several, of which the message names one.
    """
    found = re.fullmatch(r"Expected a (typing\.Literal\[.+\]|<class '\w+'>)\. Got value: (.*)", reason)
    if found is None:
        return reason
    value, types = found[2], f"{types}, {found[1]}"
    classes = [*dict.fromkeys(re.findall(r"<class '(?:jsonargparse\.typing\.)?(\w+)'>", types))]
    choices = re.findall(r"'([^']*)'", " ".join(re.findall(r"Literal\[(.+?)\]", types)))
    kinds = [_TYPES[name] for name in classes if name in _TYPES]
    if choices:
        choices += [name for name in classes if f"typing.{name}'" in types]  # patterns, such as gridK
        choices = [*dict.fromkeys(choices)]
        kinds += [f"a list of these, such as '[{', '.join(choices[:2])}]'"] if "list[" in types else []
        return must_be_one_of(value, choices, "".join(f", or {kind}" for kind in kinds))
    if "list[" in types and "list" not in classes:
        kinds.append("a list")
    if kinds == ["text"] and value[:1] not in ("[", "{"):
        also = " (also read as that: yes, no, on, off)" if value in ("True", "False") else ""
        value = value.lower() if also else value
        return f'{value}{also} must be text: write it in quotes, as in "{value}"'
    return f"{shown_as(value)} must be {', or '.join(kinds)}" if kinds else reason
