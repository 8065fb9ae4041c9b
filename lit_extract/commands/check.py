"""``lit-extract check``: captions that a person should look at, and what came of that."""

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
    """Flag captions that a person should look at; accept reviewed ones.

    Writes all rows to <file>-review.csv, with a column flag. Edit its column caption, then give it with --accept.
    Exit code: 0 nothing is flagged, 2 something to fix, 3 some captions are flagged.

    Args:
        file: Captions, CSV or Parquet; with --accept, the edited file.
        accept: Put the edited captions in derivatives; rows that were lost or reordered are refused.
        original: The captions before they were edited; default: what a review file was made of.
        name: What accepted captions are called; default: from the model and the prompt, such as pixtral.
        dataset: What accepted captions are of; default: what the file says.
        derivatives: Folder of reviewed captions.
        choices: Labels of which each caption is one; default: those of its prompt.
        sentences: Sentences that a caption of no known prompt may have, 0 for any number; default: 1.
        languages: Languages that captions may be in by mistake; [] skips the check of languages.
        prompts: YAML with prompts besides those that ship here.
        overwrite: Replace an existing review file, or accepted captions.
    """
    from lit_extract.review import accept as accepting
    from lit_extract.review import check as checking

    path = Path(file)
    if accept:
        source = Path(original) if original else None
        accepted, edited = accepting.accept(path, Path(derivatives), source, name, dataset, overwrite)
        print(f"{accepted}\n  {edited} captions differ from the column original")
        return exit_codes.DONE
    rules = checking.make_rules(choices, sentences, languages)
    reviewed, flags = checking.check(path, rules, prompts, overwrite)
    print("\n".join([*checking.describe(flags), str(reviewed)]))
    return exit_codes.LOOK if any(flags) else exit_codes.DONE


main = command(check)
