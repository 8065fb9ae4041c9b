"""A review that an earlier version started, with its journal as that version wrote it."""

import hashlib
import json

import pytest
from helpers.small_review import CAPTIONS

from lit_extract.captioning.output import read_captions
from lit_extract.common.errors import InputError
from lit_extract.review.journal import read_journal


def entry(revision, row, action, new, status, **more):
    was = {"old": CAPTIONS[row], "was": "open", "time": "2026-11-01T10:00:00+00:00", "stimulus": str(100 + row)}
    return {"revision": revision, "row": row, "action": action, "new": new, "status": status, **was, **more}


ENTRIES = [
    entry(1, 0, "accept", CAPTIONS[0], "accepted"),
    entry(2, 1, "edit", "A cat sleeps.", "edited"),
    entry(3, 4, "edit", "A dog, “running”.", "edited"),
    entry(4, 4, "undo", CAPTIONS[4], "open", undoes=3),
]


@pytest.fixture
def journal(cli, captions, review_file):
    """The journal of a page that was killed: the review file has none of its decisions yet."""
    cli("check", captions, "--languages", "[]")
    originals = "".join(f"{caption}\0" for caption in CAPTIONS)
    header = {"format": 1, "captions_sha256": hashlib.sha256(originals.encode()).hexdigest()}
    noted = {"file": hashlib.sha256(review_file.read_bytes()).hexdigest(), "revision": 0}
    lines = [json.dumps(line, ensure_ascii=False) for line in (header, noted, *ENTRIES)]
    path = review_file.with_suffix(".jsonl")
    path.write_text("\n".join([*lines, '{"revision": 5, "ro']))  # torn off by a crash
    return path


def test_it_is_taken_over_once(cli, decide_on, journal, review_file, tmp_path):
    code, _, error = cli("check", review_file, "--accept", "--derivatives", tmp_path / "derivatives")
    assert code == 2
    assert "nsd_captions-review.jsonl has decisions of an earlier version; open" in error
    decisions = decide_on()
    assert decisions.rows.texts == [CAPTIONS[0], "A cat sleeps.", *CAPTIONS[2:]]
    assert decisions.rows.statuses == ["accepted", "edited", *["open"] * 6]
    assert decisions.disk.close()
    assert (journal.exists(), journal.with_name(f"{journal.name}.imported").exists()) == (False, True)
    assert decide_on().rows.texts == decisions.rows.texts == read_captions(review_file)["caption"].tolist()


def changed(line, **values):
    return lambda lines: [*lines[:line], json.dumps({**json.loads(lines[line]), **values}), *lines[line + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(0, captions_sha256="0" * 64), "other captions, or .*csv has been changed by another program"),
        (changed(1, file="0" * 64), "other captions, or .*csv has been changed by another program"),
        (changed(2, row=8), "other captions, or"),
        (changed(2, theirs="Theirs."), "other captions, or"),
        (changed(2, row=-1), "is damaged in line 3"),
        (changed(2, new=7), "is damaged in line 3"),
        (changed(2, status="done"), "is damaged in line 3"),
        (changed(2, new="a\0"), "is damaged in line 3"),
        (lambda lines: [*lines[:2], '{"row": 1}', ""], "other captions, or"),
        (lambda lines: [*lines[:2], "[" * 1000, ""], "is damaged in line 3"),
        (lambda lines: [""], "other captions, or"),
    ],
)
def test_what_is_not_clear_is_refused(cli, decide_on, journal, review_file, change, message):
    journal.write_text("\n".join(change(journal.read_text().split("\n"))))
    with pytest.raises(InputError, match=rf"^review: .*nsd_captions-review\.jsonl', which an .*{message}"):
        read_journal(review_file, CAPTIONS)
    with pytest.raises(InputError, match=message):
        decide_on()
    assert journal.exists()
    code, _, error = cli("check", review_file, "--accept")
    assert (code, "has decisions of an earlier version" in error) == (2, True)
