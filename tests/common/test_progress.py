"""Steps without rows: a bar in a terminal, lines in a log, nothing of a moment or when quiet."""

import fcntl
import io
import logging
import os
import pty
import struct
import sys
import termios
import time

import pytest

from lit_extract.common import progress
from lit_extract.common.console import logging_shown, quiet
from lit_extract.common.progress import clock, new_bar, seconds_to_next_line, step


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(progress, "SECONDS_TO_FIRST_LINE", 0)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_log_has_how_many_bytes_are_done_and_how_long_it_took(patience, caplog):
    caplog.set_level(logging.INFO, "lit_extract")
    with step("m: loading weights", 26 * 10**9, lambda: 12 * 10**9):
        wait_for(lambda: caplog.messages)
    assert caplog.messages == [
        "m: loading weights: 00:00 passed, 12.0 GB of 26.0 GB",
        "m: loading weights took 00:00",
    ]


def test_a_step_of_unknown_size_has_its_time(patience, caplog):
    caplog.set_level(logging.INFO, "lit_extract")
    with step("finalizing"):
        wait_for(lambda: caplog.messages)
    assert caplog.messages[0] == "finalizing: 00:00 passed"


def test_a_moment_is_not_worth_a_line(caplog):
    caplog.set_level(logging.INFO, "lit_extract")
    with step("hashing", 1, lambda: 1):
        pass
    assert caplog.messages == []


def test_a_file_that_goes_while_it_is_counted_and_more_bytes_than_expected_do_no_harm(patience, caplog):
    answers = iter((30, OSError()))

    def done():
        answer = next(answers, 5)
        if isinstance(answer, OSError):
            raise answer
        return answer

    caplog.set_level(logging.INFO, "lit_extract")
    with step("finalizing", 20, done):
        wait_for(lambda: caplog.messages)
    assert caplog.messages[0].endswith("20 B of 20 B")


def test_a_terminal_has_a_bar_that_goes_and_lines_are_printed_above_it(patience, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    with logging_shown(), step("m: loading weights", 26 * 10**9, lambda: 12 * 10**9):
        wait_for(lambda: "12.0G/26.0G" in screen.getvalue())
        logging.getLogger("lit_extract").info("a line")
    drawn = screen.getvalue()
    assert "m: loading weights:  46%" in drawn
    assert "passed" not in drawn
    before = drawn[: drawn.index("a line")]
    assert before.rsplit("\r", 1)[1] == "", "the bar was cleared"
    assert before.rsplit("\r", 2)[1].strip() == ""
    assert drawn.rsplit("\r", 2)[1].strip() == "", "nothing of it stays"


def test_quiet_has_warnings_only(patience, monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with logging_shown(), quiet():
        with step("m: loading weights"):
            time.sleep(0.05)
        logging.getLogger("lit_extract").info("not shown")
        logging.getLogger("lit_extract").warning("look")
    assert screen.getvalue() == "lit-extract: warning: look\n"
    assert capsys.readouterr().out == ""


def test_the_longer_a_run_the_fewer_lines_it_has():
    passed, lines = 0.0, 0
    while passed < 7 * 24 * 3600:
        passed, lines = passed + seconds_to_next_line(passed), lines + 1
    assert 50 < lines < 250
    assert seconds_to_next_line(0) == 30


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "00:00"), (59.6, "01:00"), (3599, "59:59"), (90061, "25:01:01")])
def test_a_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("size", "is_drawn"), [((0, 0), False), ((40, 0), False), ((0, 110), False), ((40, 110), True)]
)
def test_a_terminal_of_unknown_size_has_lines_and_no_bar(monkeypatch, size, is_drawn):
    """As that of ``docker exec -t`` without a terminal of its own, where tqdm draws nothing."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb"):
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = new_bar("m", 2)
        assert bar.disable == (not is_drawn)
        bar.close()
        monkeypatch.undo()
