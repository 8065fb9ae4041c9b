"""``lit-extract show``: describe one features file or store, in words and as a picture."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.imports import heavy_imports


def show(path: str, pool: str | None = None, picture: str | None = None) -> int:
    """Print and plot the contents of a features file or an unfinished store.

    Args:
        path: A .pt file, or the .zarr folder of an unfinished run.
        pool: Pooling to show, if a store has several.
        picture: Picture to write, such as features.png: norms by layer, and dissimilarities of stimuli.
    """
    with heavy_imports():
        from lit_extract.inspection.show import describe
        from lit_extract.storage.features import load_features
        from lit_extract.storage.features_picture import draw
        from lit_extract.storage.places import local_path

    features = load_features(path, pool)
    print("\n".join(describe(features, path)))
    if picture is not None:
        draw(features, local_path(picture, "picture"))
        print(f"  drawn: {picture}")
    return exit_codes.DONE


main = command(show)
