"""Measures what is fast here, side by side, and writes RESULTS.md.

    python benchmarks/bench.py                       # all sections
    python benchmarks/bench.py vision finalize       # some
    python benchmarks/bench.py --quick               # does it work? Tiny sizes, written to build/benchmarks/

The numbers go to results/<machine>.json, and from all files there RESULTS.md is written: sections that were not
measured, and those of other machines, stay as they are.
"""

import argparse
import datetime
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import captions
import finalize
import language
import memory
import ranks
import startup
import streaming
import sweep
import text_encoder
import vision
from common import REPOSITORY, describe_machine, in_process, versions
from report import save_section, write_results

HERE = Path(__file__).parent
_ALL = (vision, sweep, language, streaming, text_encoder, ranks, finalize, memory, startup)
SECTIONS = {section.NAME: section for section in _ALL}


def main() -> int:
    """Measure, save and write; 1 when a section failed."""
    parser = argparse.ArgumentParser(description="Measure what is fast here, side by side.")
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, into build/benchmarks: only to see it work")
    parser.add_argument("--output", type=Path, help="folder of RESULTS.md and results/; default: benchmarks")
    parser.add_argument("--scratch", type=Path, help="where images and stores go, up to 12 GB; default: TMPDIR")
    parser.add_argument("--write", action="store_true", help="measure nothing, write RESULTS.md from what there is")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    output = args.output or (REPOSITORY / "build/benchmarks" if args.quick else HERE)
    output.mkdir(parents=True, exist_ok=True)
    if args.quick and not args.output and not args.write:
        shutil.rmtree(output / "results", ignore_errors=True)
    # This repository's code, no hub, and nothing left in the user's cache.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["HF_HUB_OFFLINE"] = "1"
    failed = False if args.write else measure(args.sections or list(SECTIONS), args.quick, output, args.scratch)
    write_results(output, [*SECTIONS.values(), captions])
    print(f"written: {output / 'RESULTS.md'}")
    return int(failed)


def measure(names: list[str], quick: bool, output: Path, scratch: Path | None) -> bool:
    """Measure sections and save each as soon as it is there; whether one failed."""
    machine = in_process(describe_machine)
    setting = "quick" if quick else machine["device"]
    print(f"{machine['name']}, {machine['memory']}", flush=True)
    failed = False
    for name in names:
        section = SECTIONS[name]
        print(f"{section.TITLE} …", flush=True)
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                numbers, notes = section.measure(setting, machine["device"] == "cuda", Path(folder))
        except Exception:  # the other sections do not hang on this one
            traceback.print_exc()
            failed = True
            continue
        seconds = time.perf_counter() - start
        save_section(
            output,
            machine,
            name,
            {
                "date": datetime.date.today().isoformat(),
                "versions": in_process(versions),
                "rounds": section.ROUNDS[setting],
                "seconds": round(seconds),
                "numbers": numbers,
                "notes": notes,
            },
        )
        print(f"{section.TITLE}: {seconds:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
