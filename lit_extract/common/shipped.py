"""Files that ship with the package: configs, models.yml, captions of the demo.

In a clone they are next to the package, where people look for them; a wheel has them inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDER = _PACKAGE if (_PACKAGE / "models.yml").is_file() else _PACKAGE.parent
_FILES = ("models.yml", "derivatives/captions/demo-captions-handwritten.csv")


def shipped_file(name: str) -> Path | None:
    """Return the shipped file with this name, its path in a clone; None if there is none."""
    return _FOLDER / name if name in _FILES else None


def shipped_configs() -> dict[str, Path]:
    """Return the files of ``configs/`` by the names that ``--config`` takes, such as ``nsd/vision``."""
    folder = _FOLDER / "configs"
    files = [path for path in sorted(folder.glob("*/*")) if path.is_file()]
    return {path.relative_to(folder).as_posix().removesuffix(".yaml"): path for path in files}


def shipped_config(name: str) -> Path | None:
    """Return the shipped config with this name, or with this path in a clone, such as ``configs/nsd/vision.yaml``."""
    return shipped_configs().get(name.removeprefix("configs/").removesuffix(".yaml"))
