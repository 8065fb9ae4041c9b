"""A review with its files: edits come back exactly, nothing is lost, and nobody is overwritten."""

import random
from pathlib import Path

import pandas as pd
import pytest
from helpers.small_review import CAPTIONS

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.common.errors import InputError
from lit_extract.datasets import load_captions
from lit_extract.review.database import database_path
from lit_extract.review.decisions import LONGEST
from lit_extract.review.rows import ConflictError

NASTY = [
    *(
        '"',
        '""',
        '"a",b',
        "a,b;c",
        "=SUM(A1)",
        "+1",
        "-1",
        "@x",
        " =1",
        "null",
        "None",
        "NaN",
        "nan",
        "1.0",
        "007",
        "TRUE",
    ),
    *("two\nlines", "a\ttab", "'", "\\", "\\n", "ends with \\", "\ufeffmark", "a\u2028b", "#", "<b>&amp;</b>"),
    *("مرحبا", "🐕🦺", "e\u0301 é", "กา"),
]


def elsewhere(review_file, **texts):
    """Another program changes captions, row0="…"; it writes the file in its own way."""
    table = pd.read_csv(review_file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for row, text in texts.items():
        table.loc[int(row.removeprefix("row")), "caption"] = text
    table.to_csv(review_file, index=False, quoting=1)


def decide(decisions, row, text=None):
    decisions.decide(row, text, decisions.rows.revisions.get(row, 0))


def texts_of(path):
    return read_captions(path)["caption"].tolist()


@pytest.fixture
def accept(cli, tmp_path, review_file):
    """A function that accepts the review file; it returns the captions, or the error."""

    def accept():
        code, _, error = cli("check", review_file, "--accept", "--overwrite", "--derivatives", tmp_path / "derivatives")
        if code:
            return error
        return load_captions(tmp_path / "derivatives" / "nsd-captions-pixtral.csv")["caption"].tolist()

    return accept


def test_the_review_file_is_made_as_by_check(cli, decide_on, captions, review_file):
    decide_on().disk.close()
    made = review_file.read_bytes()
    cli("check", captions, "--overwrite", "--languages", "[]")
    assert review_file.read_bytes() == made


@pytest.mark.parametrize("text", NASTY)
def test_a_text_comes_back_to_the_letter(decide_on, review_file, accept, text):
    decisions = decide_on()
    decide(decisions, 5, text)
    assert decisions.describe(5)["text"] == text.strip()
    assert decisions.disk.close()
    assert texts_of(review_file)[5] == text.strip()
    assert decide_on().rows.texts == [*CAPTIONS[:5], text.strip(), *CAPTIONS[6:]]
    assert accept()[5] == text.strip()


def test_only_the_captions_of_decided_rows_change(decide_on, review_file):
    decide_on().disk.close()
    before = pd.read_csv(review_file, dtype=str, keep_default_na=False)
    decisions = decide_on()
    decide(decisions, 1, "A cat sleeps.")
    decide(decisions, 0)
    decisions.disk.close()
    after = pd.read_csv(review_file, dtype=str, keep_default_na=False)
    assert after.pop("decision").tolist() == ["accepted", "edited", *[""] * 6]
    before.loc[1, "caption"] = "A cat sleeps."
    pd.testing.assert_frame_equal(after, before)
    assert review_file.read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't be empty"),
        (" \n ", "can't be empty"),
        ("a\0b", "characters that a CSV can't hold"),
        ("a\ud800b", "characters that a CSV can't hold"),
        ("a" * (LONGEST + 1), "too long"),
    ],
)
def test_a_text_that_can_be_no_caption_is_refused(decide_on, text, message):
    decisions = decide_on()
    with pytest.raises(InputError, match=message):
        decide(decisions, 0, text)
    assert (decisions.rows.texts[0], decisions.rows.revision) == (CAPTIONS[0], 0)


def test_a_page_that_shows_line_ends_in_its_own_way_changes_nothing(decide_on, captions):
    table = read_captions(captions)
    table.loc[0, "caption"] = "One.\r\nTwo."
    write_captions(table, captions)
    decisions = decide_on()
    decide(decisions, 0, "One.\nTwo.")
    assert (decisions.rows.texts[0], decisions.rows.statuses[0]) == ("One.\r\nTwo.", "accepted")


def test_after_a_kill_all_is_there_also_for_check(decide_on, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "A cat sleeps.")
    decide(decisions, 4, "A dog runs on the beach.")
    decisions.undo(1)
    decide(decisions, 0)
    assert texts_of(review_file) == CAPTIONS, "not written yet"
    expected = [*CAPTIONS[:4], "A dog runs on the beach.", *CAPTIONS[5:]]
    assert accept() == expected

    again = decide_on()
    assert again.rows.texts == expected
    assert again.progress() == decisions.progress()
    assert again.disk.write()
    assert texts_of(review_file) == expected
    again.undo(again.rows.last_decision[0])
    again.undo(again.rows.last_decision[0])
    with pytest.raises(ConflictError):
        again.undo(1)
    assert again.rows.texts == CAPTIONS
    assert again.disk.close()
    assert texts_of(review_file) == accept() == CAPTIONS


def test_a_kill_between_database_and_file_is_no_change_by_others(decide_on, review_file, monkeypatch, accept):
    decisions = decide_on()
    decide(decisions, 1, "A cat sleeps.")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decisions.disk.write()
    monkeypatch.undo()
    assert texts_of(review_file) == CAPTIONS
    assert accept()[1] == "A cat sleeps."
    again = decide_on()
    assert (again.rows.texts[1], again.progress()["problem"]) == ("A cat sleeps.", None)
    again.disk.close()
    assert texts_of(review_file)[1] == "A cat sleeps."


def test_flags_are_those_of_the_text_as_it_is_now(decide_on):
    decisions = decide_on()
    assert decisions.describe(1)["flags"] == ["several sentences"]
    decide(decisions, 1, "A cat sleeps,")
    row = decisions.describe(1)
    assert (row["flags"], row["resolved"]) == (["cut off"], ["several sentences"])
    decisions.undo(1)
    assert decisions.describe(1)["flags"] == ["several sentences"]
    decide(decisions, 1, "A cat sleeps.")
    row = decide_on().describe(1)
    assert (row["flags"], row["resolved"]) == ([], ["several sentences"])


def test_rows_are_chosen_by_flag_decision_and_text(decide_on):
    decisions = decide_on()
    assert decisions.select() == list(range(8))
    assert decisions.select("flagged") == [1, 3, 4, 6]
    assert decisions.select("several sentences") == [1, 6]
    decide(decisions, 1, "A cat sleeps,")
    decide(decisions, 3)
    assert decisions.select("flagged", "open") == [4, 6]
    assert decisions.select("flagged") == [1, 3, 4, 6], "what was fixed is still found"
    assert decisions.select("cut off") == [1, 4]
    assert decisions.select(status="edited") == [1]
    assert decisions.select(status="accepted") == [3]
    assert decisions.select(search=" HUND ") == [4]
    assert decisions.select(search="it sleeps") == [1], "also in what was there before"
    assert decisions.select(search="105") == [5]
    assert decisions.select(search="海滩") == [5]
    assert decisions.find(" 105 ") == 5
    assert decisions.find("5") is None


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_counting(decide_on, review_file, seed):
    chance = random.Random(seed)
    decide_on().disk.write()
    database_path(review_file).unlink()
    elsewhere(review_file, row2="", row5="A ship.")
    decisions = decide_on()
    for _ in range(40):
        row, kind = chance.randrange(8), chance.random()
        if kind < 0.3 and decisions.rows.last_decision:
            decisions.undo(decisions.rows.last_decision[0])
        elif kind < 0.4:
            decisions.disk.write()
        else:
            decide(decisions, row, chance.choice(["A bird. It flies,", "A bird.", CAPTIONS[row]]))
    rows = [decisions.describe(row) for row in range(8)]
    left = [row for row in rows if row["status"] == "open" and (row["flags"] or row["resolved"])]
    for now in (decisions.progress(), decide_on().progress()):
        assert now["reviewed"] == sum(row["status"] != "open" for row in rows)
        assert now["edited"] == sum(row["status"] == "edited" for row in rows)
        assert now["flagged"] == sum(bool(row["flags"] or row["resolved"]) for row in rows)
        assert now["flagged_left"] == len(left)
        assert now["empty"] == sum(not row["text"] for row in rows)
        assert sum(now["left"].values()) == sum(len({*row["flags"], *row["resolved"]}) for row in left)


# Another program writes the review file


def test_an_edited_review_file_is_the_start(cli, decide_on, captions, review_file, accept):
    cli("check", captions, "--languages", "[]")
    table = read_captions(review_file).assign(decision=["accepted", *[""] * 7])
    table.loc[1, "caption"], table.loc[2, "caption"] = "Theirs.", ""
    table.to_csv(review_file, index=False)
    decisions = decide_on()
    assert [decisions.describe(row)["status"] for row in range(3)] == ["accepted", "edited", "open"]
    assert (decisions.progress()["undo"], decisions.progress()["empty"]) == (None, 1)
    assert "no caption in line 4" in accept()
    decide(decisions, 2, "Mine.")
    decisions.undo(decisions.rows.last_decision[0])
    assert decisions.rows.texts[2] == ""
    decide(decisions, 2, "Mine.")
    decisions.disk.close()
    expected = [CAPTIONS[0], "Theirs.", "Mine.", *CAPTIONS[3:]]
    assert accept() == texts_of(review_file) == decide_on().rows.texts == expected


def test_a_change_elsewhere_is_refused_and_nothing_overwritten(decide_on, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    assert decisions.disk.write()
    elsewhere(review_file, row0="Theirs.", row4="Theirs, too.")
    theirs = review_file.read_bytes()
    assert not decisions.disk.write()
    problem = decisions.progress()["problem"]
    assert problem.startswith(f"review: '{review_file}' was changed by another program")
    assert "line 2, line 6. To keep" in problem
    decide(decisions, 7, "A bus.")
    assert not decisions.disk.close()
    assert review_file.read_bytes() == theirs
    with pytest.raises(
        InputError, match=r"^review: .* was changed by another program .* in line 2, line 6, line 9\. To"
    ):
        decide_on()
    assert "was changed by another program" in accept()


@pytest.mark.parametrize("keep", ["page", "file"])
def test_which_to_keep_is_said_by_moving_the_other_away(decide_on, review_file, accept, keep):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decisions.disk.write()
    decide(decisions, 7, "A bus.")
    elsewhere(review_file, row0="Theirs.")
    if keep == "page":
        review_file.unlink()
        assert decisions.disk.write()
        assert decisions.progress()["problem"] is None
        expected = [CAPTIONS[0], "Mine.", *CAPTIONS[2:7], "A bus."]
    else:
        database_path(review_file).unlink()
        expected = ["Theirs.", "Mine.", *CAPTIONS[2:]]
        assert accept() == expected
    decisions = decide_on()
    assert (decisions.rows.texts, decisions.rows.statuses[1]) == (expected, "edited")
    assert decisions.disk.close()
    assert accept() == texts_of(review_file) == expected


def test_a_file_that_was_moved_away_while_no_page_was_open_is_written_again(decide_on, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decisions.disk.close()
    review_file.unlink()
    again = decide_on()
    assert again.disk.close()
    assert texts_of(review_file) == accept() == [CAPTIONS[0], "Mine.", *CAPTIONS[2:]]


def test_saving_without_a_change_or_an_old_copy_is_no_change(decide_on, review_file, accept):
    decisions = decide_on()
    old = review_file.read_bytes()
    decide(decisions, 1, "Mine.")
    assert decisions.disk.write()
    elsewhere(review_file)
    decide(decisions, 4, "Mine too.")
    assert decisions.disk.write()
    review_file.write_bytes(old)
    assert accept() == decide_on().rows.texts == [CAPTIONS[0], "Mine.", *CAPTIONS[2:4], "Mine too.", *CAPTIONS[5:]]
    assert decisions.disk.write()
    assert texts_of(review_file) == accept()


def test_a_change_while_the_file_is_being_written_is_not_overwritten(decide_on, review_file, monkeypatch):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")

    def write(table, path):
        elsewhere(review_file, row0="Theirs.")
        write_captions(table, path)

    monkeypatch.setattr("lit_extract.review.disk.write_captions", write)
    assert not decisions.disk.write()
    assert texts_of(review_file)[:2] == ["Theirs.", CAPTIONS[1]]
    assert not decisions.disk.write()
    assert "was changed by another program" in decisions.progress()["problem"]


def test_a_file_that_lost_rows_is_skipped_until_it_is_repaired(decide_on, review_file):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    whole = review_file.read_bytes()
    pd.read_csv(review_file).head(3).to_csv(review_file, index=False)
    broken = review_file.read_bytes()
    assert not decisions.disk.write()
    assert "lost 5 of 8 rows" in decisions.progress()["problem"]
    assert review_file.read_bytes() == broken
    decide(decisions, 4, "Mine too.")
    review_file.write_bytes(whole)
    assert decisions.disk.write()
    assert decisions.progress()["problem"] is None
    assert texts_of(review_file)[1:5:3] == ["Mine.", "Mine too."]


def test_columns_that_were_added_elsewhere_stay(decide_on, review_file):
    decisions = decide_on()
    table = read_captions(review_file)
    table.assign(notes=[f"note {row}" for row in range(8)]).to_csv(review_file, index=False)
    decide(decisions, 1, "Mine.")
    decisions.disk.close()
    assert read_captions(review_file)["notes"].tolist() == [f"note {row}" for row in range(8)]


@pytest.mark.parametrize("moved_away", [False, True])
def test_a_disk_that_refuses_the_review_file_costs_nothing(decide_on, review_file, monkeypatch, moved_away):
    decisions = decide_on()
    if moved_away:
        review_file.unlink()
    decide(decisions, 1, "Mine.")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_extract.review.disk.write_captions", full)
    assert not decisions.disk.write()
    assert "can't be written" in decisions.progress()["problem"]
    monkeypatch.undo()
    assert decisions.disk.write()
    assert texts_of(review_file)[1] == "Mine."


# Files that don't belong together


def test_other_captions_than_were_checked_are_refused(decide_on, captions, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decisions.disk.close()
    table = read_captions(captions)
    table.loc[2, "caption"] = "Captioned again."
    write_captions(table, captions)
    with pytest.raises(InputError, match=r"was made from other captions, which differ in line 4"):
        decide_on()
    assert "other captions" in accept()


def test_check_does_not_replace_decisions(cli, decide_on, captions, review_file):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    review_file.unlink()
    code, _, error = cli("check", captions, "--languages", "[]")
    assert code == 2
    assert "nsd_captions-review.sqlite' exists already and may hold edits" in error
    code, _, _ = cli("check", captions, "--languages", "[]", "--overwrite")
    assert code == 3
    assert not database_path(review_file).exists()
    assert decide_on().rows.texts == CAPTIONS
