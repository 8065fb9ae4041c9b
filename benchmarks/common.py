"""What the benchmarks share: one measurement a process, medians over rounds, and a section of RESULTS.md."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def rounds(script, measurements, n_rounds):
    """Run each measurement of ``script`` in a process of its own, all of them in turn, ``n_rounds`` times.

    Args:
        script: The benchmark; ``script --measure NAME JSON`` prints a number, larger is better.
        measurements: For each label the name and the settings of a measurement.
        n_rounds: How often.

    Returns:
        The numbers of each label, a round each.
    """
    numbers = {label: [] for label in measurements}
    for turn in range(n_rounds):
        for label, (name, settings) in measurements.items():
            command = [sys.executable, script, "--measure", name, json.dumps(settings)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{label} failed:\n{done.stderr}")
            numbers[label].append(float(done.stdout.split()[-1]))
            print(f"round {turn + 1}: {label}: {numbers[label][-1]:.1f}", flush=True)
    return numbers


def ratio(numbers, label, other):
    """Median of the ratios, round by round: what drifts in both is left out."""
    return statistics.median(a / b for a, b in zip(numbers[label], numbers[other], strict=True))


def write_section(title, text):
    """Put a section into RESULTS.md, in place of the one of the same title."""
    whole = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# What is fast, measured side by side\n"
    section = f"## {title}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    there = pattern.search(whole) is not None
    whole = pattern.sub(lambda _: section + "\n", whole) if there else f"{whole.rstrip()}\n\n{section}"
    RESULTS.write_text(whole.rstrip() + "\n", encoding="utf-8")


def machine():
    """The machine and the versions, in a line."""
    import torch

    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
        model = re.search(r"model name\s*: (.*)", info)
        amx = ", AMX-bf16" if "amx_bf16" in info else ""
        hardware = f"{model[1] if model else platform.processor()}, {len(os.sched_getaffinity(0))} cores{amx}"
    return f"{hardware}; Python {platform.python_version()}, torch {torch.__version__}"
