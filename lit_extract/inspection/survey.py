"""Find what is below a features folder: from names, sizes and small records only, without torch and zarr.

N stimuli, L layers, D hidden size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import shorten
from lit_extract.modules.registry import default_models_file, own_name, read_models
from lit_extract.storage.features_form import form_of, read_features_content
from lit_extract.storage.layout import FEATURES_SUFFIX, STORE_SUFFIX, stacked_shape
from lit_extract.storage.places import LOCK_SUFFIX, PART_SUFFIX, AnyPath, File, place_of, to_path
from lit_extract.storage.provenance import kind_of
from lit_extract.storage.store_metadata import read_layout

DONE, RUNNING, UNFINISHED, COMPLETE, KEPT = "done", "running", "unfinished", "complete", "kept"
LEFTOVER, NOT_OURS, UNREADABLE = "leftover", "not ours", "unreadable"

_STORE_SUFFIXES = (STORE_SUFFIX, STORE_SUFFIX + PART_SUFFIX)


@dataclass(frozen=True)
class Entry:
    """A features file or a store; what can't be known is None.

    A features file is "done". A store is "running" (a process is writing it), "unfinished" (the same predict command
    resumes it), "complete" (all rows, but no features file yet), "kept" (on purpose, next to its files) or "leftover"
    (half made or half removed; the next run deletes it). Of "not ours" and "unreadable" see the reason.
    """

    path: AnyPath
    state: str
    n_bytes: int  # on disk
    modified: float  # when any of it was written last, in seconds since 1970
    reason: str | None = None
    holder: str | None = None  # process and host that are writing it
    model: str | None = None
    kind: str | None = None
    dataset: str | None = None
    subset: str | None = None
    untrained: bool | None = None
    pools: tuple[str, ...] = ()
    prompt: str | None = None
    tag: str | None = None
    sweep: bool = False  # made by a sweep through all models of its kind
    shape: tuple[int, ...] | None = None  # (N, L, D); (N, L) if layers differ in shape
    layer_shapes: Sequence[tuple[int, ...]] | None = None  # of a row in each layer
    dtype: str | None = None
    rows_done: int | None = None
    shards_left: int | None = None
    bad_rows: int | None = None  # of a file: not finite
    created: str | None = None  # when the run began, ISO 8601
    lit_extract: str | None = None


@dataclass(frozen=True)
class Missing:
    """Models of models.yml that a folder has nothing of, though a sweep has made others of their kind there."""

    folder: AnyPath
    kind: str
    prompt: str | None
    models: list[str]
    n_expected: int  # all of this kind in models.yml
    tag: str | None = None


@dataclass(frozen=True)
class Survey:
    """The features files and stores of a folder, and what else its models.yml has."""

    folder: AnyPath
    models_file: Path
    entries: list[Entry]
    missing: list[Missing]


def survey(folder: str | Path = "features", models: str | Path | None = None) -> Survey:
    """Look through a features folder, local or remote, and compare it with a models.yml.

    Raises:
        InputError: No such folder or models file, or a remote one can't be reached.
    """
    root = to_path(str(folder), "folder")
    expected = {kind: [own_name(model.name) for model in listed] for kind, listed in read_models(models).items()}
    try:
        files, unreadable = place_of(root).list_files(_STORE_SUFFIXES, files_like=(FEATURES_SUFFIX,))
    except NotADirectoryError as error:
        hint = f"; lit-extract show {shorten(str(root), 1000)} describes one file" if place_of(root).exists() else ""
        raise InputError(f"folder: {error}{hint}") from None
    closed = [Entry(path, UNREADABLE, 0, 0.0, reason) for path, reason in unreadable.items()]
    entries = [*_entries(root, files), *closed]
    entries.sort(key=lambda entry: (f"{entry.path.parent}/", entry.path.name))  # folder by folder
    return Survey(root, Path(models or default_models_file()), entries, find_missing(entries, expected))


def find_missing(entries: Iterable[Entry], expected: Mapping[str, list[str]]) -> list[Missing]:
    """Return the expected models (names by kind) that are missing, by folder, kind, prompt and tag of a sweep.

    Features that single commands made are no sign that others are wanted.
    """
    found: dict[tuple[AnyPath, str, str | None, str | None], set[str]] = {}
    swept = set()
    for entry in entries:
        if entry.model is not None and entry.kind is not None:
            group = entry.path.parent, entry.kind, entry.prompt, entry.tag
            found.setdefault(group, set()).add(entry.model)
            if entry.sweep:
                swept.add(group)
    groups = [
        Missing(folder, kind, prompt, [name for name in expected[kind] if name not in models], len(expected[kind]), tag)
        for (folder, kind, prompt, tag), models in found.items()
        if (folder, kind, prompt, tag) in swept
    ]
    return [group for group in groups if group.models]


def _entries(root: AnyPath, listing: Mapping[str, File]) -> Iterator[Entry]:
    stores: dict[AnyPath, dict[str, File]] = {}
    features: dict[AnyPath, File] = {}
    locked: list[AnyPath] = []
    for key, file in listing.items():
        parts = key.split("/")
        path, name = root / key, parts[-1]
        store = next((place for place, part in enumerate(parts) if part.endswith(_STORE_SUFFIXES)), None)
        if store is not None:
            stores.setdefault(root.joinpath(*parts[: store + 1]), {})["/".join(parts[store + 1 :])] = file
        elif name.endswith((FEATURES_SUFFIX, FEATURES_SUFFIX + PART_SUFFIX)):
            features[path] = file
        elif name.startswith(".") and name.endswith(STORE_SUFFIX + LOCK_SUFFIX):
            locked.append(path.with_name(name[1 : -len(LOCK_SUFFIX)]))
    holders = {target: holder for target in locked if (holder := place_of(target).lock_holder())}
    for path, files in stores.items():
        target = path.with_name(path.name.removesuffix(PART_SUFFIX))
        yield _store_entry(path, files, holders.get(target), features)
    for target in holders.keys() - {path.with_name(path.name.removesuffix(PART_SUFFIX)) for path in stores}:
        yield Entry(target, RUNNING, 0, 0.0, holder=holders[target])
    written_in = {target.parent for target in holders}
    for path, file in features.items():
        if path.name.endswith(FEATURES_SUFFIX):
            yield from _features_entry(path, file)
        elif path.parent not in written_in:
            yield Entry(path, LEFTOVER, *file, "of a run that was killed while it made the features file")


def _store_entry(
    path: AnyPath, files: Mapping[str, File], holder: str | None, features: Mapping[AnyPath, File]
) -> Entry:
    n_bytes = sum(file.size for file in files.values())
    entry = Entry(path, RUNNING, n_bytes, max(file.modified for file in files.values()), holder=holder)
    if path.name.endswith(PART_SUFFIX):
        reason = "of a run that was killed while it made or removed the store"
        return entry if holder else replace(entry, state=LEFTOVER, reason=reason)
    try:
        layout = read_layout(path)
        known = _identity(layout.provenance, layout.notes)
    except (ValueError, OSError) as error:
        return entry if holder else replace(entry, **_what_is_wrong(error))
    done = layout.done_shards({key: file.size for key, file in files.items()})
    left = layout.n_shards - len(done)
    are_made = all(path.parent / name in features for name in layout.notes["files"].values())
    if not holder and not left and not layout.is_kept and are_made:
        reason = "its features files are made; the same predict command removes it"
        return replace(entry, state=LEFTOVER, reason=reason)
    return replace(
        entry,
        state=RUNNING if holder else UNFINISHED if left else KEPT if layout.is_kept else COMPLETE,
        pools=tuple(layout.pools),
        shape=stacked_shape(layout.n_stimuli, layout.layer_shapes),
        layer_shapes=layout.layer_shapes,
        dtype=layout.dtype,
        rows_done=layout.n_rows(done),
        shards_left=left,
        **known,
    )


def _features_entry(path: AnyPath, file: File) -> Iterator[Entry]:
    entry = Entry(path, DONE, *file)
    try:
        with place_of(path).open_to_read() as opened:
            content = read_features_content(opened)
        form, metadata = form_of(content), content["metadata"]
        yield replace(
            entry,
            pools=(metadata["provenance"]["pool"],),
            shape=stacked_shape(form.n_stimuli, form.layer_shapes),
            layer_shapes=form.layer_shapes,
            dtype=form.dtype,
            rows_done=form.n_stimuli,
            bad_rows=len(metadata["bad_input_rows"]) + len(metadata["not_finite_rows"]),
            **_identity(metadata["provenance"], metadata["notes"]),
        )
    except FileNotFoundError:  # removed a moment ago
        return
    except (ValueError, OSError) as error:
        yield replace(entry, **_what_is_wrong(error))


def _what_is_wrong(error: ValueError | OSError) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"state": UNREADABLE, "reason": error.strerror or one_line(error)}
    return {"state": NOT_OURS, "reason": one_line(error)}


def _identity(provenance: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry is of and by, if all of that is there; what is there was checked when it was read."""
    if missing := {"model", "dataset", "subset", "weights"} - provenance.keys():
        raise ValueError(f"its provenance has no {', '.join(sorted(missing))}")
    return {
        **{key: provenance[key] for key in ("model", "dataset", "subset")},
        "kind": kind_of(provenance),
        "untrained": provenance["weights"] == "untrained",
        "prompt": provenance.get("prompt_name"),
        **{key: notes.get(key) for key in ("tag", "created", "lit_extract")},
        "sweep": notes.get("sweep", False),
    }
