"""Prompts: named ones from ``prompts.yml`` and the user's file of the same form, or any text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import expanded_path, is_printable, read_yaml, shorten, validate

DEFAULT_PROMPTS = Path(__file__).with_name("prompts.yml")


@dataclass(frozen=True)
class Prompt:
    """A question that a model is asked about each image."""

    name: str  # or the text itself, if it has no name; the column prompt of the output
    text: str
    choices: tuple[str, ...] = ()  # allowed labels of a reply; empty for free text
    sentences: int | None = None  # expected number of sentences, if known


def find_prompt(prompt: str, choices: Sequence[str] | None = None, file: str | None = None) -> Prompt:
    """Return the prompt of this name from ``file`` or the package; else a prompt with this text of several words.

    ``choices`` replaces the allowed labels of a named prompt.
    """
    known = read_prompts(file)
    if prompt in known:
        found = known[prompt]
    elif len(prompt.split()) > 1:
        found = Prompt(prompt, prompt)
    else:
        raise InputError(
            f"model.prompt: {prompt!r} is not one of {', '.join(known)}; to ask something else, give a text of "
            "several words, or add a prompt of that name to a file and give it with --model.prompts FILE"
        )
    if choices is None:
        return found
    _check_choices("model.choices", list(choices))
    return Prompt(found.name, found.text, tuple(choices), None)


def read_prompts(file: str | None = None) -> dict[str, Prompt]:
    """Return all prompts by name: from the package and from ``file``, which takes precedence."""
    known = _read(DEFAULT_PROMPTS)
    return known if file is None else {**known, **_read(expanded_path(file, "prompts"))}


def _read(path: Path) -> dict[str, Prompt]:
    what = f"model.prompts: {str(path)!r}"
    entries = read_yaml(path, what)
    if not isinstance(entries, dict):
        raise InputError(f"{what} must map names to prompts, as in {DEFAULT_PROMPTS}")
    return {name: _prompt(f"{what}: {shorten(name)}", name, entry) for name, entry in entries.items()}


def _prompt(where: str, name: str, entry: Any) -> Prompt:
    prompt = validate(_ENTRY, {"text": entry} if isinstance(entry, str) else entry, where)
    if not name.strip() or not is_printable(name):
        raise InputError(f"{where}: a name must be text without control characters")
    if "choices" in prompt:
        _check_choices(f"{where}: choices", prompt["choices"])
    return Prompt(name, prompt["text"], tuple(prompt.get("choices", ())), prompt.get("sentences"))


class _Entry(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    choices: NotRequired[list[str]]
    sentences: NotRequired[Annotated[int, Field(ge=1)]]


_ENTRY: TypeAdapter[_Entry] = TypeAdapter(_Entry)


def _check_choices(where: str, choices: Sequence[str]) -> None:
    is_plain = all(choice and choice == choice.strip() and is_printable(choice) for choice in choices)
    if len(set(choices)) < 2 or len(set(choices)) < len(choices) or not is_plain:
        shown = shorten(repr(choices), 200)
        raise InputError(f"{where}: {shown} must be two or more different labels, without surrounding blanks")
