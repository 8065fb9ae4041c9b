"""``lit-extract status``: what :func:`~lit_extract.inspection.survey.survey` found, as a table or as JSON."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_extract.common.console import as_size
from lit_extract.common.untrusted import shorten
from lit_extract.inspection.survey import LEFTOVER, NOT_OURS, RUNNING, UNREADABLE, Entry, Missing, Survey
from lit_extract.modules.registry import KINDS
from lit_extract.storage.places import AnyPath

STATUS_FORMAT = 1  # of --json, docs/store-format.md
WIDTH = 120
_MODELS_SHOWN = 8


def as_json(survey: Survey) -> str:
    """One object; docs/store-format.md says what is in it. Of names that are no UTF-8 it has ``?`` for what is not."""
    text = json.dumps(
        {
            "format": STATUS_FORMAT,
            "folder": str(survey.folder),
            "models_file": str(survey.models_file),
            "entries": [_entry_as_json(entry) for entry in survey.entries],
            "missing": [{**asdict(missing), "folder": str(missing.folder)} for missing in survey.missing],
        },
        indent=1,
        ensure_ascii=False,
    )
    return text.encode("utf-8", "replace").decode()


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    written = _time(entry.modified) if entry.modified else None
    modified = written and written.astimezone(UTC).isoformat(timespec="seconds")
    return {**asdict(entry), "path": str(entry.path), "modified": modified}


def _time(seconds: float) -> datetime | None:
    """A time of the local zone; None of one that no calendar has, to which a file can be set too."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def as_text(survey: Survey) -> str:
    """A table a folder, a line a model; then what is missing of it."""
    if not survey.entries:
        return f"{_shown(survey.folder)}: no features yet"
    parts = []
    for folder, group in groupby(survey.entries, key=lambda entry: entry.path.parent):
        missing = [missing for missing in survey.missing if missing.folder == folder]
        parts.append("\n".join(_folder_lines(folder, list(group), missing, survey.models_file)))
    return "\n\n".join(parts)


def _shown(text: object, limit: int = 4000) -> str:
    """A name or reason as a terminal may get it; models have names of 80 characters at most in a table."""
    return shorten(str(text), limit)


def _missing_lines(missing: Missing, models_file: Path) -> list[str]:
    """The first few names; all of them are in the JSON."""
    prompt = f", prompt {_shown(missing.prompt, 80)}" if missing.prompt else ""
    n_missing, all_missing = len(missing.models), len(missing.models) == missing.n_expected
    names = "" if all_missing else f": {', '.join(missing.models[:_MODELS_SHOWN])}"
    more = ", … (--json has all)" if names and n_missing > _MODELS_SHOWN else ""
    n = f"all {n_missing}" if all_missing else f"{n_missing} of {missing.n_expected}"
    text = f"missing {n} {missing.kind} models of {models_file}{prompt}{names}{more}"
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _folder_lines(
    folder: AnyPath, entries: Sequence[Entry], missing: Sequence[Missing], models_file: Path
) -> list[str]:
    """What all have in common, a table for each kind with what is missing of it, then what needs a word."""
    ours = [entry for entry in entries if entry.model is not None]
    shared = {
        name: values.pop()
        for name in ("dtype", "lit_extract")
        if len(values := {getattr(entry, name) for entry in ours}) == 1 and values != {None}
    }
    said = [shared["dtype"]] if "dtype" in shared else []
    said += [f"lit-extract {_shown(shared['lit_extract'], 80)}"] if "lit_extract" in shared else []
    size = as_size(sum(entry.n_bytes for entry in entries))
    lines = [", ".join([f"{_shown(folder)}: {size}", *said])]
    for kind in KINDS:
        of_kind = sorted(
            (entry for entry in ours if entry.kind == kind), key=lambda entry: (entry.prompt or "", entry.path)
        )
        lines += [f"  {line}" for line in _table([_columns(entry, shared) for entry in of_kind])]
        for group in missing:
            lines += _missing_lines(group, models_file) if group.kind == kind else []
    for entry in entries:
        name = _shown(entry.path.name)
        if entry.state in (NOT_OURS, UNREADABLE, LEFTOVER):
            size = f" ({as_size(entry.n_bytes)})" if entry.n_bytes else ""
            line = f"{entry.state}: {name}{size}: {_shown(entry.reason)}"
            lines.append(textwrap.shorten(line, WIDTH - 2, placeholder=" …"))
            lines[-1] = f"  {lines[-1]}"
        elif entry.state == RUNNING:
            lines.append(f"  running: {_shown(entry.model or name, 80)}: {_shown(entry.holder, 200)}")
    return lines


def _columns(entry: Entry, shared: dict[str, str]) -> dict[str, str]:
    assert entry.shape is not None
    n_stimuli, layers, dim = entry.shape
    written = _time(entry.modified)
    rows = str(n_stimuli) if entry.rows_done == n_stimuli else f"{entry.rows_done}/{n_stimuli}"
    columns = {
        "model": entry.model or "",
        "pool": "+".join(entry.pools),
        "prompt": entry.prompt or "",
        "state": entry.state,
        "rows": rows,
        "bad": str(entry.bad_rows or ""),
        "left": f"{entry.shards_left} shards" if entry.shards_left else "",
        "L×D": f"{layers}×{dim}",
        "size": as_size(entry.n_bytes),
        "written": f"{written:%Y-%m-%d %H:%M}" if written else "",
    }
    columns |= {name: str(getattr(entry, name)) for name in ("dtype", "lit_extract") if name not in shared}
    return {name: _shown(cell, 80) for name, cell in columns.items()}


def _table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Columns as wide as they must be; those with nothing in them are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    for row in [{name: name for name in names}, *rows] if rows else ():
        cells = [row[name].rjust(widths[name]) if name in _NUMBERS else row[name].ljust(widths[name]) for name in names]
        yield "  ".join(cells).rstrip()


_NUMBERS = ("rows", "bad", "left", "L×D", "size")
