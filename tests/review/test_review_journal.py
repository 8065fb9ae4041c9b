"""The journal: what is in it after crashes and on full disks."""

import json
import resource

import pytest

from lit_extract.common.errors import InputError
from lit_extract.review.journal import Journal, hash_captions, read_journal
from lit_extract.review.rows import Rows

CAPTIONS = ["a", "b"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x-review.jsonl"


def decided():
    rows = Rows(["1", "2"], ["a", "b"], ["a", "b"], ["open", "open"])
    for k in range(3):
        rows.apply(rows.decide(0, f"{k} “é”\n{'long ' * 20}", k))
    return rows.entries


ENTRIES = decided()


def test_what_was_appended_is_read_again(path):
    journal = Journal(path, CAPTIONS)
    journal.append(ENTRIES[:3])
    journal.note("ab", 2)
    content = read_journal(path, CAPTIONS)
    assert content.entries == ENTRIES[:3]
    assert content.files == [("ab", 2)]
    assert content.revision_of("ab") == 2
    assert content.revision_of("cd") is None
    journal.close()


@pytest.mark.parametrize("torn", [1, 10, 100])
def test_half_a_line_of_a_crash_is_cut_off(path, torn):
    journal = Journal(path, CAPTIONS)
    journal.append(ENTRIES[:2])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    assert read_journal(path, CAPTIONS).entries == ENTRIES[:1]
    journal = Journal(path, CAPTIONS)
    journal.append(ENTRIES[1:2])
    journal.close()
    assert read_journal(path, CAPTIONS).entries == ENTRIES[:2]


def test_damage_is_named_and_nothing_is_cut(path):
    journal = Journal(path, CAPTIONS)
    journal.append(ENTRIES[:3])
    journal.close()
    lines = path.read_bytes().split(b"\n")
    for damaged in (b"{" + lines[2], b'{"revision": 7}', lines[3]):
        data = b"\n".join([*lines[:2], damaged, *lines[3:]])
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x-review.jsonl' is damaged in line 3"):
            Journal(path, CAPTIONS)
        assert path.read_bytes() == data


def test_a_journal_of_other_captions_or_another_format_is_refused(path):
    Journal(path, CAPTIONS).close()
    with pytest.raises(InputError, match="has decisions about other captions"):
        read_journal(path, ["a", "c"])
    path.write_text(json.dumps({"format": 2, "captions_sha256": hash_captions(CAPTIONS)}) + "\n")
    with pytest.raises(InputError, match="format: should be 1, not 2"):
        read_journal(path, CAPTIONS)


def test_on_a_full_disk_an_entry_is_there_or_not_at_all(path):
    journal = Journal(path, CAPTIONS)
    first, second = ENTRIES[:2]
    journal.append([first])
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))  # room for the first half of a line
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append([second])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    journal.append([second])
    journal.close()
    assert read_journal(path, CAPTIONS).entries == [first, second]
