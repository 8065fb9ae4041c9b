"""``lit-extract review``: a page in the browser on which captions are edited."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes


def review(
    file: str,
    dataset: str | None = None,
    root: str | None = None,
    port: int = 0,
    no_browser: bool = False,
    follow_links: bool = False,
    choices: list[str] | None = None,
    sentences: int | None = None,
    languages: list[str] | None = None,
    prompts: str | None = None,
) -> int:
    """Look at captions next to their images on a page in the browser, and edit them; Ctrl-C ends it.

    Each decision is on disk at once. The result is <file>-review.csv, which check --accept takes.

    Args:
        file: Captions, CSV or Parquet, or their review file, which is made as by check if it does not exist.
        dataset: What they are of: nsd, bold5000, things, folder or demo; default: what they say.
        root: Folder of the dataset; default: its environment variable.
        port: Of this machine's loopback interface; 0: a free one.
        no_browser: Only print the address.
        follow_links: Show images outside the dataset's folder that links in it lead to.
        choices: Labels of which each caption is one; default: those of its prompt.
        sentences: Sentences that a caption of no known prompt may have, 0 for any number; default: 1.
        languages: Languages that captions may be in by mistake; [] skips the check of languages.
        prompts: YAML with prompts besides those that ship here.
    """
    from lit_extract.review.check import make_rules
    from lit_extract.review.command import review as run

    rules = make_rules(choices, sentences, languages)
    run(Path(file), rules, dataset, root, prompts, port, not no_browser, follow_links)
    return exit_codes.DONE


main = command(review)
