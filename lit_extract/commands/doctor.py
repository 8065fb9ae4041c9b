"""``lit-extract doctor``: what a bug report needs, and what a newcomer is missing."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.errors import printable


def doctor(output_dir: str = "features") -> int:
    """Print versions, GPU, precision, disk, hub and datasets, and the command that gets what is missing.

    Nothing secret is printed; a bug report may have it all. Exit code: 0 nothing is wrong (what is missing may not be
    needed), 3 something is.

    Args:
        output_dir: Where features are to be written.
    """
    from lit_extract.inspection.machine import examine

    states = []
    for finding in examine(output_dir):
        states.append(finding.state)
        mark = finding.state.upper() if finding.state == "wrong" else finding.state
        print(f"{mark:<8}{finding.what}: {printable(finding.found)}", flush=True)
        if finding.advice:
            print(f"{'':<8}  {printable(finding.advice)}", flush=True)
    counts = {state: states.count(state) for state in ("wrong", "missing")}
    print(f"\n{counts['wrong']} wrong, {counts['missing']} missing, which not everyone needs")
    return exit_codes.LOOK if counts["wrong"] else exit_codes.DONE


main = command(doctor, nargs={"output_dir": "?"})
