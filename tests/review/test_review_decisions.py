"""A review with its files: edits come back exactly, nothing is lost, and nobody is overwritten."""

import random
from pathlib import Path

import pandas as pd
import pytest
from helpers.small_review import CAPTIONS

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.common.errors import InputError
from lit_extract.datasets import load_captions
from lit_extract.review.decisions import LONGEST
from lit_extract.review.journal import journal_of
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
    decide_on().close()
    made = review_file.read_bytes()
    cli("check", captions, "--overwrite", "--languages", "[]")
    assert review_file.read_bytes() == made


@pytest.mark.parametrize("text", NASTY)
def test_a_text_comes_back_to_the_letter(decide_on, review_file, accept, text):
    decisions = decide_on()
    decide(decisions, 5, text)
    assert decisions.describe(5)["text"] == text.strip()
    assert decisions.close()
    assert texts_of(review_file)[5] == text.strip()
    assert decide_on().rows.texts == [*CAPTIONS[:5], text.strip(), *CAPTIONS[6:]]
    assert accept()[5] == text.strip()


def test_only_the_captions_of_decided_rows_change(decide_on, review_file):
    decide_on().close()
    before = pd.read_csv(review_file, dtype=str, keep_default_na=False)
    decisions = decide_on()
    decide(decisions, 1, "A cat sleeps.")
    decide(decisions, 0)
    decisions.close()
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
    assert texts_of(review_file) == CAPTIONS, "the file lags behind"
    expected = [*CAPTIONS[:4], "A dog runs on the beach.", *CAPTIONS[5:]]
    assert accept() == expected

    again = decide_on()
    assert again.rows.texts == expected
    assert again.progress() == decisions.progress()
    assert again.write()
    assert texts_of(review_file) == expected
    again.undo(again.rows.last_decision.revision)
    again.undo(again.rows.last_decision.revision)
    with pytest.raises(ConflictError):
        again.undo(1)
    assert again.rows.texts == CAPTIONS
    assert again.close()
    assert texts_of(review_file) == accept() == CAPTIONS


def test_a_kill_between_journal_and_file_is_no_change_by_others(decide_on, review_file, monkeypatch, accept):
    decisions = decide_on()
    decide(decisions, 1, "A cat sleeps.")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decisions.write()
    monkeypatch.undo()
    assert texts_of(review_file) == CAPTIONS
    assert accept()[1] == "A cat sleeps."
    again = decide_on()
    assert (again.rows.texts[1], again.progress()["clashes"]) == ("A cat sleeps.", 0)
    again.close()
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
    assert decisions.select("flagged") == [1, 3, 4, 6], "what was mended is still found"
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
    chance, decisions = random.Random(seed), decide_on()
    for _ in range(40):
        row, kind = chance.randrange(8), chance.random()
        if kind < 0.3 and decisions.rows.last_decision:
            decisions.undo(decisions.rows.last_decision.revision)
        elif kind < 0.4:
            elsewhere(review_file, **{f"row{row}": chance.choice(["", "A ship,", "A ship."])})
            decisions.look()
        elif kind < 0.5:
            decisions.write()
        elif decisions.rows.texts[row] or kind < 0.8:
            decide(decisions, row, chance.choice(["A bird. It flies,", "A bird.", CAPTIONS[row]]))
    rows = [decisions.describe(row) for row in range(8)]
    left = [row for row in rows if row["status"] == "open" and (row["flags"] or row["resolved"])]
    for now in (decisions.progress(), decide_on().progress()):
        assert now["reviewed"] == sum(row["status"] != "open" for row in rows)
        assert now["edited"] == sum(row["status"] == "edited" for row in rows)
        assert now["flagged"] == sum(bool(row["flags"] or row["resolved"]) for row in rows)
        assert now["flagged_left"] == len(left)
        assert now["clashes"] == sum(row["theirs"] is not None for row in rows)
        assert now["empty"] == sum(not row["text"] for row in rows)
        assert sum(now["left"].values()) == sum(len({*row["flags"], *row["resolved"]}) for row in left)


# Another program writes the review file


def test_a_change_elsewhere_is_taken_in_where_nothing_was_decided(decide_on, review_file):
    decisions = decide_on()
    decide(decisions, 0)
    decisions.write()
    elsewhere(review_file, row1="A cat sleeps.")
    decide(decisions, 7, "A bus.")
    assert decisions.write()
    assert texts_of(review_file) == [CAPTIONS[0], "A cat sleeps.", *CAPTIONS[2:7], "A bus."]
    assert decisions.describe(1)["status"] == "edited"
    assert decisions.changed_since(1) == [1, 7]


def test_a_change_elsewhere_of_what_was_decided_waits_for_a_person(decide_on, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decide(decisions, 4, "Mine too.")
    decisions.write()
    elsewhere(review_file, row1="Theirs.", row4=CAPTIONS[4])
    assert "row 1, row 4, about which something else was decided on the page" in accept()
    decisions.look()
    assert decisions.select(status="clash") == [1, 4]
    assert decisions.progress()["reviewed"] == 0
    row = decisions.describe(1)
    assert (row["text"], row["theirs"], row["status"]) == ("Mine.", "Theirs.", "open")
    decisions.write()
    assert "row 1, row 4" in accept(), "still, though the file has been written since"
    decide(decisions, 1, "Theirs.")
    decisions.keep()
    assert (decisions.progress()["clashes"], decisions.progress()["reviewed"]) == (0, 2)
    decisions.close()
    assert accept() == [CAPTIONS[0], "Theirs.", *CAPTIONS[2:4], "Mine too.", *CAPTIONS[5:]]


def test_a_change_elsewhere_between_two_servers(decide_on, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decide(decisions, 4, "Mine too.")
    decisions.close()
    elsewhere(review_file, row0="Theirs.", row1="Theirs too.")
    again = decide_on()
    assert again.rows.texts[:2] == ["Theirs.", "Mine."]
    assert again.rows.theirs == {1: "Theirs too."}
    again.keep()
    again.close()
    assert accept() == ["Theirs.", "Mine.", *CAPTIONS[2:4], "Mine too.", *CAPTIONS[5:]]


def test_a_change_elsewhere_after_a_kill_does_not_hide_what_was_not_written(decide_on, review_file):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decisions.write()
    decide(decisions, 4, "Mine too.")
    elsewhere(review_file, row0="Theirs.")
    for _ in range(2):  # the second after a kill right behind the start
        again = decide_on()
        assert again.rows.texts[:5] == ["Theirs.", "Mine.", *CAPTIONS[2:4], "Mine too."]
        assert again.progress()["clashes"] == 0
    again.close()
    assert texts_of(review_file) == again.rows.texts


def test_a_change_while_the_file_is_being_written_is_not_overwritten(decide_on, review_file, monkeypatch):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    times = []

    def write(table, path, before):
        if not times:
            elsewhere(path, row0="Theirs.")
        times.append(path)
        write_captions(table, path, before)

    monkeypatch.setattr("lit_extract.review.decisions.write_captions", write)
    assert decisions.write()
    assert len(times) == 2
    assert texts_of(review_file)[:2] == ["Theirs.", "Mine."]


def test_a_file_that_lost_rows_is_left_alone_and_mended_ones_are_taken(decide_on, review_file):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    whole = review_file.read_bytes()
    pd.read_csv(review_file).head(3).to_csv(review_file, index=False)
    broken = review_file.read_bytes()
    assert not decisions.write()
    assert "lost 5 of 8 rows" in decisions.progress()["problem"]
    assert review_file.read_bytes() == broken
    decide(decisions, 4, "Mine too.")
    review_file.write_bytes(whole)
    assert decisions.write()
    assert decisions.progress()["problem"] is None
    assert texts_of(review_file)[1:5:3] == ["Mine.", "Mine too."]
    review_file.unlink()
    assert decisions.write()
    assert texts_of(review_file)[1:5:3] == ["Mine.", "Mine too."]


def test_columns_that_were_added_elsewhere_stay(decide_on, review_file):
    decisions = decide_on()
    table = read_captions(review_file)
    table.assign(notes=[f"note {row}" for row in range(8)]).to_csv(review_file, index=False)
    decide(decisions, 1, "Mine.")
    decisions.close()
    assert read_captions(review_file)["notes"].tolist() == [f"note {row}" for row in range(8)]


def test_a_disk_that_refuses_the_review_file_costs_nothing(decide_on, review_file, monkeypatch):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_extract.review.decisions.write_captions", full)
    assert not decisions.write()
    assert "can't be written" in decisions.progress()["problem"]
    monkeypatch.undo()
    assert decisions.write()
    assert texts_of(review_file)[1] == "Mine."


def test_a_decision_that_is_not_on_disk_has_not_happened(decide_on, monkeypatch):
    decisions = decide_on()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        decide(decisions, 1, "Mine.")
    monkeypatch.undo()
    assert (decisions.rows.texts, decisions.rows.revision) == (CAPTIONS, 0)
    assert decide_on().rows.revision == 0


# Files that don't belong together


def test_other_captions_than_were_checked_are_refused(decide_on, captions, review_file, accept):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    decisions.close()
    table = read_captions(captions)
    table.loc[2, "caption"] = "Captioned anew."
    write_captions(table, captions)
    with pytest.raises(InputError, match=r"has other captions than nsd_captions-review\.csv was made of, in row 2"):
        decide_on()
    assert "has decisions about other captions" in accept()


def test_check_does_not_begin_anew_over_decisions(cli, decide_on, captions, review_file):
    decisions = decide_on()
    decide(decisions, 1, "Mine.")
    review_file.unlink()
    code, _, error = cli("check", captions, "--languages", "[]")
    assert code == 2
    assert "nsd_captions-review.jsonl' is there already and may hold edits" in error
    code, _, _ = cli("check", captions, "--languages", "[]", "--overwrite")
    assert code == 3
    assert not journal_of(review_file).exists()
    assert decide_on().rows.texts == CAPTIONS
