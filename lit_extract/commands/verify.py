"""``lit-extract verify``: whether features files are sound, and agree with an independent computation."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.imports import heavy_imports


def verify(
    files: list[str],
    parity: int | None = None,
    seed: int = 0,
    checkpoint: str | None = None,
    root: str | None = None,
    captions: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    model: str | None = None,
) -> int:
    """Check features files: checksums, completeness, NaN; with --parity, recompute stimuli independently.

    Prints a line for each file. The certificate of --parity is written next to it, as <file>.parity.json. Exit code: 0
    all are sound, 2 something is wrong with at least one.

    Args:
        files: Features files (.pt), and folders of them.
        parity: Number of stimuli to compute again, one at a time, in float32.
        seed: Which stimuli.
        checkpoint: Local weights, when the features are of such.
        root: Folder of the dataset; default: the dataset's environment variable.
        captions: The caption file that the features are of.
        device: "cpu" or "cuda"; default: a GPU if there is one.
        trust_remote_code: Run code that comes with the model.
        model: The model that the features are of, when it is to be trusted though models.yml does not list it.
    """
    with heavy_imports():
        from lit_extract.inspection.verify import verify as run
        from lit_extract.parity.certificate import RebuildSettings

    n_wrong = run(files, parity, seed, RebuildSettings(device, checkpoint, root, captions, trust_remote_code, model))
    return exit_codes.WRONG_INPUT if n_wrong else exit_codes.DONE


main = command(verify, nargs={"files": "+"})
