"""NSD as it is downloaded: images in nsd_stimuli.hdf5, and what nsd_stim_info_merged.csv knows of them."""

import json

import numpy as np
import pytest
from helpers.published import NSD_BUCKET, NSD_INFO, nsd_design, nsd_info, write_brick, write_text
from helpers.runs import REPOSITORY

from lit_extract import load_dataset
from lit_extract.common.errors import InputError
from lit_extract.datasets.decode import open_image

STIMULI = "nsddata_stimuli/stimuli/nsd"
SUBJECTS = [f"subject{number}" for number in range(1, 9)]
N = 7  # images in the file; images 0 to 3 are among the 1,000 that all subjects saw
BRICKS = ["", f"{STIMULI}/"]


@pytest.fixture(scope="module")
def info():
    return nsd_info(*nsd_design())


@pytest.fixture(scope="module")
def few(info):
    """The first rows of the published table: enough for the images of a small file."""
    return info.iloc[:20]


def write_info(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def refusal(root):
    with pytest.raises(InputError) as error:
        load_dataset("nsd", root)
    return str(error.value)


def check_info(table, few):
    """The table knows of each image what the published one has in the row of that nsdId."""
    expected = few.set_index("nsdId").loc[table["nsd_id"]]
    for column in ("cocoId", "cocoSplit", "cropBox"):
        assert table[column].tolist() == expected[column].tolist(), column
    for column in ("shared1000", "flagged", "BOLD5000", *SUBJECTS):
        assert table[column].dtype == bool, column
        assert table[column].tolist() == (expected[column] != 0).tolist(), column


@pytest.mark.parametrize("brick", BRICKS)
@pytest.mark.parametrize("place", ["", STIMULI, NSD_BUCKET])
def test_what_is_known_of_an_image_becomes_columns(tmp_path, few, brick, place):
    if place == STIMULI and not brick:
        place = ""  # next to the images
    write_brick(tmp_path / brick / "nsd_stimuli.hdf5", N)
    write_info(few, tmp_path / place / NSD_INFO)
    table = load_dataset("nsd", tmp_path)
    assert table["stimulus_id"].tolist() == table["nsd_id"].tolist() == list(range(N))
    assert table["path"].tolist() == [f"{brick}nsd_stimuli.hdf5"] * N
    assert table["image"].tolist() == [str(tmp_path / brick / "nsd_stimuli.hdf5")] * N
    assert table["image_row"].tolist() == list(range(N))
    check_info(table, few)
    assert table["shared1000"].tolist() == [True] * 4 + [False] * 3
    assert (table[SUBJECTS].sum(axis=1) == np.where(table["shared1000"], 8, 1)).all()


@pytest.mark.parametrize("brick", BRICKS)
def test_the_images_alone_suffice(tmp_path, brick):
    write_brick(tmp_path / brick / "nsd_stimuli.hdf5", N)
    table = load_dataset("nsd", tmp_path)
    assert table["stimulus_id"].tolist() == list(range(N))
    assert table["name"].tolist() == [f"nsd_{row:05d}" for row in range(N)]
    assert "shared1000" not in table.columns
    image = open_image(table["image"][3], int(table["image_row"][3]))
    expected = np.random.default_rng(0).integers(0, 256, (N, 2, 2, 3), dtype=np.uint8)[3]
    np.testing.assert_array_equal(np.array(image), expected)


def test_rows_of_the_table_are_found_by_id_not_by_place(tmp_path, few):
    write_brick(tmp_path / "nsd_stimuli.hdf5", N)
    write_info(few.drop(columns="").iloc[np.random.default_rng(1).permutation(len(few))], tmp_path / NSD_INFO)
    check_info(load_dataset("nsd", tmp_path), few)


def test_the_whole_published_table_does_for_a_small_file(tmp_path, info):
    write_brick(tmp_path / STIMULI / "nsd_stimuli.hdf5", N)
    write_info(info, tmp_path / NSD_BUCKET / NSD_INFO)
    check_info(load_dataset("nsd", tmp_path), info)


def test_all_73000_images(tmp_path, info):
    write_brick(tmp_path / "nsd_stimuli.hdf5", len(info), side=1)
    write_info(info, tmp_path / NSD_INFO)
    table = load_dataset("nsd", tmp_path)
    assert table["stimulus_id"].tolist() == list(range(73_000))
    check_info(table, info)
    assert table["shared1000"].sum() == 1000
    assert table[SUBJECTS].sum().tolist() == [10_000] * 8


def test_the_shared_images_are_a_query(tmp_path, few, cli):
    write_brick(tmp_path / STIMULI / "nsd_stimuli.hdf5", N)
    write_info(few, tmp_path / NSD_BUCKET / NSD_INFO)
    table = load_dataset("nsd", tmp_path, "shared1000")
    assert table["stimulus_id"].tolist() == table["image_row"].tolist() == [0, 1, 2, 3]
    assert load_dataset("nsd", tmp_path, "not shared1000")["stimulus_id"].tolist() == [4, 5, 6]
    config = REPOSITORY / "configs" / "nsd" / "vision.yaml"
    model = ("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--trainer.accelerator", "cpu")
    choice = ("--data.root", tmp_path, "--data.query", "shared1000", "--data.subset", "shared")
    code, out, err = cli("plan", "--config", config, *model, *choice, "--json", "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert json.loads(out)["models"][0]["rows"] == 4


def test_an_index_wins(tmp_path, few):
    write_brick(tmp_path / "nsd_stimuli.hdf5", N)
    write_info(few, tmp_path / NSD_INFO)
    write_text(tmp_path / "nsd.csv", ["nsd_id,name,path", "6,six,images/six.jpg", "2,two,images/two.jpg"])
    table = load_dataset("nsd", tmp_path)
    assert table["stimulus_id"].tolist() == [6, 2]
    assert table["image"].tolist() == [str(tmp_path / f"images/{name}.jpg") for name in ("six", "two")]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda few: few.assign(nsdId=few["nsdId"].replace(3, 4)), "4"),
        (lambda few: few.assign(nsdId=few["nsdId"].replace(3, 73_000)), "73000"),
        (lambda few: few.assign(nsdId=few["nsdId"].replace(3, -1)), "-1"),
        (lambda few: few.drop(columns="nsdId"), "nsdId"),
    ],
    ids=["twice", "too large", "negative", "no column"],
)
def test_a_damaged_table_is_refused(tmp_path, few, damage, named):
    write_brick(tmp_path / "nsd_stimuli.hdf5", N)
    write_info(damage(few), tmp_path / NSD_INFO)
    message = refusal(tmp_path)
    assert NSD_INFO in message
    assert named in message.replace("73,000", "73000")


def test_macos_files_are_not_taken_for_the_published_ones(tmp_path, few):
    write_brick(tmp_path / STIMULI / "nsd_stimuli.hdf5", N)
    write_info(few, tmp_path / NSD_BUCKET / NSD_INFO)
    for path in (tmp_path / STIMULI / "._nsd_stimuli.hdf5", tmp_path / NSD_BUCKET / f"._{NSD_INFO}"):
        path.write_bytes(b"\0\5\x16\7")
    check_info(load_dataset("nsd", tmp_path), few)


def test_a_file_that_broke_off_is_refused(tmp_path):
    write_brick(tmp_path / STIMULI / "nsd_stimuli.hdf5", 200, side=8)
    path = tmp_path / STIMULI / "nsd_stimuli.hdf5"
    path.write_bytes(path.read_bytes()[:-5000])
    assert "nsd_stimuli.hdf5" in refusal(tmp_path)


def test_an_empty_root_names_what_is_looked_for(tmp_path):
    message = refusal(tmp_path)
    for name in ("nsd.csv", "nsd_stimuli.hdf5", STIMULI):
        assert name in message, name
