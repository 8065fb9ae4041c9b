"""The order of arguments on a command line, which must not matter."""

from collections.abc import Sequence

CONFIG_OPTIONS = ("--config", "-c")
_CLASS_OPTIONS = ("--model", "--model.class_path", "--data", "--data.class_path")


def in_order(args: Sequence[str]) -> list[str]:
    """Put configs first, then the classes of model and data, then all else; each group keeps its own order.

    jsonargparse reads from left to right: it refuses a setting of a class that it does not know yet, and a config
    replaces the options before it.
    """
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    rest = list(args)
    while rest:
        option, has_value, _ = rest[0].partition("=")
        group = 0 if option in CONFIG_OPTIONS else 1 if option in _CLASS_OPTIONS else 2
        n_parts = 1 if group == 2 or has_value else 2
        groups[group].extend(rest[:n_parts])
        del rest[:n_parts]
    return [part for group in groups for part in group]
