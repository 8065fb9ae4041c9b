"""``lit-extract check``, from flags to accepted captions."""

import pandas as pd
import pytest

from lit_extract.common.errors import InputError
from lit_extract.datasets import load_captions

CAPTIONS = [
    "A dog runs on a beach.",
    "A cat. It sleeps.",
    "=1+1 dogs sit on a beach.",
    "Ein Hund läuft mit einem Ball am Strand.",
    'A sign reads "Go, now".',
]


@pytest.fixture
def captions(tmp_path):
    from lit_extract.captioning.output import write_captions

    path = tmp_path / "nsd_captions.csv"
    table = pd.DataFrame({"nsd_id": range(5), "caption": CAPTIONS, "model": "mistralai/Pixtral-12B-2409"})
    write_captions(table.assign(prompt="caption"), path)
    return path


@pytest.fixture
def accept(cli, tmp_path):
    def accept(file, *options):
        return cli("check", file, "--accept", "--derivatives", tmp_path / "derivatives", *options)

    return accept


def edited(captions, change, name="nsd_captions-review.csv"):
    """The review file, read and written by pandas, with a change."""
    review = captions.with_name("nsd_captions-review.csv")
    table = pd.read_csv(review, keep_default_na=False)
    path = captions.with_name(name)
    change(table).to_csv(path, index=False)
    return path


def test_flags_counts_and_exit_code(cli, captions):
    code, printed, _ = cli("check", captions)
    review = captions.with_name("nsd_captions-review.csv")
    assert code == 3
    assert printed == (f"2 of 5 captions are flagged\n        1 several sentences\n        1 not English\n{review}\n")
    table = pd.read_csv(review, keep_default_na=False)
    assert table.columns.tolist() == ["nsd_id", "caption", "original", "model", "prompt", "flag"]
    assert table["flag"].tolist() == ["", "several sentences", "", "not English", ""]


def test_nothing_to_look_at(cli, captions):
    code, printed, _ = cli("check", captions, "--sentences", "0", "--languages", "[]")
    assert code == 3, "the prompt asks for one sentence, whatever is said of others"
    pd.read_csv(captions).iloc[[0, 4]].to_csv(captions, index=False)
    code, printed, _ = cli("check", captions, "--overwrite")
    assert (code, printed.splitlines()[0]) == (0, "0 of 2 captions are flagged")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2, 1, 4], "a nsd_id that occurs twice"),
        ([0, 1, "", 3, 4], "no nsd_id in"),
        ([0, 1, 2.5, 3, 4], "a nsd_id that is neither a 64-bit integer nor text"),
        (None, "no known column with ids; it has id, caption, model, prompt"),
    ],
)
def test_ids_that_predict_refuses_are_refused(cli, accept, captions, ids, message):
    table = pd.read_csv(captions)
    table = table.rename(columns={"nsd_id": "id"}) if ids is None else table.assign(nsd_id=ids)
    table.to_csv(captions, index=False)
    table.to_csv(captions.with_name("copy.csv"), index=False)
    for code, _, error in (cli("check", captions), accept(captions.with_name("copy.csv"), "--original", captions)):
        assert code == 2
        assert message in error
    with pytest.raises(InputError, match=message):
        load_captions(captions)
    assert not captions.with_name("nsd_captions-review.csv").exists()


def test_choices_given(cli, captions):
    code, printed, _ = cli("check", captions, "--choices", "[dog, cat]")
    assert code == 3
    assert "5 label outside the set" in printed


def test_a_review_that_may_hold_edits_is_kept(cli, captions):
    cli("check", captions)
    code, _, error = cli("check", captions)
    assert code == 2
    assert "may hold edits" in error


def test_edits_come_back_with_the_original(cli, accept, captions, tmp_path):
    cli("check", captions)

    def change(table):
        table.loc[1, "caption"] = "A cat sleeps, it seems."
        table.loc[3, "caption"] = "A dog runs along a beach with a ball."
        return table

    code, printed, _ = accept(edited(captions, change))
    accepted = tmp_path / "derivatives" / "nsd-captions-pixtral.csv"
    assert (code, printed) == (0, f"{accepted}\n  2 captions differ from the column original\n")
    expected = [
        CAPTIONS[0],
        "A cat sleeps, it seems.",
        CAPTIONS[2],
        "A dog runs along a beach with a ball.",
        CAPTIONS[4],
    ]
    table = load_captions(accepted)
    assert table["caption"].tolist() == expected
    assert [text.strip() for text in table["original"]] == CAPTIONS
    assert table["nsd_id"].tolist() == list(range(5))

    code, _, error = accept(captions.with_name("nsd_captions-review.csv"))
    assert code == 2
    assert "exists already" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(index=2), r"lost 1 of 5 rows: line 4 \(2, "),
        (lambda table: table.iloc[[0, 2, 1, 3, 4]], "rows in another order, from line 3 on"),
        (lambda table: pd.concat([table, table.tail(1)]), "has 6 rows, but there were 5"),
        (lambda table: table.drop(columns="nsd_id"), "lost the column nsd_id"),
        (lambda table: table.assign(nsd_id=[0, 1, 2, 3, 9]), r"differs in columns besides caption, in line 6 \(4, "),
        (lambda table: table.assign(caption=""), "has no caption in line 2, line 3"),
    ],
)
def test_rows_lost_reordered_or_changed_are_refused(cli, accept, captions, tmp_path, change, message):
    import re

    cli("check", captions)
    code, _, error = accept(edited(captions, change))
    assert code == 2
    assert re.search(message, error)
    assert not (tmp_path / "derivatives").exists()


def test_an_edited_copy_of_the_captions_needs_the_original(accept, captions, tmp_path):
    copy = tmp_path / "mine.csv"
    table = pd.read_csv(captions)
    table.loc[1, "caption"] = "A cat sleeps."
    table.to_csv(copy, index=False)
    code, _, error = accept(copy)
    assert code == 2
    assert "--original FILE" in error
    code, printed, _ = accept(copy, "--original", captions, "--name", "mine", "--dataset", "other")
    assert code == 0
    assert printed.startswith(f"{tmp_path / 'derivatives' / 'other-captions-mine.csv'}\n  1 caption differs")


def test_the_dataset_may_be_known_from_the_run_only(accept, captions, tmp_path):
    import json

    table = pd.read_csv(captions).rename(columns={"nsd_id": "path"})
    table.to_csv(captions, index=False)
    copy = tmp_path / "copy.csv"
    table.to_csv(copy, index=False)
    code, _, error = accept(copy, "--original", captions)
    assert code == 2
    assert "pass --dataset NAME" in error
    captions.with_name(f"{captions.name}.json").write_text(json.dumps({"provenance": {"dataset": "folder"}}))
    code, printed, _ = accept(copy, "--original", captions)
    assert code == 0
    assert "folder-captions-pixtral.csv" in printed
