"""Caption files as people have them."""

import pandas as pd
import pytest

from lit_extract.common.errors import InputError
from lit_extract.datasets import DATASETS, load_captions


def write(tmp_path, text, name="captions.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_order_ids_and_other_columns_are_kept(tmp_path):
    path = write(tmp_path, 'nsd_id,split,caption\n7,a,"Two dogs, running."\n3,b," A café in 東京 "\n')
    table = load_captions(path)
    assert table.columns.tolist() == ["stimulus_id", "caption", "captions", "nsd_id", "split"]
    assert table.to_dict("list") == {
        "stimulus_id": [7, 3],
        "caption": ["Two dogs, running.", "A café in 東京"],
        "captions": [["Two dogs, running."], ["A café in 東京"]],
        "nsd_id": [7, 3],
        "split": ["a", "b"],
    }
    assert "counted from 0" in table.attrs["stimulus_id_meaning"]


@pytest.mark.parametrize("column", ["nsd_id", "bold_id", "things_id", "demo_id", "stimulus_id"])
def test_id_column_becomes_the_stimulus_id(tmp_path, column):
    path = write(tmp_path, f"{column},caption\nb,one\na,two\n")
    assert load_captions(path)["stimulus_id"].tolist() == ["b", "a"]


@pytest.mark.parametrize("header", ["caption", "caption,model,prompt,status"])
def test_without_any_ids_rows_are_counted_and_a_warning_says_so_once(tmp_path, caplog, header):
    rest = ",x" * header.count(",")
    path = write(tmp_path, f"{header}\none{rest}\ntwo{rest}\n")
    for _ in range(2):
        table = load_captions(path)
        assert table["stimulus_id"].tolist() == [0, 1]
        assert table.attrs["stimulus_id_meaning"] == "row of the caption file, counted from 0"
    said = "has no ids, so its rows are counted from 0; to name ids, add a column stimulus_id"
    assert caplog.messages == [f"data.captions: {str(path)!r} {said}"]


@pytest.mark.parametrize("column", ["id", "ID", "image", "name", "coco_id", "split"])
def test_ids_in_a_column_of_another_name_are_not_taken_for_row_numbers(tmp_path, column):
    path = write(tmp_path, f"caption,{column}\na,107\nb,103\n")
    said = f"has no known column with ids; it has caption, {column}; rename the column with the ids to stimulus_id"
    with pytest.raises(InputError, match=said):
        load_captions(path)


@pytest.mark.parametrize("dataset", ["demo", "folder", "table"])
def test_captions_of_a_dataset_have_its_ids(tmp_path, dataset):
    column = DATASETS[dataset].id_column
    for header in ("nsd_id,caption", "caption,id"):
        path = write(tmp_path, f"{header}\n0,1\n1,2\n")
        said = rf"no column {column}, .*'{dataset}' need; it has {header.replace(',', ', ')}; rename .* to {column}"
        with pytest.raises(InputError, match=said):
            load_captions(path, dataset=dataset)
    path = write(tmp_path, f"{column},caption\nb,1\na,2\n")
    assert load_captions(path, dataset=dataset)["stimulus_id"].tolist() == ["b", "a"]


def test_ids_of_a_folder_are_paths_also_next_to_others(tmp_path):
    path = write(tmp_path, "demo_id,path,caption\n0,a.jpg,x\n")
    assert load_captions(path)["stimulus_id"].tolist() == [0]
    assert load_captions(path, dataset="folder")["stimulus_id"].tolist() == ["a.jpg"]


def test_of_several_captions_the_first_counts(tmp_path):
    path = write(tmp_path, "nsd_id,captions\n0, A dog runs ; A cat sleeps\n1,A car\n")
    assert load_captions(path)["caption"].tolist() == ["A dog runs", "A car"]


def test_words_that_pandas_takes_for_missing_are_captions(tmp_path):
    path = write(tmp_path, "nsd_id,caption\n0,None\n1,NA\n2,nan\n")
    assert load_captions(path)["caption"].tolist() == ["None", "NA", "nan"]


def test_parquet_and_a_byte_order_mark(tmp_path):
    frame = pd.DataFrame({"things_id": [4, 2], "caption": ["a\nb", 'quo"te']})
    frame.to_parquet(tmp_path / "captions.parquet")
    assert load_captions(tmp_path / "captions.parquet")["caption"].tolist() == ["a\nb", 'quo"te']
    bom = write(tmp_path, "﻿nsd_id,caption\n5,x\n", "bom.csv")
    assert load_captions(bom)["stimulus_id"].tolist() == [5]


def test_query_chooses_rows(tmp_path):
    path = write(tmp_path, "nsd_id,caption\n0,a\n1,b\n2,c\n")
    assert load_captions(path, "nsd_id != 1")["caption"].tolist() == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nsd_id,text\n0,a\n", "no column caption or captions; it has nsd_id, text"),
        ("nsd_id,caption\n0,a\n1,\n2,  \n", r"no caption in line 3 \(nsd_id 1\), line 4 \(nsd_id 2\)"),
        ("nsd_id,captions\n0,;second\n", r"no caption in line 2"),
        ("nsd_id,caption\n4,a\n4,b\n5,c\n", r"nsd_id that occurs twice in line 2 \(4\), line 3 \(4\)"),
        ("nsd_id,caption\n1,a\n,b\n", "no nsd_id in line 3"),
        ("nsd_id,bold_id,caption\n1,2,a\n", "several id columns, nsd_id, bold_id"),
        ('nsd_id,caption\n0,"never closed\n', "can't be read"),
    ],
)
def test_files_with_something_wrong_are_refused_with_the_first_offenders(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_captions(write(tmp_path, text))


def test_many_offenders_are_counted(tmp_path):
    path = write(tmp_path, "nsd_id,caption\n" + "".join(f"{i},\n" for i in range(40)))
    with pytest.raises(InputError, match=r"line 6 \(nsd_id 4\), … \(40 in all\)"):
        load_captions(path)


def test_another_encoding_is_named(tmp_path):
    path = write(tmp_path, "nsd_id,caption\n0,café\n", encoding="latin-1")
    with pytest.raises(InputError, match="not UTF-8"):
        load_captions(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"data\.captions: no file"):
        load_captions(tmp_path / "nothing.csv")
