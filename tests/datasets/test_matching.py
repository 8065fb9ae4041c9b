"""Captions of a dataset come in its order, or not at all."""

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_extract.common.errors import InputError
from lit_extract.data import CaptionDataModule
from lit_extract.data.base import Connection
from lit_extract.datasets import load_dataset
from lit_extract.datasets.matching import first_difference, places_of

STIMULI = [4, 2, 9, 0, 7]  # a dataset's order need not be that of its numbers


def write_dataset(folder):
    folder.mkdir(exist_ok=True)
    index = "nsd_id,name,path\n" + "".join(f"{i},n{i},{i}.jpg\n" for i in STIMULI)
    (folder / "nsd.csv").write_text(index)
    return folder


def captions_of(file, root=None, dataset="nsd", subset="all", ids_in_folder=()):
    data = CaptionDataModule(str(file), "test", dataset, None if root is None else str(root), subset=subset)
    data.connect(Connection(ids_in_folder=ids_in_folder))
    table = data.read_table()
    return dict(zip(table["stimulus_id"], table["caption"], strict=True))


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data")


@pytest.fixture
def write(tmp_path):
    def run(*rows, header="nsd_id,caption", name="captions.csv"):
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / name

    return run


def test_rows_are_put_in_the_order_of_the_dataset_and_it_is_said(root, write, caplog):
    caplog.set_level("INFO")
    file = write("0,zero", "9.0,nine", "2,two", "4,four", "7,seven")
    assert list(captions_of(file, root).items()) == [(4, "four"), (2, "two"), (9, "nine"), (0, "zero"), (7, "seven")]
    assert caplog.messages == [f"{file}: rows are sorted in the order of nsd"]
    caplog.clear()
    captions_of(write("4,four", "2,two", "9,nine", "0,zero", "7,seven"), root)
    assert not caplog.messages


def test_the_dataset_is_found_by_its_environment_variable(root, write, monkeypatch):
    monkeypatch.setenv("NSD_DATASET", str(root))
    file = write("0,zero", "9,nine", "2,two", "4,four", "7,seven")
    assert list(captions_of(file)) == STIMULI


def test_a_part_needs_a_name(root, write):
    file = write("0,zero", "2,two")
    with pytest.raises(InputError, match=r"no caption for 3 of 5 stimuli of nsd: 4, 9, 7; .*--data.subset NAME"):
        captions_of(file, root)
    assert captions_of(file, root, subset="two") == {2: "two", 0: "zero"}


@pytest.mark.parametrize("subset", ["all", "part"])
def test_unknown_stimuli_are_refused_with_or_without_a_name(root, write, subset):
    file = write("0,zero", "3,three", "2,two", "11,eleven", "4,four", "9,nine", "7,seven")
    with pytest.raises(InputError, match="stimuli that are not in nsd: 3, 11; check that these are captions of nsd"):
        captions_of(file, root, subset=subset)


def test_ids_counted_from_one_are_seen(tmp_path, write, monkeypatch):
    monkeypatch.delenv("NSD_DATASET", raising=False)
    file = write(*(f"{i},a" for i in range(1, 73001)))
    with pytest.raises(InputError, match=r"not in nsd: 73000 .*: 0; the ids of nsd are counted from 0.*subtract 1"):
        captions_of(file)
    with pytest.raises(InputError, match="counted from 0,"):
        captions_of(write("73000,a"), subset="last")
    assert captions_of(write("72999,b", "5,a"), subset="part") == {5: "a", 72999: "b"}


def test_without_an_index_features_that_are_there_give_the_order(write, monkeypatch):
    monkeypatch.delenv("THINGS_DATASET", raising=False)
    file = write("b,1", "a,2", header="things_id,caption")
    assert list(captions_of(file, dataset="things", ids_in_folder=["a", "b"])) == ["a", "b"]
    assert list(captions_of(file, dataset="things", ids_in_folder=["a", "c"])) == ["b", "a"], "the run refuses it"
    numbered = write("8,1", "3,2", header="things_id,caption")
    assert list(captions_of(numbered, dataset="things")) == [3, 8]
    own = write("b,1", "a,2", header="stimulus_id,caption")
    assert list(captions_of(own, dataset="mine")) == ["b", "a"]
    with pytest.raises(InputError, match=r"data\.root: data\.dataset 'mine' is not one of nsd"):
        captions_of(own, "/tmp", dataset="mine")


def test_captions_of_a_folder_keep_their_identity(image_folder, write):
    stimuli = load_dataset("folder", image_folder)
    rows = [f"{path},{name},of {path}" for path, name in zip(stimuli["path"], stimuli["name"], strict=True)]
    file = write(*rows[::-1], header="path,name,caption")
    found = captions_of(file, image_folder, dataset="folder")
    assert list(found) == stimuli["stimulus_id"].tolist()
    assert all(text == f"of {path}" for path, text in found.items())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"captions": ["['A dog', 'A cat']", "b"]}, r"no plain text in column captions, line 2 \(\"\['A dog'"),
        ({"caption": ['["A dog"]', "b"]}, "no plain text in column caption"),
        ({"caption": ["['A dog' 'A cat']", "b"]}, "no plain text"),
    ],
)
def test_list_syntax_never_reaches_a_model(tmp_path, columns, message):
    for name in ("c.csv", "c.parquet"):
        frame = pd.DataFrame({"stimulus_id": [0, 1], **columns})
        frame.to_csv(tmp_path / name, index=False) if name == "c.csv" else frame.to_parquet(tmp_path / name)
        with pytest.raises(InputError, match=message):
            captions_of(tmp_path / name, dataset="mine")


def test_of_lists_in_parquet_the_first_counts(tmp_path):
    frame = pd.DataFrame({"stimulus_id": [0, 1], "captions": [["A dog; it runs", "A cat"], ["B"]]})
    frame.to_parquet(tmp_path / "c.parquet")
    assert captions_of(tmp_path / "c.parquet", dataset="mine") == {0: "A dog; it runs", 1: "B"}
    pd.DataFrame({"caption": [["A"], []]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no caption in line 3"):
        captions_of(tmp_path / "c.parquet", dataset="mine")
    pd.DataFrame({"caption": [1, 2]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no plain text"):
        captions_of(tmp_path / "c.parquet", dataset="mine")


def test_places_and_differences():
    assert places_of([4, 2, 9], ["9", "4", "2"], "x", "d", False) == [1, 2, 0]
    assert first_difference([1, 2], ["1", "2"]) is None
    assert first_difference([1, 2, 3], [1, 3, 2]) == "the same stimuli in another order: row 1 is 3 there and 2 here"
    assert first_difference([1, 2, 3], [1, 4]) == "2 stimuli, and this run has 3; 1 is in both"


def _damaged(rows, data):
    """Rows of a caption file with something done to them: which, and the error that must name it (None: no error)."""
    kind = data.draw(st.sampled_from(["none", "twice", "unknown", "no id", "no caption", "comma", "list", "number"]))
    place = data.draw(st.integers(0, len(rows) - 1))
    stimulus, text = rows[place]
    changed = {
        "none": [(stimulus, text)],
        "twice": [(stimulus, text), (f"{stimulus}.0", "again")],
        "unknown": [(str(int(stimulus) + 100), text)],
        "no id": [("", text)],
        "no caption": [(stimulus, " ")],
        "comma": [(stimulus, text, "more")],
        "list": [(stimulus, f"['{text}', 'b']")],
        "number": [(f"{stimulus}.5", text)],
    }[kind]
    named = {
        "twice": f"occurs twice in line {place + 2}",
        "unknown": f"a stimulus that is not in nsd: {int(stimulus) + 100}",
        "no id": f"no nsd_id in line {place + 2}",
        "no caption": f"no caption in line {place + 2}",
        "comma": f"line {place + 2} has 3 fields",
        "list": f"line {place + 2}",
        "number": f"line {place + 2}",
    }.get(kind)
    return [*rows[:place], *changed, *rows[place + 1 :]], named


@settings(max_examples=400, deadline=None)
@given(st.permutations([str(i) for i in STIMULI]), st.integers(1, 5), st.booleans(), st.data())
def test_the_rows_of_the_dataset_in_its_order_or_one_error(tmp_path_factory, order, n_rows, is_part, data):
    """Any permutation, part, repetition and damage of a caption file."""
    folder = tmp_path_factory.mktemp("captions")
    root = write_dataset(folder / "data")
    whole = [(stimulus, f"caption of {stimulus}") for stimulus in order[:n_rows]]
    rows, named = _damaged(whole, data)
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([("nsd_id", "caption"), *rows])
    (folder / "c.csv").write_text(buffer.getvalue())
    missing = [stimulus for stimulus in STIMULI if str(stimulus) not in order[:n_rows]]
    if named is None and missing and not is_part:
        named = f"no caption for {len(missing)} of 5 stimuli of nsd: {missing[0]}"
    if named is not None:
        with pytest.raises(InputError, match=re.escape(named)):
            captions_of(folder / "c.csv", root, subset="part" if is_part else "all")
        return
    found = captions_of(folder / "c.csv", root, subset="part" if is_part else "all")
    expected = [stimulus for stimulus in STIMULI if stimulus not in missing]
    assert list(found) == expected
    assert found == {stimulus: f"caption of {stimulus}" for stimulus in expected}


def test_the_readme_of_captions_is_true(tmp_path):
    """The shipped captions are those of the shipped photographs."""
    shipped = Path(__file__).parents[2] / "derivatives" / "captions" / "demo-captions-handwritten.csv"
    assert list(captions_of(shipped, dataset="demo")) == load_dataset("demo")["stimulus_id"].tolist()
