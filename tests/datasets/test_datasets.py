"""Stimulus tables of tiny fabricated datasets in each layout that is read, and everything that can be wrong."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from lit_extract.common.errors import InputError
from lit_extract.datasets import load_dataset
from lit_extract.datasets.decode import open_image
from lit_extract.datasets.table import image_stats

IDS = [7, 2, 5]  # not sorted: rows must stay in the order of the index
NSD = {
    "nsd_id": IDS,
    "name": [f"nsd_{i:05d}" for i in IDS],
    "path": [f"images/nsd_00000_00999/nsd_{i:05d}.jpg" for i in IDS],
}
BOLD5000 = {
    "bold_id": IDS,
    "image_name": ["n01.JPEG", "COCO_2.jpg", "scene5.jpg"],
    "stim_source": ["imagenet", "coco", "scenes"],
    "image_path": [f"images/{i}.jpg" for i in IDS],
}
THINGS = {
    "things_id": IDS,
    "image_name": ["dog_01b", "aardvark_02s", "cat_03s"],
    "category": ["dog", "aardvark", "cat"],
    "category_id": [30, 1, 20],
    "image_category_index": [1, 2, 3],
    "image_path": [f"images/{i}.jpg" for i in IDS],
}
INDICES = [
    ("nsd", "nsd.csv", NSD, "path"),
    ("bold5000", "preprocessed/images.csv", BOLD5000, "image_path"),
    ("bold5000", "preprocessed/images.parquet", BOLD5000, "image_path"),
    ("things", "preprocessed/images.csv", THINGS, "image_path"),
]
VARIABLES = {"nsd": "NSD_DATASET", "bold5000": "BOLD_DATASET", "things": "THINGS_DATASET"}


@pytest.fixture(autouse=True)
def _no_roots_from_outside(monkeypatch):
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def write_index(root, name, columns):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(columns)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)


def write_bricks(root, shape=(4, 425, 425, 3), dtype="uint8", name="imgBrick"):
    with h5py.File(root / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset(name, data=np.zeros(shape, dtype))


@pytest.mark.parametrize(("dataset", "index", "columns", "path_column"), INDICES)
def test_rows_in_the_order_of_the_index_with_absolute_images(tmp_path, dataset, index, columns, path_column):
    write_index(tmp_path, index, {**columns, "more": ["x", "y", "z"]})
    table = load_dataset(dataset, tmp_path)
    assert table["stimulus_id"].tolist() == IDS
    assert table["image"].tolist() == [str(tmp_path / path) for path in columns[path_column]]
    for column, values in columns.items():
        assert table[column].tolist() == values
    assert table["more"].tolist() == ["x", "y", "z"]
    assert list(table.columns[:2]) == ["stimulus_id", "image"]
    assert table.attrs["dataset"] == dataset
    assert table.attrs["root"] == str(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "index", "columns", "meaning"),
    [
        ("nsd", "nsd.csv", NSD, "counted from 0"),
        ("bold5000", "preprocessed/images.csv", BOLD5000, "bold_id"),
        ("things", "preprocessed/images.csv", THINGS, "things_id"),
    ],
)
def test_what_an_id_means_survives_a_query(tmp_path, dataset, index, columns, meaning):
    write_index(tmp_path, index, columns)
    assert meaning in load_dataset(dataset, tmp_path).attrs["stimulus_id_meaning"]
    assert meaning in load_dataset(dataset, tmp_path, "stimulus_id > 4").attrs["stimulus_id_meaning"]


def test_nsd_hdf5_is_read_in_place(tmp_path):
    write_bricks(tmp_path)
    table = load_dataset("nsd", tmp_path)
    assert table["stimulus_id"].tolist() == table["nsd_id"].tolist() == table["image_row"].tolist() == [0, 1, 2, 3]
    assert set(table["image"]) == {str(tmp_path / "nsd_stimuli.hdf5")}
    assert table["name"].tolist() == ["nsd_00000", "nsd_00001", "nsd_00002", "nsd_00003"]
    subset = load_dataset("nsd", tmp_path, "nsd_id in [3, 1]")
    assert subset["image_row"].tolist() == [1, 3], "rows of the file, not of the subset"


def test_nsd_csv_comes_before_hdf5(tmp_path):
    write_bricks(tmp_path)
    write_index(tmp_path, "nsd.csv", NSD)
    assert load_dataset("nsd", tmp_path)["stimulus_id"].tolist() == IDS


def test_bold5000_parquet_comes_before_csv(tmp_path):
    write_index(tmp_path, "preprocessed/images.csv", BOLD5000)
    write_index(tmp_path, "preprocessed/images.parquet", {**BOLD5000, "bold_id": [1, 2, 3]})
    assert load_dataset("bold5000", tmp_path)["stimulus_id"].tolist() == [1, 2, 3]


def test_folder_takes_every_image_below_it_by_relative_path(tmp_path):
    files = ["b.jpg", "a/z.PNG", "a/b/c.JpEg", "a.tiff", "B.webp", "a/10.png", "a/9.png"]
    others = ["notes.txt", "jpg", ".hidden.jpg", "._b.jpg", ".thumbnails/x.jpg", "a/.git/y.png", "c.jpg.bak"]
    for name in files + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = load_dataset("folder", tmp_path)
    expected = ["B.webp", "a.tiff", "a/10.png", "a/9.png", "a/b/c.JpEg", "a/z.PNG", "b.jpg"]
    assert table["stimulus_id"].tolist() == expected
    assert table["image"].tolist() == [str(tmp_path / name) for name in expected]
    assert table["name"].tolist() == ["B", "a", "10", "9", "c", "z", "b"]


def test_demo_needs_no_root():
    table = load_dataset("demo")
    assert table["stimulus_id"].tolist() == list(range(24))
    assert all(Path(path).is_file() for path in table["image"])


def test_query_chooses_rows_and_keeps_their_order(tmp_path):
    write_index(tmp_path, "preprocessed/images.csv", THINGS)
    table = load_dataset("things", tmp_path, "category != 'aardvark'")
    assert table["stimulus_id"].tolist() == [7, 5]
    assert table.index.tolist() == [0, 1], "row i is stimulus i, also of a subset"


def test_root_from_the_argument_else_the_environment(tmp_path, monkeypatch):
    for name, ids in (("one", [1, 2, 3]), ("two", [4, 5, 6])):
        write_index(tmp_path / name, "nsd.csv", {**NSD, "nsd_id": ids})
    monkeypatch.setenv("NSD_DATASET", str(tmp_path / "one"))
    assert load_dataset("nsd")["stimulus_id"].tolist() == [1, 2, 3]
    assert load_dataset("nsd", tmp_path / "two")["stimulus_id"].tolist() == [4, 5, 6]


def test_a_relative_root_is_made_absolute(tmp_path, monkeypatch):
    write_index(tmp_path / "here", "nsd.csv", NSD)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("nsd", "here")["image"][0] == str(tmp_path / "here" / NSD["path"][0])


def refusal(*arguments):
    with pytest.raises(InputError) as error:
        load_dataset(*arguments)
    return str(error.value)


def test_a_root_of_an_unknown_user_is_refused():
    assert refusal("nsd", "~nobody-of-this-name/nsd").startswith("data.root: '~nobody-of-this-name/nsd': there is no")


def test_unknown_dataset_names_the_known_ones():
    assert (
        refusal("nds") == "dataset: 'nds' is not one of nsd, bold5000, things, folder, table, demo; did you mean nsd?"
    )


@pytest.mark.parametrize(("dataset", "variable"), VARIABLES.items())
def test_no_root_names_option_and_variable(dataset, variable):
    message = refusal(dataset)
    assert "--data.root" in message
    assert variable in message


def test_folder_without_root_names_the_option_and_no_variable():
    message = refusal("folder")
    assert "--data.root" in message
    assert "variable" not in message


def test_root_that_is_no_folder_names_where_it_came_from(tmp_path, monkeypatch):
    message = refusal("nsd", tmp_path / "nowhere")
    assert message.startswith("data.root")
    assert str(tmp_path / "nowhere") in message
    monkeypatch.setenv("NSD_DATASET", str(tmp_path / "elsewhere"))
    message = refusal("nsd")
    assert "NSD_DATASET" in message
    assert str(tmp_path / "elsewhere") in message


@pytest.mark.parametrize(
    ("dataset", "looked_for"),
    [
        ("nsd", ["nsd.csv", "nsd_stimuli.hdf5"]),
        ("bold5000", ["preprocessed/images.parquet", "preprocessed/images.csv"]),
        ("things", ["preprocessed/images.csv"]),
        ("folder", [".jpg", ".webp"]),
        ("demo", ["photographs.csv"]),
    ],
)
def test_empty_root_names_what_was_looked_for(tmp_path, dataset, looked_for):
    message = refusal(dataset, tmp_path)
    assert str(tmp_path) in message
    assert all(name in message for name in looked_for)


@pytest.mark.parametrize(("dataset", "index", "columns", "path_column"), INDICES)
def test_missing_column_is_named_beside_those_there(tmp_path, dataset, index, columns, path_column):
    write_index(tmp_path, index, {k: v for k, v in columns.items() if k != path_column})
    message = refusal(dataset, tmp_path)
    assert str(tmp_path / index) in message
    assert f"has no column {path_column};" in message
    assert next(iter(columns)) in message.partition("it has")[2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([7, 2, 7], "nsd: the index has a nsd_id that occurs twice in line 2 (7), line 4 (7)"),
        ([7, None, 5], "nsd: the index has no nsd_id in line 3"),
    ],
)
def test_ids_that_do_not_identify_are_named(tmp_path, ids, message):
    write_index(tmp_path, "nsd.csv", {**NSD, "nsd_id": ids})
    assert refusal("nsd", tmp_path) == message


def test_index_without_rows_is_refused(tmp_path):
    write_index(tmp_path, "nsd.csv", {column: [] for column in NSD})
    assert str(tmp_path / "nsd.csv") in refusal("nsd", tmp_path)


@pytest.mark.parametrize("column", ["stimulus_id", "image"])
def test_index_with_a_column_of_ours_is_refused_or_understood(tmp_path, column):
    write_index(tmp_path, "nsd.csv", {**NSD, column: ["x", "y", "z"]})
    assert column in refusal("nsd", tmp_path)


@pytest.mark.parametrize(("name", "content"), [("images.csv", b""), ("images.parquet", b"no parquet")])
def test_index_that_can_not_be_read_is_named(tmp_path, name, content):
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / name).write_bytes(content)
    assert re.search(
        re.escape(str(tmp_path / "preprocessed" / name)) + ". (can.t be read|is empty)", refusal("bold5000", tmp_path)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "bricks"}, "no readable dataset imgBrick"),
        ({"dtype": "float32"}, "float32; expected images × height × width × 3 of uint8"),
        ({"shape": (4, 3, 425, 425)}, "(4, 3, 425, 425)"),
    ],
)
def test_another_hdf5_is_refused(tmp_path, settings, message):
    write_bricks(tmp_path, **settings)
    assert message in refusal("nsd", tmp_path)


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "nsd_stimuli.hdf5").write_bytes(b"no hdf5")
    assert "no readable dataset imgBrick" in refusal("nsd", tmp_path)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nsd_id <", "fails"),
        ("nsd_idd < 3", "fails"),
        ("nsd_id > 100", "chooses none of 3 rows"),
        ("nsd_id % 2", "nsd_id % 2"),  # numbers, not a condition: pandas takes them for labels and repeats rows
    ],
)
def test_query_that_is_wrong_names_itself_and_the_columns(tmp_path, query, message):
    write_index(tmp_path, "nsd.csv", {**NSD, "nsd_id": [0, 1, 2]})
    found = refusal("nsd", tmp_path, query)
    assert found.startswith(f"data.query: {query!r}")
    assert message in found
    assert "stimulus_id, image, nsd_id, name, path" in found


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    ids = list(range(9))
    (tmp_path / "3.jpg").write_bytes(b"1234")
    write_index(tmp_path, "nsd.csv", {"nsd_id": ids, "name": ids, "path": [f"{i}.jpg" for i in ids]})
    table = load_dataset("nsd", tmp_path)
    with pytest.raises(InputError) as error:
        image_stats(table)
    message = str(error.value)
    assert message.startswith("8 of 9 images are missing")
    named = [str(tmp_path / f"{i}.jpg") in message for i in ids]
    assert named == [True, True, True, False, True, True, False, False, False]
    assert [stat.st_size for stat in image_stats(table[table["nsd_id"] == 3])] == [4]


def test_tables_need_no_torch_and_the_package_needs_not_even_pandas():
    script = """
import sys
import lit_extract
assert not {"torch", "pandas", "numpy"} & set(sys.modules), "lit_extract"
from lit_extract import load_dataset
assert len(load_dataset("demo")) == 24
heavy = {"torch", "lightning", "zarr", "timm", "h5py", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_locked_brick_is_read(tmp_path):
    file = tmp_path / "nsd_stimuli.hdf5"
    with h5py.File(file, "w") as brick:
        brick["imgBrick"] = np.full((2, 4, 4, 3), 7, dtype=np.uint8)
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(OSError, match="lock"):
            h5py.File(file, "r")
        table = load_dataset("nsd", tmp_path)
        assert len(table) == 2
        assert np.array(open_image(str(file), 1)).tolist() == np.full((4, 4, 3), 7).tolist()
        holder.communicate(b"\n")
