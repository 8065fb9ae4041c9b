"""The rows of a review: what each says now, what was decided about it, and what undo takes back. No disk here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

OPEN, ACCEPTED, EDITED = "open", "accepted", "edited"
STATUSES = (OPEN, ACCEPTED, EDITED)
DECISIONS = ("accept", "edit")


class Entry(NamedTuple):
    """Something that happened to a row; a line of the journal.

    Args:
        revision: Number of the entry, counted from 1.
        row: Row of the captions, counted from 0.
        stimulus: Its id, for those who read the journal.
        action: ``accept`` or ``edit``; ``undo`` of one of these; ``elsewhere``, another program changed the text in
            the review file; ``clash``, it did so after a decision, which stands until a person has looked.
        old: The text before.
        new: The text behind.
        was: The status before.
        status: The status behind.
        time: When, UTC.
        undoes: Revision of the decision that is undone.
        theirs: The other program's text that a person has yet to look at.
    """

    revision: int
    row: int
    stimulus: str
    action: str
    old: str
    new: str
    was: str
    status: str
    time: str
    undoes: int | None = None
    theirs: str | None = None


class ConflictError(Exception):
    """A row, or what would be undone, is no longer what the page has seen.

    Args:
        row: Which row.
    """

    def __init__(self, row: int | None) -> None:
        super().__init__(row)
        self.row = row


class Rows:
    """All rows, and how they came to be so.

    Args:
        stimuli: Ids.
        originals: The captions as they were checked.
        texts: The captions as they are in the review file.
        statuses: ``open``, ``accepted`` or ``edited``.
    """

    def __init__(
        self, stimuli: Sequence[str], originals: Sequence[str], texts: Sequence[str], statuses: Sequence[str]
    ) -> None:
        self.stimuli, self.originals = list(stimuli), list(originals)
        self.texts, self.statuses = list(texts), list(statuses)
        self.entries: list[Entry] = []
        self.revisions: dict[int, int] = {}  # of the last entry about a row
        self.theirs: dict[int, str] = {}
        self._standing: dict[int, Entry] = {}  # decisions that can be undone, by revision, in their order
        self._standing_of: dict[int, list[int]] = {}  # their revisions, by row
        self._theirs_before: dict[int, str | None] = {}

    def __len__(self) -> int:
        return len(self.originals)

    @property
    def revision(self) -> int:
        """Of the last entry; 0 before there is one."""
        return len(self.entries)

    @property
    def last_decision(self) -> Entry | None:
        """What undo takes back next."""
        return next(reversed(self._standing.values()), None)

    def apply(self, entry: Entry) -> None:
        """Let an entry happen."""
        row = entry.row
        if entry.action in DECISIONS:
            self._standing[entry.revision] = entry
            self._standing_of.setdefault(row, []).append(entry.revision)
            self._theirs_before[entry.revision] = self.theirs.get(row)
        elif entry.undoes is not None:
            del self._standing[self._standing_of[row].pop()]
        else:  # the decisions before it were about another text
            for revision in self._standing_of.pop(row, []):
                del self._standing[revision]
        self.entries.append(entry)
        self.texts[row], self.statuses[row], self.revisions[row] = entry.new, entry.status, entry.revision
        self.theirs.pop(row, None)
        if entry.theirs is not None:
            self.theirs[row] = entry.theirs

    def decide(self, row: int, text: str | None, seen: int) -> Entry | None:
        """The entry of a person's decision; None: nothing would change.

        Args:
            row: About which row.
            text: What its caption should be; None: what it is.
            seen: Revision of the row that the person has seen.

        Raises:
            ConflictError: The row is not as it was seen.
        """
        if self.revisions.get(row, 0) != seen:
            raise ConflictError(row)
        text = self.texts[row] if text is None else text
        status = ACCEPTED if text == self.originals[row] else EDITED
        if (text, status) == (self.texts[row], self.statuses[row]) and row not in self.theirs:
            return None
        return self._entry(row, "accept" if text == self.texts[row] else "edit", text, status)

    def undo(self, revision: int) -> Entry:
        """The entry that takes a decision back.

        Raises:
            ConflictError: It can't be undone, or there is a later decision about its row.
        """
        decision = self._standing.get(revision)
        if decision is None or self._standing_of[decision.row][-1] != revision:
            raise ConflictError(decision and decision.row)
        theirs = self._theirs_before[revision]
        return self._entry(decision.row, "undo", decision.old, decision.was, revision, theirs)

    def change_elsewhere(self, row: int, theirs: str) -> Entry:
        """The entry of a text that another program has put into the review file."""
        if row in self.theirs or self.statuses[row] != OPEN:
            return self._entry(row, "clash", self.texts[row], OPEN, theirs=theirs)
        return self._entry(row, "elsewhere", theirs, base_status(theirs, self.originals[row]))

    def text_at(self, revision: int) -> dict[int, str]:
        """The texts at a revision of all rows that have entries."""
        texts: dict[int, str] = {}
        for entry in self.entries:
            if entry.revision <= revision:
                texts[entry.row] = entry.new
            else:
                texts.setdefault(entry.row, entry.old)
        return texts

    def _entry(
        self, row: int, action: str, new: str, status: str, undoes: int | None = None, theirs: Any = None
    ) -> Entry:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        old, was = self.texts[row], self.statuses[row]
        stimulus = self.stimuli[row]
        return Entry(self.revision + 1, row, stimulus, action, old, new, was, status, time, undoes, theirs)


def base_status(text: str, original: str, noted: str = "") -> str:
    """The status of a row about which nothing has been decided here: a text that someone changed is decided.

    Args:
        text: What the review file says.
        original: What was checked.
        noted: The file's column ``decision``.
    """
    if text and text != original:
        return EDITED
    return ACCEPTED if text and noted == ACCEPTED else OPEN


def changed_elsewhere(known: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Rows that another program changed in the review file.

    Args:
        known: The texts that it had when it was last written here.
        ours: The texts that it should have.
        theirs: The texts that it has.
    """
    texts = zip(known, ours, theirs, strict=True)
    return [row for row, (before, our, their) in enumerate(texts) if their not in (before, our)]
