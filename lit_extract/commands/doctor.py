"""``lit-extract doctor``: print what a bug report needs, and how to install what is missing."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.errors import printable


def doctor(output_dir: str = "features") -> int:
    """Print versions, GPU, precision, disk, hub and datasets, with a command for everything that is missing.

    The output contains no secrets, so all of it can go into a bug report. Exit code: 0 nothing is wrong (you may not
    need what is missing), 3 something is wrong.

    Args:
        output_dir: Folder for features; its disk is checked.
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
    print(f"\n{counts['wrong']} wrong, {counts['missing']} missing (you may not need it)")
    return exit_codes.LOOK if counts["wrong"] else exit_codes.DONE


main = command(doctor, nargs={"output_dir": "?"})
