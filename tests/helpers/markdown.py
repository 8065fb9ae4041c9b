"""What the pages of the documentation show: commands, Python and YAML, as a reader would copy them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(page for where in ("*.md", "docs/**/*.md", "derivatives/**/*.md") for page in REPOSITORY.glob(where))

_FENCED = re.compile(r"^```(?P<marks>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?m)^ *(?:\$ |\w+=\S+ |cd .* && )?(?:\S*/)?(?:lit-extract|torchrun .*-m lit_extract) (.+)$")
_INLINE = re.compile(r"`lit-extract ([\w-]+ [^`…]*--[^`…]*)`")
_NAMED = re.compile(r"`([\w./-]+\.ya?ml)`[^`]*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block: ``python``, or ``python notest`` when it is shown and not run."""

    marks: str
    code: str
    line: int  # of its first line of code, from 1
    file: str | None = None  # the YAML file that the words before it name last


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCED.finditer(text):
        named = _NAMED.search(text[: match.start()].rpartition("```")[2])
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["marks"].strip(), match["code"], line, named[1] if named else None))
    return found


def commands_of(page: Path) -> list[list[str]]:
    """Return the arguments of each ``lit-extract …``, as a shell would split them, up to a ``>`` or ``|``."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = []
    for line in _COMMAND.findall(text) + _INLINE.findall(text):
        words = shlex.split(line, comments=True)
        ends = [words.index(sign) for sign in (">", "|", "&&") if sign in words]
        commands.append(words[: min(ends, default=None)])
    return commands


def run_page(page: Path) -> dict[str, Any]:
    """Run the blocks marked ``python`` in the current folder; return what they defined."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.marks == "python":
            code = "\n" * (block.line - 1) + block.code  # tracebacks have the lines of the page
            exec(compile(code, str(page), "exec"), namespace)
    return namespace
