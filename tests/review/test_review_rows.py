"""What decisions do to rows: against a plain list of copies, and the same again when they are replayed."""

import copy
import random

import pytest

from lit_extract.review.rows import ConflictError, Rows, base_status, changed_elsewhere

ORIGINALS = ["a", "b", "", "d"]


def fresh():
    return Rows(["10", "11", "12", "13"], ORIGINALS, ORIGINALS, ["open"] * 4)


def state(rows):
    return copy.deepcopy((rows.texts, rows.statuses, rows.theirs))


def test_a_decision_is_accepted_or_edited_by_its_text():
    rows = fresh()
    for text, action, status in ((None, "accept", "accepted"), ("z", "edit", "edited"), ("a", "edit", "accepted")):
        entry = rows.decide(0, text, rows.revisions.get(0, 0))
        rows.apply(entry)
        assert (entry.action, rows.statuses[0], rows.texts[0]) == (action, status, text or "a")
    assert rows.decide(0, None, 3) is None, "nothing to write down"


def test_what_was_not_seen_is_not_decided():
    rows = fresh()
    rows.apply(rows.decide(1, "mine", 0))
    with pytest.raises(ConflictError) as error:
        rows.decide(1, "yours", 0)
    assert error.value.row == 1
    assert rows.texts[1] == "mine"
    rows.apply(rows.decide(1, "yours", 1))
    assert rows.texts[1] == "yours"


def test_undo_takes_back_the_last_decision_about_a_row_and_no_other():
    rows = fresh()
    for row, text in ((0, "x"), (1, "y"), (0, "z")):
        rows.apply(rows.decide(row, text, rows.revisions.get(row, 0)))
    with pytest.raises(ConflictError):
        rows.undo(1)  # row 0 has a later one
    rows.apply(rows.undo(2))
    assert rows.texts == ["z", "b", "", "d"]
    rows.apply(rows.undo(rows.last_decision.revision))
    rows.apply(rows.undo(rows.last_decision.revision))
    assert (rows.texts, rows.statuses, rows.last_decision) == (ORIGINALS, ["open"] * 4, None)
    with pytest.raises(ConflictError):
        rows.undo(1)


def test_another_programs_text_is_taken_where_nothing_was_decided_and_else_waits():
    rows = fresh()
    rows.apply(rows.decide(0, "mine", 0))
    for row in (0, 1):
        rows.apply(rows.change_elsewhere(row, "theirs"))
    assert (rows.texts[:2], rows.statuses[:2], rows.theirs) == (["mine", "theirs"], ["open", "edited"], {0: "theirs"})
    assert rows.last_decision is None, "it was about another text"
    rows.apply(rows.decide(0, None, rows.revisions[0]))
    assert (rows.texts[0], rows.statuses[0], rows.theirs) == ("mine", "edited", {})
    rows.apply(rows.undo(rows.last_decision.revision))
    assert (rows.texts[0], rows.statuses[0], rows.theirs) == ("mine", "open", {0: "theirs"})


def happen(rows, chance, elsewhere):
    """Something happens to the rows, or not."""
    row, kind = chance.randrange(4), chance.random()
    if kind < 0.2 and rows.last_decision:
        rows.apply(rows.undo(rows.last_decision.revision))
    elif kind < elsewhere:
        rows.apply(rows.change_elsewhere(row, chance.choice("pq")))
    elif entry := rows.decide(row, chance.choice(["x", "y", "a"]), rows.revisions.get(row, 0)):
        rows.apply(entry)


@pytest.mark.parametrize("seed", range(10))
def test_undoing_all_leads_back_through_each_state(seed):
    chance, rows = random.Random(seed), fresh()
    before = {None: state(rows)}  # by the decision that undo would take back
    for _ in range(30):
        happen(rows, chance, elsewhere=0)
        last = rows.last_decision and rows.last_decision.revision
        assert before.setdefault(last, state(rows)) == state(rows)
    while rows.last_decision:
        assert before.pop(rows.last_decision.revision) == state(rows)
        rows.apply(rows.undo(rows.last_decision.revision))
    assert before[None] == state(rows)


@pytest.mark.parametrize("seed", range(10))
def test_replaying_leads_to_the_same(seed):
    chance, rows = random.Random(seed), fresh()
    for _ in range(30):
        happen(rows, chance, elsewhere=0.5)
    again = fresh()
    for entry in rows.entries:
        again.apply(entry)
    assert vars(again) == vars(rows)


@pytest.mark.parametrize(
    ("text", "original", "noted", "status"),
    [
        ("a", "a", "", "open"),
        ("a", "a", "accepted", "accepted"),
        ("b", "a", "", "edited"),
        ("b", "a", "accepted", "edited"),
        ("a", "a", "edited", "open"),
        ("", "a", "edited", "open"),
        ("a", "a", "whatever", "open"),
    ],
)
def test_the_status_before_anything_is_decided(text, original, noted, status):
    assert base_status(text, original, noted) == status


@pytest.mark.parametrize(
    ("known", "ours", "theirs", "changed"),
    [
        ("a", "a", "a", False),
        ("a", "b", "a", False),  # not written yet
        ("a", "a", "b", True),
        ("a", "b", "b", False),
        ("a", "b", "c", True),
    ],
)
def test_what_counts_as_changed_elsewhere(known, ours, theirs, changed):
    assert changed_elsewhere([known], [ours], [theirs]) == ([0] if changed else [])
