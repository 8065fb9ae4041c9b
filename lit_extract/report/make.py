"""``lit-extract report``: from a folder of features to a page."""

from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from lit_extract.common.errors import InputError, name_some
from lit_extract.report import comparison, model, similarity
from lit_extract.report.measured import NUMBERS, Measured
from lit_extract.report.model import ModelReport
from lit_extract.report.sources import FEWEST_STIMULI, Source, find_sources, sample, shared_stimuli
from lit_extract.report.stimuli import Stimuli
from lit_extract.storage.places import is_folder, is_there, local_path

QUERIES = 4  # stimuli whose neighbours are shown
FEW_STIMULI = 100  # below this the page says that numbers are rough
NEEDED = ("jinja2", "matplotlib", "rsatoolbox")


def report(
    folder: str,
    out: str = "report",
    rows: int = 1000,
    seed: int = 0,
    permutations: int = 100,
    root: str | None = None,
    captions: str | None = None,
) -> list[str]:
    """Make the page ``<out>/index.html``, ``report.json`` and the figures as PNGs.

    Args:
        folder: Features of one dataset and subset; those of ``<folder>-untrained`` come along.
        out: Folder of the report; an older report in it is replaced.
        rows: Stimuli to sample.
        seed: Of the sample and the shuffles.
        permutations: Shuffles of the baseline.
        root: Folder of the dataset, for pictures; default: its environment variable.
        captions: CSV or Parquet, for captions.

    Returns:
        What a person should look into.

    Raises:
        InputError: A wrong setting, a missing package, no features, or too few stimuli.
    """
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise InputError(f"report needs {', '.join(missing)}: pip install 'lit-extract[report]'")
    from lit_extract.report.page import write

    _check_out(out)
    measured = measure(folder, rows, seed, permutations, root, captions)
    write(Path(out), measured)
    return measured.warnings


def measure(
    folder: str, rows: int, seed: int, permutations: int, root: str | None = None, captions: str | None = None
) -> Measured:
    """All numbers of a report, with the arguments of :func:`report`; nothing is drawn or written."""
    if rows < FEWEST_STIMULI:
        raise InputError(f"rows: {rows}; must be {FEWEST_STIMULI} or more")
    if permutations < 1:
        raise InputError(f"permutations: {permutations}; must be 1 or more")
    sources, left_out = find_sources(local_path(folder, "folder"))
    stimuli, notes = _open_stimuli(sources, root, captions)
    sources, rows_reports, usable, too_few = _look_at_rows(sources, stimuli)
    shared = shared_stimuli(usable)
    reports = _report_models(sources, rows_reports, usable, shared.compared, sample(shared.ids, rows, seed), rows, seed)
    places = [place for place, is_compared in enumerate(shared.compared) if is_compared]
    with tqdm(total=permutations, desc="shuffling", disable=None) as bar:
        pairs = comparison.compare(reports, places, permutations, seed, bar.update)
    sampled = reports[places[0]].sampled
    settings = {
        "folder": "/".join(Path(folder).absolute().parts[-2:]),
        "dataset": sources[0].features.provenance["dataset"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "permutations": permutations,
        "n_shared": len(shared.ids),
        "n_sampled": len(sampled),
        "k": similarity.neighbours_at_most(len(sampled)),
        "sampled": sampled,
    }
    notes += _notes(reports, shared.compared, len(shared.ids), len(sampled)) + ([stimuli.note] if stimuli.note else [])
    warnings = [f"left out: {reason}" for reason in left_out + too_few]
    warnings += [warning for found in reports for warning in _warnings(found)]
    return Measured(reports, pairs, stimuli, settings, notes, warnings)


def _check_out(out: str) -> None:
    target = local_path(out, "out")
    if is_there(target) and not is_folder(target):
        raise InputError(f"out: {out!r} is a file; give a folder for the report")
    if is_folder(target) and any(target.iterdir()) and not (target / NUMBERS).is_file():
        raise InputError(f"out: {out!r} holds something that is no report; give an empty or a new folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter of a NUL
        raise InputError(f"out: {out!r} can't be made: {getattr(error, 'strerror', error)}") from None


def _open_stimuli(sources: Sequence[Source], root: str | None, captions: str | None) -> tuple[Stimuli, list[str]]:
    """Pictures and captions of the dataset, and what to know about them."""
    notes = []
    datasets = list(dict.fromkeys(source.features.provenance["dataset"] for source in sources))
    if len(datasets) > 1:
        notes.append(f"Features of several datasets, {', '.join(datasets)}: pictures are of {datasets[0]}.")
    stimuli = Stimuli(datasets[0], root, captions)
    prompts = {source.features.provenance.get("prompt_name") for source in sources if source.kind == "language"}
    if captions is not None and len(prompts) > 1:
        stimuli.tell_captions_apart = False
        notes.append(
            f"Captions are those of {Path(captions).name}; the features are of captions of several prompts, "
            f"{', '.join(sorted(map(str, prompts)))}."
        )
    return stimuli, notes


def _look_at_rows(
    sources: Sequence[Source], stimuli: Stimuli
) -> tuple[list[Source], list[model.RowsReport], list[list[Hashable]], list[str]]:
    """What is wrong with rows, and the ids of those that can be sampled, of each source that has enough of them."""
    kept, reports, too_few = [], [], []
    usable: list[list[Hashable]] = []
    for source in tqdm(sources, desc="looking at all rows", disable=None):
        found = model.look_at_all_rows(source.features)
        rows = model.usable_rows(source.features, found.finite)
        if len(rows) < FEWEST_STIMULI:
            too_few.append(f"{source.label}: {len(rows)} rows; {FEWEST_STIMULI} are needed")
            continue
        kept.append(source)
        reports.append(model.report_rows(source, found, stimuli))
        usable.append([source.features.stimulus_ids[row] for row in rows])
    if not kept:
        raise InputError(f"folder: too few stimuli for a report: {name_some(too_few)}")
    return kept, reports, usable, too_few


def _report_models(
    sources: Sequence[Source],
    rows_reports: Sequence[model.RowsReport],
    usable: Sequence[list[Hashable]],
    compared: Sequence[bool],
    shared: list[Hashable],
    rows: int,
    seed: int,
) -> list[ModelReport]:
    """The models that are compared on the shared sample, each other on one of its own."""
    found = []
    with tqdm(total=sum(len(s.features.layers) for s in sources), desc="reading layers", disable=None) as bar:
        for source, report_of_rows, ids, is_compared in zip(sources, rows_reports, usable, compared, strict=True):
            sampled = shared if is_compared else sample(ids, rows, seed)
            queries = sample(sampled, QUERIES, seed)
            found.append(model.report_model(source, report_of_rows, sampled, queries, bar.update))
    return found


def _notes(reports: Sequence[ModelReport], compared: Sequence[bool], n_shared: int, n: int) -> list[str]:
    """What to know when reading the page."""
    notes = []
    sizes = {report.source.label: len(report.source.features.stimulus_ids) for report in reports}
    if set(sizes.values()) != {n_shared}:
        others = [f"{label} ({size})" for label, size in sizes.items() if size != n_shared]
        notes.append(
            f"{n_shared} stimuli are in all compared files and have numbers; some have more: {name_some(others)}."
        )
    if left := [report.source.label for report, is_compared in zip(reports, compared, strict=True) if not is_compared]:
        notes.append(f"Not compared with the others, as they have few stimuli in common with them: {name_some(left)}.")
    if n < FEW_STIMULI:
        k = similarity.neighbours_at_most(n)
        notes.append(
            f"Only {n} stimuli: the numbers are rough. Neighbours are the {k} nearest of {n - 1}, where the paper has "
            f"10 of 1,023; by chance {k / (n - 1):.0%} of them are in common."
        )
    for report in reports:
        if report.rows.missing:
            total = len(report.source.features.stimulus_ids)
            notes.append(
                f"{report.source.label}: {total - report.rows.missing} of {total} rows are done; the run goes on."
            )
        if constant := [layer.name for layer in report.layers if layer.constant]:
            notes.append(
                f"{report.source.label}: the same for all stimuli in {name_some(constant)}, so not compared there."
            )
    return notes


def _warnings(report: ModelReport) -> list[str]:
    """What a person should look into."""
    label, rows = report.source.label, report.rows
    found = []
    if rows.bad_input:
        found.append(f"{label}: {rows.bad_input} rows are NaN, as their image could not be read")
    if rows.not_finite:
        found.append(f"{label}: {rows.not_finite} rows are not finite in some layer")
    if rows.unlisted:
        found.append(f"{label}: {rows.unlisted} rows are not finite in the last layer, which the file does not say")
    if layers := [layer.name for layer in report.layers if layer.not_finite]:
        found.append(f"{label}: not finite for sampled stimuli, so not compared, in {name_some(layers)}")
    if layers := [layer.name for layer in report.layers if layer.follows_length]:
        way_out = (
            "; look at which tokens are massive"
            if report.source.features.provenance.get("exclude_bos")
            else "; leave it out with --model.exclude_bos true, or first for a tokenizer without BOS"
        )
        found.append(
            f"{label}: the size of features follows 1 / number of tokens, as when one massive token is averaged in, in "
            f"{name_some(layers)}{way_out}"
        )
    examples = "; ".join(" = ".join(map(str, group)) for group in rows.examples)
    precision = str(report.source.features.provenance.get("precision"))
    rounded = f" ({precision} may have rounded away what differs: extract again with --trainer.precision 32-true)"
    likely = rounded if precision.startswith("bf16") else ""
    if rows.identical_though_different:
        found.append(
            f"{label}: {rows.identical_though_different} rows are identical though their stimuli are not{likely}: "
            f"{examples}"
        )
    if rows.identical_unknown:
        found.append(
            f"{label}: {rows.identical_unknown} rows are identical; whether their stimuli are can't be told "
            f"{'without --captions' if report.source.kind == 'language' else 'without the images (--root)'}{likely}: "
            f"{examples}"
        )
    return found
