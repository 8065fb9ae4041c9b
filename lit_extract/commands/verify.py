"""``lit-extract verify``: check that features files are sound, and agree with an independent computation."""

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
    """Check features files for damage and NaN; with --parity, recompute some stimuli independently.

    One line is printed for each file. --parity also writes a certificate next to it, <file>.parity.json. Exit code: 0
    all files are sound, 2 at least one is not, or can't be checked.

    Args:
        files: Features files (.pt), or folders that contain them.
        parity: Number of stimuli to recompute, one at a time, in float32; default: none.
        seed: Seed for choosing these stimuli.
        checkpoint: Local weights, if the features were made with local weights.
        root: Folder of the dataset; default: the dataset's environment variable.
        captions: Caption file from which the features were made.
        device: "cpu" or "cuda"; default: the GPU if there is one.
        trust_remote_code: Run code that comes with the model.
        model: Model of the features, to trust it although models.yml does not list it.
    """
    with heavy_imports():
        from lit_extract.inspection.verify import verify as run
        from lit_extract.parity.certificate import RebuildSettings

    n_wrong = run(files, parity, seed, RebuildSettings(device, checkpoint, root, captions, trust_remote_code, model))
    return exit_codes.WRONG_INPUT if n_wrong else exit_codes.DONE


main = command(verify, nargs={"files": "+"})
