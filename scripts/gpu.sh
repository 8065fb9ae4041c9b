#!/bin/sh
# Tests and benchmarks on a GPU machine without a network, with its own Python and what that has installed.
#
#   scripts/gpu.sh                       the tests, then all benchmarks
#   scripts/gpu.sh test tests/modules    the tests, or some
#   scripts/gpu.sh bench vision sweep    all benchmarks, or some
#
# PYTHON=python3.12  another Python
# WHEELS=DIR         wheels of what is missing; they go into SITE (default: a folder of TMPDIR), not into the Python
# OUTPUT=DIR         gets RESULTS.md and results/; default: benchmarks
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
SITE=${SITE:-${TMPDIR:-/tmp}/lit-extract-site}
what=${1:-all}
[ $# -eq 0 ] || shift

if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

"$PYTHON" - <<'CHECK'
import sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

missing = []
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    wanted = Requirement(line)
    try:
        if version(wanted.name) not in wanted.specifier:
            print(f"warning: {wanted.name} {version(wanted.name)} is here, {wanted.specifier} is wanted")
    except PackageNotFoundError:
        missing.append(line)
if missing:
    sys.exit(f"not installed, and needed: {', '.join(missing)}; give them as wheels with WHEELS=DIR")
import torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {gpu}")
CHECK

has() { "$PYTHON" -c "import $1" 2>/dev/null; }

code=0
if [ "$what" = test ] || [ "$what" = all ]; then
    if has pytest; then
        # Of other versions than the pinned ones, warnings are no errors. A file that wants what is not here is named.
        set -- -m "not slow and not long and not real" -o addopts= -o filterwarnings= --continue-on-collection-errors -q "$@"
        if has xdist; then set -- -n 4 "$@"; else echo "tests one after the other: pytest-xdist is not installed"; fi
        "$PYTHON" -m pytest "$@" || code=1
        set --
    else
        echo "no tests: pytest is not installed"
    fi
fi
if [ "$what" = bench ] || [ "$what" = all ]; then
    "$PYTHON" benchmarks/bench.py "$@" --output "${OUTPUT:-benchmarks}" || code=1
fi
exit $code
