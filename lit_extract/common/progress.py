"""Show progress: a bar in a terminal or a notebook; in a log, a line now and then.

Only the first rank shows progress, and not with ``quiet``.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lit_extract.common.console import as_size, is_quiet
from lit_extract.common.ranks import is_rank_zero

logger = logging.getLogger(__name__)

SECONDS_TO_FIRST_LINE = 10.0  # shorter steps have no line
SECONDS_BETWEEN_LINES = 30.0
SHARE_BETWEEN_LINES = 1 / 20  # of the elapsed time: a week has some 200 lines, not 20,000
SECONDS_BETWEEN_LOOKS = 0.5


def new_bar(what: str, total: int, **settings: Any) -> Any:
    """Return a tqdm bar; a disabled one if bars can't be drawn, or nothing is to be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets has a bar of characters
        from tqdm.auto import tqdm  # a slow import

        is_drawn = _can_draw() and is_rank_zero() and not is_quiet()
        return tqdm(total=total or None, desc=what, dynamic_ncols=True, disable=not is_drawn, **settings)


def _can_draw() -> bool:
    """Return true in a notebook, and in a terminal whose size is known; tqdm would print only blank lines elsewhere."""
    if "ipykernel" in sys.modules:
        return True
    if not sys.stderr.isatty():
        return False
    with suppress(OSError):  # there may be no file behind it
        return all(os.get_terminal_size(sys.stderr.fileno()))
    return True


def clock(seconds: float) -> str:
    """Return seconds as 02:03, or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def seconds_to_next_line(passed: float) -> float:
    """Return the seconds until the next line of a log; they grow with the elapsed time."""
    return max(SECONDS_BETWEEN_LINES, passed * SHARE_BETWEEN_LINES)


@contextmanager
def step(what: str, total: int = 0, done: Callable[[], int] | None = None) -> Iterator[None]:
    """Show progress while the body runs, which has no rows to count.

    Args:
        what: The step, such as "loading weights".
        total: Bytes of the step; 0: not known.
        done: Returns the number of bytes done; called in a thread.
    """
    if is_quiet() or not is_rank_zero():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(what, total, done, ended), name="lit-extract progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(what: str, total: int, done: Callable[[], int] | None, ended: threading.Event) -> None:
    """Draw a bar, or print lines, until a step has ended; show nothing for a very short step."""
    started = time.monotonic()
    if ended.wait(SECONDS_BETWEEN_LOOKS):
        return
    form = None if total else "{desc} [{elapsed}]"
    bar = new_bar(what, total, unit="B", unit_scale=True, leave=False, bar_format=form)
    known, next_line, n_lines = 0, started + SECONDS_TO_FIRST_LINE, 0
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        if done is not None:
            with suppress(OSError):  # the file has just been renamed
                known = bar.n = max(known, min(done(), total))
        bar.refresh()
        if bar.disable and (now := time.monotonic()) >= next_line:
            of_all = f", {as_size(known)} of {as_size(total)}" if total else ""
            logger.info("%s: %s passed%s", what, clock(now - started), of_all)
            next_line, n_lines = now + seconds_to_next_line(now - started), n_lines + 1
    bar.close()
    if n_lines:
        logger.info("%s took %s", what, clock(time.monotonic() - started))
