"""Features files and stores below a local folder."""

from pathlib import Path

from lit_extract.common.errors import InputError
from lit_extract.storage.layout import FEATURES_SUFFIX, GROUP_KEY, STORE_SUFFIX
from lit_extract.storage.places import AnyPath, is_folder, is_there, place_of


def refuse_plain_folder(path: AnyPath, setting: str) -> None:
    """Raise InputError for a folder that is not a store, and name the first features file or store in it."""
    folder = place_of(path).local
    if folder is None or not is_folder(folder) or folder.suffix == STORE_SUFFIX or is_there(folder / GROUP_KEY):
        return
    wanted = (STORE_SUFFIX,) if setting == "store" else (FEATURES_SUFFIX, STORE_SUFFIX)
    inside = features_below(folder, wanted)
    hint = f"give one of the {len(inside)} in it, such as {str(inside[0])!r}" if inside else "there are none in it"
    raise InputError(
        f"{setting}: {str(path)!r} is a folder, not {' or '.join(f'a {suffix}' for suffix in wanted)}; {hint}"
    )


def features_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the paths of features files, stores or both below a folder, sorted, but none inside stores."""
    found, _ = place_of(folder).list_files(folders_like=(STORE_SUFFIX,))
    return sorted(
        folder / path
        for path in map(Path, found)
        if path.suffix in suffixes
        and not path.name.startswith(".")
        and not any(parent.suffix == STORE_SUFFIX for parent in path.parents)
    )
