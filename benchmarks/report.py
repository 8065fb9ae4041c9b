"""RESULTS.md, made from numbers: a table and a picture for each section and machine, from results/<machine>.json."""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OURS, PEER, LIMIT, ASIDE = "ours", "peer", "limit", "aside"  # what a row is; ASIDE: in the table, not in the picture


@dataclass(frozen=True)
class Table:
    """How a section shows its numbers: a row for each label.

    Args:
        unit: Of all numbers.
        rows: What each label is.
        shares: Pairs of labels: how many times as fast the first is as the second.
        more_is_better: Rates, not seconds.
        has_picture: It is drawn.
    """

    unit: str
    rows: dict[str, Literal["ours", "peer", "limit", "aside"]]
    shares: tuple[tuple[str, str], ...] = ()
    more_is_better: bool = True
    has_picture: bool = True


def save_section(folder: Path, machine: dict[str, Any], name: str, section: dict[str, Any]) -> None:
    """Put a section's numbers into the file of the machine, next to those of other sections."""
    file = folder / "results" / f"{machine['file']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}
    content["machine"] = machine
    content["sections"][name] = section
    file.write_text(_compact(json.dumps(content, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8")


def write_results(folder: Path, sections: list[Any]) -> None:
    """Write the sections of RESULTS.md that have numbers, of any machine; keep the others."""
    files = sorted((folder / "results").glob("*.json"))
    machines = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for section in sections:
        measured = [content for content in machines if section.NAME in content["sections"]]
        if not measured:
            continue
        parts = [section.TEXT.strip()]
        for content in measured:
            parts.append(_of_machine(folder, section, content["machine"], content["sections"][section.NAME]))
        _write_section(folder / "RESULTS.md", section.TITLE, "\n\n".join(parts))


def _of_machine(folder: Path, section: Any, machine: dict[str, Any], measured: dict[str, Any]) -> str:
    numbers = measured["numbers"]
    parts = [f"### {machine['name']}"]
    for place, table in enumerate(section.TABLES):
        columns = {column: rows for column, rows in numbers.items() if set(rows) & set(table.rows)}
        if not columns:
            continue
        parts.append(_markdown(table, columns))
        picture = folder / "results" / f"{machine['file']}-{section.NAME}{place or ''}.svg"
        if table.has_picture:
            _draw(table, columns, picture)
        if table.has_picture and picture.exists():
            parts.append(f"![{section.TITLE}, {table.unit}](results/{picture.name})")
    parts += [f"- {note}" for note in measured["notes"]]
    how = f"medians of {measured['rounds']} rounds (lowest–highest), ratios taken round by round"
    about = [f"{machine['memory']} of memory", machine["system"], f"models in {machine['precision']}"]
    facts = [measured["date"], *([how] if measured["rounds"] > 1 else []), *about, measured["versions"]]
    parts.append(f"{'; '.join(facts)}.")
    return "\n\n".join(parts)


def _markdown(table: Table, columns: dict[str, dict[str, list[float]]]) -> str:
    lines = [f"| {table.unit} | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for label, role in table.rows.items():
        cells = [_with_spread(rows.get(label), _number) for rows in columns.values()]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {f'**{label}**' if role == OURS else label} | {' | '.join(cells)} |")
    for label, other in table.shares:
        cells = [_with_spread(_ratios(table, rows, label, other), _ratio) for rows in columns.values()]
        if any(cell != "–" for cell in cells):
            lines.append(f"| *{label}: times as fast as {other}* | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(table: Table, rows: dict[str, list[float]], label: str, other: str) -> list[float] | None:
    """How many times as fast, round by round: what drifts in both is left out."""
    if label not in rows or other not in rows:
        return None
    pairs = list(zip(rows[label], rows[other], strict=False))
    return [a / b if table.more_is_better else b / a for a, b in pairs]


def _with_spread(numbers: list[float] | None, text: Any) -> str:
    if not numbers:
        return "–"
    middle, low, high = (text(f(numbers)) for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _ratio(number: float) -> str:
    return f"{number:.1f}×" if number >= 1.95 else f"{number:.2f}×"


def _write_section(results: Path, title: str, text: str) -> None:
    """Put a section into RESULTS.md, in place of the one of the same title."""
    whole = results.read_text(encoding="utf-8") if results.exists() else _INTRODUCTION
    section = f"## {title}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    there = pattern.search(whole) is not None
    whole = pattern.sub(lambda _: section + "\n", whole) if there else f"{whole.rstrip()}\n\n{section}"
    results.write_text(whole.rstrip() + "\n", encoding="utf-8")


_INTRODUCTION = """# Benchmarks

`make bench` measures all sections, or some (`make bench ONLY="vision finalize"`): one process per measurement, all in
turn, several rounds. It writes the numbers of this machine to [results](results), and this page from all results
there, so machines are next to each other. On a machine with a GPU, the same command measures the GPU.
"""


def _compact(text: str) -> str:
    """A list of numbers in one line."""
    return re.sub(r"\[\s+([-0-9.e+,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


_COLOURS = {OURS: "#2563eb", PEER: "#9ca3af", LIMIT: "#e5e7eb"}
_LEGEND = {OURS: "lit-extract", PEER: "others", LIMIT: "limits of the machine"}


def _draw(table: Table, columns: dict[str, dict[str, list[float]]], picture: Path) -> None:
    """Bars side by side, a panel for each column; on white, so that it can be read on a dark page too."""
    try:
        import matplotlib
    except ImportError:
        print(f"{picture.name} is not drawn: matplotlib is not installed; bench.py --write draws it where it is")
        picture.unlink(missing_ok=True)  # one of other numbers
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    style = {"svg.fonttype": "none", "svg.hashsalt": "lit-extract", "font.family": "sans-serif", "font.size": 9}
    labels = [
        label for label, role in table.rows.items() if role != ASIDE and any(label in rows for rows in columns.values())
    ]
    with plt.rc_context(style):
        size = 2.4 + max(4.5, 2.5 * len(columns)), 1.2 + 0.28 * len(labels)
        figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, layout="constrained", squeeze=False)
        for axis, (column, rows) in zip(axes[0], columns.items(), strict=True):
            for place, label in enumerate(labels):
                if numbers := rows.get(label):
                    _draw_bar(axis, place, numbers, table.rows[label])
            axis.set_title(column, fontsize=9)
            axis.set_xlabel(table.unit)
            axis.set_xlim(0, 1.3 * max(statistics.median(rows[label]) for label in labels if label in rows))
            axis.locator_params(axis="x", nbins=5)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].set_yticks(range(len(labels)), labels)
        axes[0][0].invert_yaxis()
        roles = {role: _bar_style(role) for role in dict.fromkeys(table.rows[label] for label in labels)}
        handles = [Patch(label=_LEGEND[role], **bar_style) for role, bar_style in roles.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        figure.savefig(picture, facecolor="white", metadata={"Date": None})
        plt.close(figure)


def _draw_bar(axis: Any, place: int, numbers: list[float], role: str) -> None:
    middle = statistics.median(numbers)
    spread = [[middle - min(numbers)], [max(numbers) - middle]]
    axis.barh(place, middle, 0.7, **_bar_style(role))
    if len(numbers) > 1:
        axis.errorbar(middle, place, xerr=spread, color="#111827", linewidth=0.8, capsize=2)
    axis.annotate(_number(middle), (max(numbers), place), (4, 0), textcoords="offset points", va="center")


def _bar_style(role: str) -> dict[str, Any]:
    edge, hatch = ("#6b7280", "////") if role == LIMIT else (_COLOURS[role], None)
    return {"facecolor": _COLOURS[role], "edgecolor": edge, "hatch": hatch, "linewidth": 0.6}
