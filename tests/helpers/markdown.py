"""The Python of a page in docs/, taken out of it and run as a reader would: in order, in one namespace."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCED = re.compile(r"^```(?P<marks>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: ``python``, or ``python notest`` when it is shown and not run."""

    marks: str
    code: str
    line: int  # of its first line of code, from 1


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["marks"].strip(), match["code"], text.count("\n", 0, match.start("code")) + 1)
        for match in _FENCED.finditer(text)
    ]


def run_page(page: Path) -> dict[str, Any]:
    """Run the blocks marked ``python`` in the current folder; return what they defined."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.marks == "python":
            code = "\n" * (block.line - 1) + block.code  # tracebacks have the lines of the page
            exec(compile(code, str(page), "exec"), namespace)
    return namespace
