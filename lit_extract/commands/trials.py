"""``lit-extract trials``: write the stimulus of each trial of a subject."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.errors import InputError, counted


def trials(
    dataset: str,
    subject: int | None = None,
    root: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write a table of the stimulus in each trial of a subject, in the order of the dataset's beta files.

    Args:
        dataset: nsd, bold5000 or things.
        subject: Number of the subject, counted from 1; required.
        root: Folder of the dataset; default: its environment variable, such as NSD_DATASET.
        output: CSV to write; default: trials-<dataset>-<subject>.csv.
        overwrite: Replace an existing file.
    """
    from lit_extract.commands.tables import write_table
    from lit_extract.datasets import load_trials

    if subject is None:
        raise InputError("subject: missing; pass the number of the subject, --subject N")
    table = load_trials(dataset, subject, root)
    path = Path(output or f"trials-{dataset}-{subject}.csv")
    write_table(table, path, overwrite)
    shown, missing = table["stimulus_id"].nunique(), int(table["row"].isna().sum())
    numbers = counted(len(table), "trial"), counted(table["session"].nunique(), "session")
    print(f"{path}\n  {' of '.join(numbers)}, {counted(shown, 'stimulus', 'stimuli')}")
    if missing:
        print(f"  {counted(missing, 'trial has', 'trials have')} a stimulus whose image is missing")
    return exit_codes.DONE


main = command(trials)
