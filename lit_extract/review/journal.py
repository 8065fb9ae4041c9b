"""Read decisions of a review that an earlier version started and kept in ``<captions>-review.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from lit_extract.captioning.output import sha256_of
from lit_extract.captioning.parts import MAX_LINE_VALUES, without_nul
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import Count, read_regular, validate_json
from lit_extract.review.database import hash_texts

MAX_BYTES = 128 * 2**20


class _Line(TypedDict, total=False):
    """A header, the hash of a review file that was written or read, or a decision."""

    captions_sha256: str
    file: str
    row: Count
    new: Annotated[str, AfterValidator(without_nul)]
    status: Literal["open", "accepted", "edited"]
    theirs: str  # another program's text, not yet decided


_LINE = TypeAdapter(_Line)


def journal_path(review: Path) -> Path:
    """Return the path at which earlier versions kept the decisions about a review file."""
    return review.with_suffix(".jsonl")


def read_journal(review: Path, captions: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Return the text and the status of each row that was decided with an earlier version."""
    what = f"review: {str(journal_path(review))!r}, which an earlier version wrote,"
    try:
        content = read_regular(journal_path(review), MAX_BYTES)
    except OSError as error:
        raise InputError(f"{what} can't be read: {error.strerror or one_line(error)}") from None
    last: dict[int, _Line] = {}
    hashes: set[str | None] = set()
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):  # a line torn by a crash has no end
        line = validate_json(_LINE, text, f"{what} is damaged in line {number}", MAX_LINE_VALUES)
        hashes |= {line.get("captions_sha256"), line.get("file")}
        if "row" in line:
            last[line["row"]] = line
    known = {hash_texts(captions), sha256_of(review)} <= hashes and max(last, default=0) < len(captions)
    if not known or any("theirs" in line or not {"new", "status"} <= line.keys() for line in last.values()):
        raise InputError(
            f"{what} is about other captions, or {review.name} has been changed by another program since; finish the "
            "review with that version, or move the journal away to start from the review file as it is"
        )
    return {row: (line["new"], line["status"]) for row, line in last.items()}
