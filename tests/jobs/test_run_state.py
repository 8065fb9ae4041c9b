"""The state of a run is input of the sweep: whatever is in the file, reading it is no error."""

import os

import pytest

from lit_extract.common.errors import InputError
from lit_extract.common.signals import Interrupted
from lit_extract.jobs.run_state import Outcome, RunProgress, RunState, failures_recorded, read_state, record

PROGRESS = b'{"unit": "x", "rows": 2, "rows_done": 1, "rate": 1, "seconds_left": 1.5}'
OUTCOME = b'{"state": "failed", "reason": "gone", "exit_code": 2}'


def state(progress=b"null", outcome=b"null"):
    return b'{"progress": %s, "outcome": %s}' % (progress, outcome)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"\xff", b"[" * 9000, b"x" * 200_000, PROGRESS, state(PROGRESS)[:-5]),
        *(state(PROGRESS.replace(b'"x"', unit)) for unit in (b"1", b'"\\u001b"')),
        *(state(PROGRESS.replace(b"2", rows)) for rows in (b'"2"', b"-1", b"2.5")),
        *(state(outcome=OUTCOME.replace(b'"failed"', name)) for name in (b'"finished"', b"null", b"[]")),
        state(outcome=OUTCOME.replace(b"2", b'"2"')),
    ],
)
def test_a_file_of_any_other_shape_is_no_state(tmp_path, content):
    file = tmp_path / "state.json"
    file.write_bytes(state(PROGRESS, OUTCOME))
    assert read_state(file) == RunState(RunProgress("x", 2, 1, 1.0, 1.5), Outcome("failed", "gone", 2))
    file.write_bytes(content)
    assert read_state(file) == RunState()
    file.unlink()
    os.mkfifo(file)
    assert read_state(file) == RunState()


def test_progress_and_outcome_are_kept_together(tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    record(outcome=Outcome("done", "", 0))
    assert not file.exists(), "no sweep has asked"
    monkeypatch.setenv("LIT_EXTRACT_RUN_STATE", str(file))
    progress = RunProgress("images", 2, 1, 1.0, 1.0)
    record(progress=progress)
    assert read_state(file) == RunState(progress)
    record(outcome=Outcome("done", "", 0))
    assert read_state(file) == RunState(progress, Outcome("done", "", 0))
    assert list(tmp_path.iterdir()) == [file]


def stopped():
    stop = Interrupted(15)
    stop.how_far = "1 of 2"
    return stop


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InputError("data.root: gone"), Outcome("failed", "data.root: gone", 2)),
        (KeyError("k"), Outcome("failed", "KeyError: 'k'", 1)),
        (stopped(), Outcome("stopped", "1 of 2", 143)),
        (SystemExit(2), None),  # another rank has failed, and recorded it
    ],
)
def test_a_failure_is_recorded(tmp_path, monkeypatch, error, outcome):
    file = tmp_path / "state.json"
    monkeypatch.setenv("LIT_EXTRACT_RUN_STATE", str(file))
    with pytest.raises(type(error)), failures_recorded():
        raise error
    assert read_state(file).outcome == outcome
