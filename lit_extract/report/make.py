"""``lit-extract report``: turn a folder of features into a page."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_extract import __version__
from lit_extract.common.errors import InputError, counted, name_some
from lit_extract.report import similarity
from lit_extract.report.comparison import Pair, compare
from lit_extract.report.model import ModelReport, examine_rows, report_model
from lit_extract.report.sources import FEWEST_STIMULI, Source, find_sources, sample, shared_stimuli
from lit_extract.report.stimuli import Stimuli
from lit_extract.storage.folder import mixed_images
from lit_extract.storage.places import is_folder, is_there, local_path

QUERIES = 4  # stimuli whose neighbours are shown
FEW_STIMULI = 100  # below this the page says that numbers are rough


def report(
    folder: str,
    out: str = "report",
    rows: int = 1000,
    seed: int = 0,
    permutations: int = 100,
    root: str | None = None,
    captions: str | None = None,
) -> list[str]:
    """Make the page ``<out>/index.html``, ``report.json`` and the figures; return the warnings.

    The arguments are those of the command in ``commands/report.py``.

    Raises:
        InputError: A wrong setting, a missing package, no features, or too few stimuli.
    """
    if missing := [package for package in ("jinja2", "matplotlib", "rsatoolbox") if find_spec(package) is None]:
        raise InputError(f"report needs {', '.join(missing)}: pip install 'lit-extract[report]'")
    from lit_extract.report.page import write

    _check_out(out)
    numbers, models, pairs, stimuli = measure(folder, rows, seed, permutations, root, captions)
    write(Path(out), numbers, models, pairs, stimuli)
    warnings: list[str] = numbers["warnings"]
    return warnings


def measure(
    folder: str, rows: int, seed: int, permutations: int, root: str | None = None, captions: str | None = None
) -> tuple[dict[str, Any], list[ModelReport], list[Pair], Stimuli]:
    """Compute all numbers of a report, as in report.json; nothing is drawn or written.

    Also return what else the page needs: the models, the compared pairs, and the stimuli.
    """
    if rows < FEWEST_STIMULI:
        raise InputError(f"rows: {rows}; must be {FEWEST_STIMULI} or more")
    if permutations < 1:
        raise InputError(f"permutations: {permutations}; must be 1 or more")
    sources, left_out = find_sources(local_path(folder, "folder"))
    stimuli, notes = _open_stimuli(sources, root, captions)
    progress = tqdm(sources, desc="looking at all rows", disable=None)
    examined = [(source, *examine_rows(source, stimuli)) for source in progress]
    enough = [of_source for of_source in examined if len(of_source[2]) >= FEWEST_STIMULI]
    left_out += [
        f"{source.label}: {counted(len(ids), 'row')}; {FEWEST_STIMULI} are needed"
        for source, _, ids in examined
        if len(ids) < FEWEST_STIMULI
    ]
    if not enough:
        raise InputError(f"folder: too few stimuli for a report; left out: {name_some(left_out)}")
    shared, is_compared = shared_stimuli([ids for _, _, ids in enough])
    sampled = sample(shared, rows, seed)
    models, compared = [], []
    for (source, found, ids), has_shared in zip(
        tqdm(enough, desc="reading layers", disable=None), is_compared, strict=True
    ):
        own = sampled if has_shared else sample(ids, rows, seed)
        models.append(report_model(source, found, own, sample(own, QUERIES, seed)))
        compared += models[-1:] if has_shared else []
    pairs = compare(compared, permutations, seed)
    notes += _notes(models, compared, len(shared), len(sampled)) + ([stimuli.note] if stimuli.note else [])
    warnings = [f"left out: {reason}" for reason in left_out]
    if mixed := mixed_images(dict.fromkeys(source.features.path for source in sources)):
        warnings.insert(0, mixed)
    numbers = {
        "format": 2,
        "lit_extract": __version__,
        "folder": "/".join(Path(folder).absolute().parts[-2:]),
        "dataset": sources[0].features.provenance["dataset"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "permutations": permutations,
        "n_shared": len(shared),
        "n_sampled": len(sampled),
        "k": similarity.neighbours_at_most(len(sampled)),
        "sampled": sampled,
        "notes": notes,
        "warnings": warnings + [warning for model in models for warning in _warnings(model)],
        "models": [model.numbers() for model in models],
        "pairs": [pair.numbers() for pair in pairs],
    }
    return numbers, models, pairs, stimuli


def _check_out(out: str) -> None:
    target = local_path(out, "out")
    if is_there(target) and not is_folder(target):
        raise InputError(f"out: {out!r} is a file; give a folder for the report")
    if is_folder(target) and any(target.iterdir()) and not (target / "report.json").is_file():
        raise InputError(f"out: {out!r} contains something other than a report; give an empty or a new folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter of a NUL
        raise InputError(f"out: {out!r} can't be made: {getattr(error, 'strerror', error)}") from None


def _open_stimuli(sources: Sequence[Source], root: str | None, captions: str | None) -> tuple[Stimuli, list[str]]:
    """Open images and captions of the dataset; return them with notes about them."""
    notes = []
    datasets = list(dict.fromkeys(source.features.provenance["dataset"] for source in sources))
    if len(datasets) > 1:
        notes.append(f"Features of several datasets, {', '.join(datasets)}: pictures are from {datasets[0]}.")
    prompts = {source.features.provenance.get("prompt_name") for source in sources if source.is_of_captions}
    if captions is not None and len(prompts) > 1:
        notes.append(
            f"Captions are from {Path(captions).name}; the features are of captions of several prompts, "
            f"{', '.join(sorted(map(str, prompts)))}."
        )
    return Stimuli(datasets[0], root, captions, captions_are_theirs=len(prompts) <= 1), notes


def _notes(models: Sequence[ModelReport], compared: Sequence[ModelReport], n_shared: int, n: int) -> list[str]:
    """Return notes for readers of the page."""
    notes = []
    sizes = {model.source.label: len(model.source.features.stimulus_ids) for model in models}
    if others := [f"{label} ({size})" for label, size in sizes.items() if size != n_shared]:
        notes.append(
            f"{n_shared} stimuli have numbers in all compared files; some files have more: {name_some(others)}."
        )
    if alone := [model.source.label for model in models if model not in compared]:
        notes.append(f"Not compared with the others, because they share too few stimuli: {name_some(alone)}.")
    if n < FEW_STIMULI:
        k = similarity.neighbours_at_most(n)
        notes.append(
            f"Only {n} stimuli: the numbers are rough. Neighbours are the {k} nearest of {n - 1} (in the paper, 10 of "
            f"1,023); by chance {k / (n - 1):.0%} of them are shared."
        )
    for model in models:
        label, total = model.source.label, len(model.source.features.stimulus_ids)
        if model.rows.missing:
            notes.append(f"{label}: {total - model.rows.missing} of {total} rows are done; the run is not finished.")
        if constant := [layer.name for layer in model.layers if layer.constant]:
            notes.append(f"{label}: identical for all stimuli in {name_some(constant)}, so not compared there.")
    return notes


def _warnings(report: ModelReport) -> list[str]:
    """Return the warnings about a model."""
    rows, provenance = report.rows, report.source.features.provenance
    found = []
    if rows.bad_input:
        nan = counted(rows.bad_input, "row is NaN, because its image", "rows are NaN, because their image")
        found.append(f"{nan} could not be read")
    if rows.not_finite:
        found.append(f"{counted(rows.not_finite, 'row is', 'rows are')} not finite in some layer")
    if rows.unlisted:
        found.append(
            f"{counted(rows.unlisted, 'row is', 'rows are')} not finite in the last layer, but not listed in the file"
        )
    if layers := [layer.name for layer in report.layers if layer.not_finite]:
        found.append(f"not finite for some sampled stimuli, so not compared, in {name_some(layers)}")
    if layers := [layer.name for layer in report.layers if layer.follows_length]:
        way_out = (
            "check which tokens are massive"
            if provenance.get("exclude_bos")
            or provenance.get("special_tokens") == "excluded"
            or "sinks" in provenance.get("exclude", ())
            else "exclude it with --model.exclude sinks"
        )
        found.append(
            "the norm of features follows 1 / number of tokens, a sign that one massive token is averaged in, in "
            f"{name_some(layers)}; {way_out}"
        )
    precision = str(provenance.get("precision"))
    rounded = f" (rounding to {precision} may be the cause: extract again with --trainer.precision 32-true)"
    likely = rounded if precision.startswith("bf16") else ""
    examples = "; ".join(" = ".join(map(str, group)) for group in rows.examples)
    needed = "--captions" if report.source.is_of_captions else "the images (--root)"
    for count, text in (
        (rows.identical_though_different, "are identical although their stimuli differ"),
        (rows.identical_unknown, f"are identical; whether their stimuli differ can't be checked without {needed}"),
    ):
        if count:
            found.append(f"{count} rows {text}{likely}: {examples}")
    return [f"{report.source.label}: {warning}" for warning in found]
