"""The rows of a review: their texts, the decisions about them, and what undo takes back. No disk here."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

OPEN, ACCEPTED, EDITED = "open", "accepted", "edited"
STATUSES = (OPEN, ACCEPTED, EDITED)

Action = Literal["start", "decide", "undo"]


class Decision(NamedTuple):
    """A change to a row of captions; one row of the database."""

    revision: int  # counted from 1
    row: int  # of the captions, counted from 0
    action: Action  # start: the decision was already in the review file when the review started
    text: str | None  # the caption afterwards; None for undo


class ConflictError(Exception):
    """A row, or the decision to undo, is no longer what the page has shown."""

    def __init__(self, row: int | None) -> None:
        super().__init__(row)
        self.row = row


class Rows:
    """All rows, and the history of decisions about them."""

    def __init__(self, originals: Sequence[str]) -> None:
        self.originals, self.texts = list(originals), list(originals)
        self.statuses = [OPEN] * len(self.originals)
        self.revision = 0  # of the last decision
        self.revisions: dict[int, int] = {}  # of the last decision about a row
        self._undoable: dict[int, int] = {}  # revision -> row, in their order
        self._before: dict[int, list[tuple[int, str, str]]] = {}  # row -> revision, text and status before it

    @property
    def last_decision(self) -> tuple[int, int] | None:
        """The revision and the row of the decision that undo takes back next."""
        return next(reversed(self._undoable.items()), None)

    def decide(self, row: int, text: str, seen: int) -> Decision | None:
        """Return a person's decision, which :meth:`apply` carries out; None if it would change nothing.

        ``seen`` is the revision of the row that the person has seen.
        """
        if self.revisions.get(row, 0) != seen:
            raise ConflictError(row)
        if (text, self._status(row, text)) == (self.texts[row], self.statuses[row]):
            return None
        return Decision(self.revision + 1, row, "decide", text)

    def undo(self, revision: int) -> Decision:
        """Return the decision that takes another one back, unless there is a later one about the same row."""
        row = self._undoable.get(revision)
        if row is None or self._before[row][-1][0] != revision:
            raise ConflictError(row)
        return Decision(self.revision + 1, row, "undo", None)

    def apply(self, decision: Decision) -> None:
        """Carry out a decision; raise ValueError if it can't follow the earlier ones."""
        revision, row, action, text = decision
        undoes = action == "undo"
        if revision != self.revision + 1 or row >= len(self.texts) or undoes != (text is None):
            raise ValueError("it does not follow from the earlier decisions")
        before = self._before.setdefault(row, [])
        if text is None:
            if not before:
                raise ValueError("there is nothing to undo")
            undone, self.texts[row], self.statuses[row] = before.pop()
            del self._undoable[undone]
        else:
            if action == "decide":
                before.append((revision, self.texts[row], self.statuses[row]))
                self._undoable[revision] = row
            elif before:
                raise ValueError("the row has been decided already")
            self.texts[row], self.statuses[row] = text, self._status(row, text)
        self.revision = self.revisions[row] = revision

    def _status(self, row: int, text: str) -> str:
        if not text:
            return OPEN
        return ACCEPTED if text == self.originals[row] else EDITED
