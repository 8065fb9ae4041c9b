"""The one exception that speaks to the user."""


class InputError(ValueError):
    """Something the user can mend: the setting, its value, and what is allowed.

    The command line prints it as one message without a traceback. Everything else that is
    raised is a defect of ours and keeps its traceback.
    """


def name_some(items: list[str], limit: int = 5) -> str:
    """The first few of many offenders, with the count of all."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def one_line(error: BaseException, limit: int = 400) -> str:
    """Another library's error, fit to stand inside a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
