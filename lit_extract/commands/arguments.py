"""The order of arguments on a command line, which must not matter."""

from collections.abc import Sequence
from itertools import zip_longest

CONFIG_OPTIONS = ("--config", "-c")
CLASS_OPTIONS = ("--model", "--model.class_path", "--data", "--data.class_path")


def in_order(args: Sequence[str]) -> list[str]:
    """Put configs first, then the classes of model and data, then all else; each group keeps its own order.

    jsonargparse reads from left to right: it refuses a setting of a class that it does not know yet, and a config
    replaces the options before it.
    """
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    rest = list(args)
    while rest:
        option, has_value, _ = rest[0].partition("=")
        group = 0 if option in CONFIG_OPTIONS else 1 if option in CLASS_OPTIONS else 2
        n_parts = 1 if group == 2 or has_value else 2
        groups[group].extend(rest[:n_parts])
        del rest[:n_parts]
    return [part for group in groups for part in group]


def values_of(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the values that are given to some options, as ``--option value``, ``--option=value`` or ``-ovalue``."""
    values = []
    for part, following in zip_longest(args, args[1:]):
        option, has_value, value = part.partition("=")
        if option in options and (has_value or following is not None):
            values.append(value if has_value else following)
        elif part[:2] in options and not part.startswith("--"):
            values.append(part[2:])
    return values
