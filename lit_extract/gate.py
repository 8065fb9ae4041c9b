"""Waiting for one's turn: a sweep starts a model's process while the one before runs, to have its imports behind it."""

import os

VARIABLE = "LIT_EXTRACT_GATE"


def wait_for_turn() -> None:
    """Wait until the sweep opens the gate, if one has started this process; end when the sweep is gone.

    Up to here a process has imported and looked for its receipt: nothing is read that another model's run could change.
    """
    descriptor = os.environ.pop(VARIABLE, None)  # ranks that this process starts have no gate
    if descriptor is None:
        return
    with open(int(descriptor), "rb", buffering=0) as gate:  # noqa: PTH123 (a descriptor)
        if not gate.read(1):
            raise SystemExit(1)
