"""``make fuzz``: the fuzz tests again and again, each time with other examples, then a table of what came of them."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.guard import OTHER, REFUSED, RIGHT, TALLY


def main() -> int:
    """Run until the time is over, or something fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--processes", default="2")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", parser.parse_args().processes, "--timeout", "3600"]
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder, "tally")
        tally.touch()
        while True:
            code = subprocess.run(
                [*command, str(Path(__file__).parent)], env={**os.environ, TALLY: str(tally)}
            ).returncode
            print(table(tally.read_text(encoding="utf-8")), flush=True)
            if code or time.monotonic() > end:
                return code


def table(tally: str) -> str:
    """What was read, how often, and what came of it."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in tally.splitlines():
        what, result, n = json.loads(line)
        counts[what, result] += n
    kinds = sorted({what for what, _ in counts})
    lines = [f"{'read':<40} {'inputs':>9} {'refused':>9} {'right':>9} {'other':>6}"]
    for what in kinds:
        refused, right, other = (counts[what, result] for result in (REFUSED, RIGHT, OTHER))
        lines.append(f"{what:<40} {refused + right + other:>9,} {refused:>9,} {right:>9,} {other:>6,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
