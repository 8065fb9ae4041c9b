"""What decisions do to rows: against a plain list of copies, and the same again when they are replayed."""

import copy
import random

import pytest

from lit_extract.review.rows import ConflictError, Decision, Rows

ORIGINALS = ["a", "b", "", "d"]


def state(rows):
    return copy.deepcopy((rows.texts, rows.statuses))


def decide(rows, row, text):
    rows.apply(rows.decide(row, text, rows.revisions.get(row, 0)))


def test_a_decision_is_accepted_or_edited_by_its_text():
    rows = Rows(ORIGINALS)
    for text, status in (("a", "accepted"), ("z", "edited"), ("a", "accepted")):
        decide(rows, 0, text)
        assert (rows.statuses[0], rows.texts[0]) == (status, text)
    assert rows.decide(0, "a", 3) is None, "nothing to save"


def test_what_was_not_seen_is_not_decided():
    rows = Rows(ORIGINALS)
    decide(rows, 1, "mine")
    with pytest.raises(ConflictError) as error:
        rows.decide(1, "yours", 0)
    assert error.value.row == 1
    assert rows.texts[1] == "mine"
    rows.apply(rows.decide(1, "yours", 1))
    assert rows.texts[1] == "yours"


def test_undo_takes_back_the_last_decision_about_a_row_and_no_other():
    rows = Rows(ORIGINALS)
    for row, text in ((0, "x"), (1, "y"), (0, "z")):
        decide(rows, row, text)
    with pytest.raises(ConflictError):
        rows.undo(1)  # row 0 has a later one
    rows.apply(rows.undo(2))
    assert rows.texts == ["z", "b", "", "d"]
    for revision, row in ((3, 0), (1, 0)):
        assert rows.last_decision == (revision, row)
        rows.apply(rows.undo(revision))
    assert (rows.texts, rows.statuses, rows.last_decision) == (ORIGINALS, ["open"] * 4, None)
    with pytest.raises(ConflictError):
        rows.undo(1)


def test_undo_goes_back_to_the_start_and_no_further():
    rows = Rows(ORIGINALS)
    for row, text in enumerate(["a", "z", "y", ""]):
        rows.apply(Decision(rows.revision + 1, row, "start", text))
    assert (rows.texts, rows.statuses) == (["a", "z", "y", ""], ["accepted", "edited", "edited", "open"])
    assert rows.last_decision is None
    decide(rows, 0, "x")
    rows.apply(rows.undo(5))
    assert (rows.texts[0], rows.statuses[0]) == ("a", "accepted")


@pytest.mark.parametrize("seed", range(10))
def test_undoing_all_leads_back_through_each_state_and_replaying_forth(seed):
    chance, rows = random.Random(seed), Rows(ORIGINALS)
    before = {None: state(rows)}  # by the decision that undo would take back
    decisions = []
    for _ in range(30):
        row = chance.randrange(4)
        if chance.random() < 0.2 and rows.last_decision:
            decision = rows.undo(rows.last_decision[0])
        else:
            decision = rows.decide(row, chance.choice(["x", "y", "a"]), rows.revisions.get(row, 0))
        if decision:
            rows.apply(decision)
            decisions.append(decision)
        assert before.setdefault(rows.last_decision, state(rows)) == state(rows)
    again = Rows(ORIGINALS)
    for decision in decisions:
        again.apply(decision)
    assert vars(again) == vars(rows)
    while rows.last_decision:
        assert before.pop(rows.last_decision) == state(rows)
        rows.apply(rows.undo(rows.last_decision[0]))
    assert before[None] == state(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        Decision(3, 0, "decide", "y"),
        Decision(2, 4, "decide", "y"),
        Decision(2, 1, "undo", None),
        Decision(2, 0, "undo", "x"),
        Decision(2, 0, "decide", None),
        Decision(2, 0, "start", "y"),
    ],
)
def test_what_can_not_follow_is_refused(wrong):
    rows = Rows(ORIGINALS)
    decide(rows, 0, "x")
    with pytest.raises(ValueError, match=r"it does not follow|nothing to undo|decided already"):
        rows.apply(wrong)
