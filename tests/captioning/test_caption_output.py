"""What people's tools make of the caption file."""

import csv

import pandas as pd
import pytest

from lit_extract.captioning.captioner import clean
from lit_extract.captioning.output import check_output, read_captions, write_captions
from lit_extract.common.errors import InputError
from lit_extract.datasets import load_captions

CAPTIONS = [
    'A sign says "STOP", twice.',
    "One line\nand another",
    "東京の猫; Zürich, naïve — “café” 🦓",
    "العربية and עברית",
    "None",
    "NA",
    "  ",
    "1e5",
    "007",
]


def table(captions):
    return pd.DataFrame({"nsd_id": range(len(captions)), "caption": captions, "model": "m", "prompt": "caption"})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_captions_survive_pandas(tmp_path, suffix):
    path = tmp_path / f"captions{suffix}"
    write_captions(table(CAPTIONS), path)
    read = (
        pd.read_parquet(path)
        if suffix == ".parquet"
        else pd.read_csv(path, keep_default_na=False, dtype={"caption": str})
    )
    assert read["caption"].tolist() == CAPTIONS
    assert read.columns[0] == "nsd_id", "the byte order mark is no part of the name"
    assert read_captions(path)["caption"].tolist() == [text.strip() for text in CAPTIONS]
    assert [path.name for path in tmp_path.iterdir()] == [path.name], "nothing is left beside it"


def test_a_spreadsheet_sees_utf8_and_pythons_csv_the_same_cells(tmp_path):
    path = tmp_path / "captions.csv"
    write_captions(table(CAPTIONS), path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == CAPTIONS


@pytest.mark.parametrize("text", ["=1+1", "+1 dog", "- A dog", "@home", '=HYPERLINK("http://x")'])
def test_text_that_looks_like_a_formula_does_not_run_and_reads_back(tmp_path, text):
    path = tmp_path / "captions.csv"
    write_captions(table([text, "A dog."]), path)
    assert pd.read_csv(path)["caption"][0] == f" {text}"
    assert load_captions(path)["caption"].tolist() == [text, "A dog."]
    assert read_captions(path)["caption"][0] == text
    write_captions(table([text]), tmp_path / "captions.parquet")
    assert pd.read_parquet(tmp_path / "captions.parquet")["caption"][0] == text


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (" A dog.\n", "A dog."),
        ("A\r\nB\rC\u2028D", "A\nB\nC\nD"),
        ("A\0B", "A\ufffdB"),
        ("A \ud800 B", "A ? B"),
        ("\tA\x1bB", "A\x1bB"),
    ],
)
def test_a_reply_as_it_is_kept(tmp_path, reply, kept):
    assert clean(reply) == kept
    write_captions(table([kept]), tmp_path / "captions.csv")
    assert pd.read_csv(tmp_path / "captions.csv")["caption"][0] == kept


def test_output_has_to_be_csv_or_parquet(tmp_path):
    assert check_output(str(tmp_path / "a.parquet")).suffix == ".parquet"
    for wrong in (None, "a.tsv", "a"):
        with pytest.raises(InputError, match="output: "):
            check_output(wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nsd_id;caption\n1;A\n", "save it with commas"),
        ("nsd_id,caption\n1,Zürich\n".encode("cp1252"), "is not UTF-8"),
        (b"nsd_id,text\n1,A\n", "has no column caption; it has nsd_id, text"),
        (b'nsd_id,caption\n1,"A\n', "can't be read"),
    ],
)
def test_what_spreadsheets_do_to_files_is_said(tmp_path, content, message):
    path = tmp_path / "captions.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_captions(path)
