"""``lit-extract configs``: list the shipped configs, or print one as a starting point."""

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes
from lit_extract.common.console import as_table
from lit_extract.common.errors import InputError, nearest
from lit_extract.common.shipped import shipped_config, shipped_configs


def configs(name: str | None = None) -> int:
    """List the shipped configs, or print one as a starting point: lit-extract configs nsd/vision > my.yaml.

    Args:
        name: The config to print, such as nsd/vision.
    """
    shipped = shipped_configs()
    if name is None:
        words = {key: _first_words(path.read_text(encoding="utf-8")) for key, path in shipped.items()}
        rows = [{"config": key, "what it is": text} for key, text in words.items()]
        print("\n".join(as_table(rows)))
        return exit_codes.DONE
    if (path := shipped_config(name)) is None:
        hint = nearest(name, shipped) or "; lit-extract configs lists them"
        raise InputError(f"name: no config {name!r} ships with the package{hint}")
    print(path.read_text(encoding="utf-8"), end="")
    return exit_codes.DONE


main = command(configs, nargs={"name": "?"})


def _first_words(text: str) -> str:
    """Return the first comment line of a config, which describes it."""
    comment = next((line for line in text.splitlines() if line.startswith("# ")), "")
    return comment.removeprefix("# ")
