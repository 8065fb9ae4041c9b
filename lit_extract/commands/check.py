"""``lit-extract check``: flag captions for review, and accept reviewed captions."""

from pathlib import Path

from lit_extract.commands.arguments import command
from lit_extract.common import exit_codes


def check(
    file: str,
    accept: bool = False,
    original: str | None = None,
    name: str | None = None,
    dataset: str | None = None,
    derivatives: str = "derivatives/captions",
    choices: list[str] | None = None,
    sentences: int | None = None,
    languages: list[str] | None = None,
    prompts: str | None = None,
    overwrite: bool = False,
) -> int:
    """Flag captions that a person should review; accept reviewed ones.

    All rows are written to <file>-review.csv, with a column flag. Edit the column caption there, then run check on that
    file with --accept. Exit code: 0 nothing is flagged, 2 wrong input, 3 some captions are flagged.

    Args:
        file: Caption file, CSV or Parquet; with --accept, the edited review file.
        accept: Write the edited captions to the folder --derivatives; lost or reordered rows are an error.
        original: Caption file before the edits; default: the one next to the review file, named without -review.
        name: Name of the accepted captions; default: made from the model and the prompt, such as pixtral.
        dataset: Dataset of the accepted captions; default: as recorded in the file, or next to it.
        derivatives: Folder for accepted captions.
        choices: Labels that a caption may be, as '[cat, dog]'; default: the labels of its prompt.
        sentences: Most sentences in a caption whose prompt is unknown; 0: any number; default: 1.
        languages: Languages to tell English from, such as '[french]'; default: nine common ones; [] skips this check.
        prompts: YAML file with further prompts, added to the shipped ones.
        overwrite: Replace an existing review file, or accepted captions.
    """
    from lit_extract.common.errors import counted
    from lit_extract.review import accept as accepting
    from lit_extract.review import check as checking

    path = Path(file)
    if accept:
        source = Path(original) if original else None
        accepted, edited = accepting.accept(path, Path(derivatives), source, name, dataset, overwrite)
        print(f"{accepted}\n  {counted(edited, 'caption differs', 'captions differ')} from the column original")
        return exit_codes.DONE
    rules = checking.make_rules(choices, sentences, languages)
    reviewed, flags = checking.check(path, rules, prompts, overwrite)
    print("\n".join([*checking.describe(flags), str(reviewed)]))
    return exit_codes.LOOK if any(flags) else exit_codes.DONE


main = command(check)
