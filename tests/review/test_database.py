"""The database: what is in it after crashes, on full disks, and when it is somebody else's."""

import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lit_extract.common.errors import InputError
from lit_extract.review.database import Database

CAPTIONS = ["a", "b"]
TEXTS = [f"{k} “é”\n{'long ' * 20}" for k in range(3)]


@pytest.fixture
def path(tmp_path):
    """A database of three decisions, under a name that is no URI."""
    path = tmp_path / "a#b?c%41 é-review.sqlite"
    with closing(Database(path, CAPTIONS)) as database:
        database.start(["state"], [(1, "B")])
        for text in TEXTS:
            append(database, text)
    return path


def append(database, text):
    rows = database.rows
    database.append(rows.decide(0, text, rows.revisions.get(0, 0)))


def read(path, captions=CAPTIONS):
    with closing(Database(path, captions)) as database:
        return database.rows.texts


def change(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)


def kill_within_a_transaction(path):
    """A process that ends so leaves a journal, which the next one rolls back."""
    code = f"""if True:
        import os, sqlite3
        connection = sqlite3.connect({str(path)!r}, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE decisions SET text = ?", ["x" * 50_000])
        os._exit(9)"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert path.with_name(f"{path.name}-journal").exists()


@contextmanager
def full_disk(path):
    """No file may grow beyond the size of this one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_was_saved_is_read_again(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no other file is left"
    with closing(Database(path, CAPTIONS)) as database:
        assert database.started
        assert (database.rows.texts, database.rows.statuses) == ([TEXTS[2], "B"], ["edited", "edited"])
        database.append(database.rows.undo(4))
        assert database.knows("state")
        assert not database.knows("other")
        database.note("other")
    assert read(path) == [TEXTS[1], "B"]
    with closing(Database(path, CAPTIONS)) as database:
        assert database.knows("other")


def test_a_kill_loses_nothing_that_was_saved_and_keeps_no_half_of_the_rest(path):
    kill_within_a_transaction(path)
    assert read(path) == [TEXTS[2], "B"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_a_kill_left_of_a_database_that_is_gone_is_no_part_of_a_new_one(path):
    kill_within_a_transaction(path)
    path.unlink()
    with closing(Database(path, CAPTIONS)) as database:
        append(database, "new")
    assert read(path) == ["new", "b"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_on_a_full_disk_a_decision_is_saved_or_has_not_happened(path):
    with closing(Database(path, CAPTIONS)) as database:
        with full_disk(path), pytest.raises(OSError, match="can't be written"):
            append(database, "x" * 10_000)
        assert database.rows.texts == read(path) == [TEXTS[2], "B"]
        append(database, "y" * 10_000)
    assert read(path)[0] == "y" * 10_000


def test_a_file_without_content_is_a_new_database(tmp_path):
    (tmp_path / "x.sqlite").touch()
    assert read(tmp_path / "x.sqlite") == CAPTIONS
    with closing(Database(tmp_path / "x.sqlite", CAPTIONS)) as database:
        assert not database.started


def test_a_database_of_other_captions_or_another_format_is_refused(path):
    with pytest.raises(InputError, match=r"^review: .*other captions"):
        read(path, ["a", "c"])
    change(path, "PRAGMA user_version = 2")
    with pytest.raises(InputError, match=r"^review: .*its format is 2"):
        read(path)


EVIL = "CREATE TRIGGER t AFTER INSERT ON files BEGIN DELETE FROM decisions; END"


@pytest.mark.parametrize(
    "statement",
    [
        *("PRAGMA application_id = 7", "DROP TABLE files", "ALTER TABLE files ADD COLUMN more", EVIL),
        *("CREATE INDEX i ON decisions (text)", "CREATE VIEW v AS SELECT 1"),
        "DROP TABLE files; CREATE VIEW files AS SELECT 'captions' AS name, load_extension('evil') AS sha256",
        *(f"INSERT INTO decisions VALUES ({values}, '')" for values in ("9, 0, 'decide', 'x'", "5, 2, 'decide', 'x'")),
        *(f"INSERT INTO decisions VALUES ({values}, '')" for values in ("5, -1, 'decide', 'x'", "5, 1, 'undo', NULL")),
        *(f"INSERT INTO decisions VALUES ({values}, '')" for values in ("5, 0, 'drop', 'x'", "5, 0.5, 'decide', 'x'")),
        *(f"INSERT INTO decisions VALUES ({values}, '')" for values in ("5, 0, 'decide', x'41'", "5, 0, 'undo', 'x'")),
        "INSERT INTO decisions VALUES (5, 0, 'decide', 'a' || char(0), '')",
        "INSERT INTO decisions VALUES (5, 0, 'decide', CAST(x'ff' AS TEXT), '')",
        "INSERT INTO files VALUES ('captions', 'other')",
        "UPDATE files SET sha256 = x'00' WHERE name = 'captions'",
        "DELETE FROM decisions WHERE revision = 2",
    ],
)
def test_what_is_no_review_is_refused_and_nothing_of_it_runs(path, statement):
    change(path, statement)
    content = path.read_bytes()
    with pytest.raises(InputError, match=r"^review: ") as error:
        read(path)
    assert path.name in str(error.value)
    assert path.read_bytes() == content


def test_another_programs_database_is_not_touched(tmp_path):
    path = tmp_path / "x.sqlite"
    change(path, "PRAGMA journal_mode = WAL; CREATE TABLE t (x)")
    content = path.read_bytes()
    with pytest.raises(InputError, match="not a database of lit-extract review"):
        read(path)
    assert path.read_bytes() == content
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="not a database"):
        read(path)


def test_a_journal_that_names_another_file_is_refused(path, tmp_path):
    """SQLite takes that for a journal of several databases and deletes it, whatever it is."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    kill_within_a_transaction(path)
    name = os.fsencode(victim)
    end = (2**30 // 4096 + 1).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
    with path.with_name(f"{path.name}-journal").open("ab") as file:
        file.write(end + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(InputError, match="-journal belongs to another database"):
        read(path)
    assert victim.read_text() == "mine"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM files").fetchall()
    assert not victim.exists(), "it would have been deleted; else this test needs another journal"


@pytest.mark.parametrize("ending", ["", "-journal", "-wal"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda place: place.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused(path, ending, make):
    place = path.with_name(path.name + ending)
    place.unlink(missing_ok=True)
    make(place)
    with pytest.raises(InputError, match=r"^review: "):
        read(path)


def test_limits(path, monkeypatch):
    monkeypatch.setattr("lit_extract.review.database.MAX_DECISIONS", 3)
    with pytest.raises(InputError, match="more than 3 decisions"):
        read(path)
    with path.open("ab") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(InputError, match="more than 268,435,456 bytes"):
        read(path)
