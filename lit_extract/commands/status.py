"""``lit-extract status``: what is in a features folder, as tables or as JSON. Without torch and zarr, at once."""

import json as json_format
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.console import as_size, as_table
from lit_extract.common.errors import counted
from lit_extract.common.untrusted import shorten
from lit_extract.inspection.survey import LEFTOVER, NOT_OURS, RUNNING, UNREADABLE, Entry, Survey, survey
from lit_extract.modules.registry import KINDS
from lit_extract.storage.layout import shapes_in_words
from lit_extract.storage.places import AnyPath

STATUS_FORMAT = 2  # of --json, docs/store-format.md
WIDTH = 120
_NAME_AT_MOST, _TEXT_AT_MOST = 80, 4000  # characters of a name in a table, of a path or a reason
_MODELS_SHOWN = 8


def status(folder: str = "features", models: str | None = None, json: bool = False) -> int:
    """List the features files and stores in a folder, and the models of models.yml that are missing.

    Args:
        folder: Where to look, in all folders below it too.
        models: The models.yml to compare with; default: ./models.yml, else the one shipped.
        json: Print one JSON object instead of tables.
    """
    found = survey(folder, models)
    print(as_json(found) if json else as_text(found))
    return exit_codes.DONE


main = command(status, nargs={"folder": "?"})


def as_json(found: Survey) -> str:
    """Return one object, see docs/store-format.md. In names that are no UTF-8, ``?`` stands for each wrong byte."""
    content = {
        "format": STATUS_FORMAT,
        "folder": str(found.folder),
        "models_file": str(found.models_file),
        "entries": [_entry_as_json(entry) for entry in found.entries],
        "missing": [{**asdict(missing), "folder": str(missing.folder)} for missing in found.missing],
    }
    return json_format.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "replace").decode()


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    written = _time(entry)
    modified = written and written.astimezone(UTC).isoformat(timespec="seconds")
    return {**asdict(entry), "path": str(entry.path), "modified": modified}


def _time(entry: Entry) -> datetime | None:
    """Return when an entry was written, in the local zone; None if that is unknown or a time that no calendar has."""
    try:
        return datetime.fromtimestamp(entry.modified).astimezone() if entry.modified else None
    except (ValueError, OverflowError, OSError):
        return None


def as_text(found: Survey) -> str:
    """Return a table for each folder, with a line a model, and what is missing of it."""
    if not found.entries:
        return f"{shorten(str(found.folder), _TEXT_AT_MOST)}: no features yet"
    folders = groupby(found.entries, key=lambda entry: entry.path.parent)
    return "\n\n".join("\n".join(_folder_lines(folder, list(entries), found)) for folder, entries in folders)


def _folder_lines(folder: AnyPath, entries: Sequence[Entry], found: Survey) -> list[str]:
    """Return what all entries share, a table for each kind with what is missing of it, then what needs a word."""
    ours = [entry for entry in entries if entry.model is not None]
    shared = [name for name in ("dtype", "lit_extract") if len({getattr(entry, name) for entry in ours}) == 1]
    title = [f"{shorten(str(folder), _TEXT_AT_MOST)}: {as_size(sum(entry.n_bytes for entry in entries))}"]
    for name, prefix in (("dtype", ""), ("lit_extract", "lit-extract ")):
        if name in shared and (value := getattr(ours[0], name)) is not None:
            title.append(prefix + shorten(value, _NAME_AT_MOST))
    lines = [", ".join(title)]
    for kind in KINDS:
        of_kind = [entry for entry in ours if entry.kind == kind]
        of_kind.sort(key=lambda entry: (entry.prompt or "", entry.tag or "", entry.path))
        table = as_table([_columns(entry, shared) for entry in of_kind], right=("rows", "bad", "left", "L×D", "size"))
        lines += [f"  {line}" for line in table]
        lines += _missing_lines(folder, kind, found)
    return lines + [line for entry in entries for line in _remark(entry)]


def _missing_lines(folder: AnyPath, kind: str, found: Survey) -> list[str]:
    """Return the first few models that a folder lacks; all of them are in the JSON."""
    lines = []
    for missing in found.missing:
        if (missing.folder, missing.kind) != (folder, kind):
            continue
        prompt = f", prompt {shorten(missing.prompt)}" if missing.prompt else ""
        prompt += f", tag {shorten(missing.tag)}" if missing.tag else ""
        n_missing = len(missing.models)
        if n_missing == missing.n_expected:
            n, names = f"all {n_missing}", ""
        else:
            n, names = f"{n_missing} of {missing.n_expected}", f": {', '.join(missing.models[:_MODELS_SHOWN])}"
            names += ", … (--json has all)" if n_missing > _MODELS_SHOWN else ""
        text = f"missing {n} {kind.replace('_', '-')} models of {found.models_file}{prompt}{names}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return lines


def _remark(entry: Entry) -> list[str]:
    """Return a line about an entry that is no features or is being written."""
    name = shorten(entry.path.name, _TEXT_AT_MOST)
    if entry.state == RUNNING:
        return [f"  running: {shorten(entry.model or name)}: {shorten(str(entry.holder), 200)}"]
    if entry.state not in (NOT_OURS, UNREADABLE, LEFTOVER):
        return []
    size = f" ({as_size(entry.n_bytes)})" if entry.n_bytes else ""
    line = f"{entry.state}: {name}{size}: {shorten(str(entry.reason), _TEXT_AT_MOST)}"
    return [f"  {textwrap.shorten(line, WIDTH - 2, placeholder=' …')}"]


def _columns(entry: Entry, shared: Sequence[str]) -> dict[str, str]:
    assert entry.shape is not None
    assert entry.layer_shapes is not None
    n_stimuli = entry.shape[0]
    written = _time(entry)
    columns = {
        "model": entry.model or "",
        "pool": "+".join(entry.pools),
        "prompt": entry.prompt or "",
        "tag": entry.tag or "",
        "state": entry.state,
        "rows": str(n_stimuli) if entry.rows_done == n_stimuli else f"{entry.rows_done}/{n_stimuli}",
        "bad": str(entry.bad_rows or ""),
        "left": counted(entry.shards_left, "shard") if entry.shards_left else "",
        "L×D": f"{len(entry.layer_shapes)}×{shapes_in_words(entry.layer_shapes)}",
        "size": as_size(entry.n_bytes),
        "written": f"{written:%Y-%m-%d %H:%M}" if written else "",
    }
    columns |= {name: str(getattr(entry, name)) for name in ("dtype", "lit_extract") if name not in shared}
    return {name: shorten(cell, _NAME_AT_MOST) for name, cell in columns.items()}
