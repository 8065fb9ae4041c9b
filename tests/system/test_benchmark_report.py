"""What the benchmarks write: medians and ratios that were computed by hand, and nothing lost that was not measured."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def report():
    file = Path(__file__).parents[2] / "benchmarks/report.py"
    spec = importlib.util.spec_from_file_location("benchmark_report", file)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def section(report):
    rates = report.Table("images a second", {"loop": report.PEER, "ours": report.OURS}, (("ours", "loop"),))
    times = report.Table("seconds", {"cp": report.LIMIT, "job": report.OURS}, (("job", "cp"),), more_is_better=False)
    return SimpleNamespace(NAME="speed", TITLE="Speed", TABLES=[rates, times], TEXT="What it is.")


NUMBERS = {
    "tiny": {"loop": [10.0, 20.0, 40.0], "ours": [30.0, 50.0, 80.0]},  # ratios 3, 2.5, 2
    "base": {"cp": [2.0, 4.0], "job": [4.0, 5.0]},  # 0.5, 0.8 times as fast
}


def save(report, folder, name, numbers=NUMBERS):
    machine = {"name": name, "file": name.lower(), "memory": "1 GB", "system": "Linux", "precision": "float32"}
    measured = {"date": "2026-01-01", "versions": "v1", "rounds": 3, "numbers": numbers, "notes": ["A note."]}
    report.save_section(folder, machine, "speed", measured)


def test_medians_spread_and_ratios(report, section, tmp_path):
    save(report, tmp_path, "Xeon")
    report.write_results(tmp_path, [section])
    lines = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert "| loop | 20.0 (10.0–40.0) |" in lines
    assert "| **ours** | 50.0 (30.0–80.0) |" in lines
    assert "| *ours: times as fast as loop* | 2.5× (2.0×–3.0×) |" in lines
    assert "| *job: times as fast as cp* | 0.65× (0.50×–0.80×) |" in lines
    assert "- A note." in lines
    assert (tmp_path / "results/xeon-speed.svg").read_text(encoding="utf-8").count("images a second") >= 1


def test_what_was_not_measured_stays(report, section, tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("# Title\n\n## Before\n\nOld 1.\n\n## Speed\n\nOld 2.\n\n## Behind\n\nOld 3.\n", encoding="utf-8")
    save(report, tmp_path, "Xeon")
    report.write_results(tmp_path, [section, SimpleNamespace(NAME="other", TITLE="Behind")])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n## Before\n\nOld 1.\n\n## Speed\n\nWhat it is.\n")
    assert text.endswith("\n\n## Behind\n\nOld 3.\n")
    assert "Old 2." not in text
    report.write_results(tmp_path, [section])
    assert page.read_text(encoding="utf-8") == text


def test_machines_stand_beside_each_other(report, section, tmp_path):
    save(report, tmp_path, "Xeon")
    save(report, tmp_path, "H100", {"tiny": {"loop": [1000.0], "ours": [9000.0]}})
    save(report, tmp_path, "H100", {"tiny": {"loop": [1000.0], "ours": [7000.0]}})  # again: the newer counts
    report.write_results(tmp_path, [section])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text.index("### H100") < text.index("| **ours** | 7,000 |") < text.index("### Xeon")
    assert "9,000" not in text
    assert "| **ours** | 50.0 (30.0–80.0) |" in text
