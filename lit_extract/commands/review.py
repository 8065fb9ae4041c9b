"""``lit-extract review``: edit captions on a page in the browser."""

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
    """Review and edit captions next to their images in the browser; Ctrl-C stops the command.

    Each decision is saved at once. The result is <file>-review.csv; pass it to check --accept.

    Args:
        file: Caption file, CSV or Parquet, or its review file; if there is no review file, it is made as by check.
        dataset: Dataset of the captions: nsd, bold5000, things, folder or demo; default: as recorded in the file, or
            next to it.
        root: Folder of the dataset; default: the dataset's environment variable.
        port: Port of this machine's loopback interface; 0: a free one.
        no_browser: Print the address, but open no browser.
        follow_links: Also show images outside the dataset's folder that links in it point to.
        choices: Labels that a caption may be, as '[cat, dog]'; default: the labels of its prompt.
        sentences: Most sentences in a caption whose prompt is unknown; 0: any number; default: 1.
        languages: Languages to tell English from, such as '[french]'; default: nine common ones; [] skips this check.
        prompts: YAML file with further prompts, added to the shipped ones.
    """
    from lit_extract.review.check import make_rules
    from lit_extract.review.command import review as run

    rules = make_rules(choices, sentences, languages)
    run(Path(file), rules, dataset, root, prompts, port, not no_browser, follow_links)
    return exit_codes.DONE


main = command(review)
