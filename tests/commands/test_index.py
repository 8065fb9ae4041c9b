"""lit-extract index: an index that gives the same table as the folder without it, and what was found."""

import pandas as pd
import pytest
from helpers.published import (
    CONCEPTS,
    NSD_BUCKET,
    NSD_INFO,
    PRESENTED,
    ShuffledFolders,
    nsd_design,
    nsd_info,
    things_paths,
    write_bold,
    write_brick,
    write_image,
    write_text,
    write_things,
)

from lit_extract import load_dataset
from lit_extract.datasets.table import fingerprint

INDEX = {"things": "preprocessed/images.csv", "bold5000": "preprocessed/images.csv", "nsd": "nsd.csv"}
WRONG = {
    "things": "things_id,image_name,category,category_id,image_category_index,image_path\n5,a,b,1,1,a.jpg\n",
    "bold5000": "bold_id,image_name,stim_source,image_path\n5,a,coco,a.jpg\n",
    "nsd": "nsd_id,name,path\n5,a,a.jpg\n",
}
COLUMNS = {
    "things": ("things_id", "image_path"),
    "bold5000": ("bold_id", "image_path"),
    "nsd": ("nsd_id", "path"),
}
DONE = (0, 3)  # 3: look at what was found


@pytest.fixture(scope="module")
def info():
    return nsd_info(*nsd_design()).iloc[:20]


@pytest.fixture
def published(tmp_path, info):
    """A function that makes a folder of a dataset as it is published, with things to report."""

    def make(dataset):
        root = tmp_path / dataset
        if dataset == "things":
            write_things(root, things_paths("stimuli/THINGS/Images"), CONCEPTS)
            write_image(root / "stimuli/THINGS/Images/dog/._dog_12s.jpg")
        elif dataset == "bold5000":
            names = {"airport1.jpg": "Airport1.JPG"}
            write_bold(root, "BOLD5000_Stimuli/", names, missing=("zoo3.jpg", "nightclub2.jpg"))
            write_image(root / "BOLD5000_Stimuli" / PRESENTED / "Scene" / "._beach5.jpg")
        else:
            write_brick(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", 6)
            (root / NSD_BUCKET).mkdir(parents=True)
            info.to_csv(root / NSD_BUCKET / NSD_INFO, index=False)
        return root

    return make


def files_below(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dataset", INDEX)
def test_a_folder_with_its_index_gives_the_same_table_as_without(published, cli, dataset):
    root = published(dataset)
    before = load_dataset(dataset, root)
    files = files_below(root)
    code, out, err = cli("index", dataset, "--root", root)
    assert code in DONE, err
    assert str(root / INDEX[dataset]) in out
    after = load_dataset(dataset, root)
    pd.testing.assert_frame_equal(after, before)
    assert fingerprint(after) == fingerprint(before)
    assert set(files_below(root)) - set(files) == {root / INDEX[dataset]}, "nothing else was written"
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("dataset", INDEX)
def test_the_index_is_a_plain_table(published, cli, dataset):
    root = published(dataset)
    table = load_dataset(dataset, root)
    assert cli("index", dataset, "--root", root)[0] in DONE
    index = pd.read_csv(root / INDEX[dataset])
    id_column, path_column = COLUMNS[dataset]
    assert index[id_column].tolist() == table["stimulus_id"].tolist()
    assert [str(root / path) for path in index[path_column]] == table["image"].tolist()


@pytest.mark.parametrize("dataset", INDEX)
def test_an_index_of_a_moved_folder_finds_the_images(published, cli, dataset, tmp_path):
    root = published(dataset)
    assert cli("index", dataset, "--root", root)[0] in DONE
    moved = root.rename(tmp_path / "moved")
    table = load_dataset(dataset, moved)
    assert all(path.startswith(f"{moved}/") for path in table["image"])


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("things", ["12", "26,107", "6", "1,854", "._dog_12s.jpg", "abacus"]),
        ("bold5000", ["10", "zoo3.jpg", "nightclub2.jpg", "Airport1.JPG", "._beach5.jpg"]),
        ("nsd", ["6"]),
    ],
)
def test_what_was_found_is_printed(published, cli, dataset, named):
    root = published(dataset)
    findings = load_dataset(dataset, root).attrs["findings"]
    _, out, err = cli("index", dataset, "--root", root)
    assert all(text in out for text in named), out
    assert all(text in " ".join(out.split()) for text in findings), out
    assert err == ""


@pytest.mark.parametrize("dataset", INDEX)
def test_output_puts_it_elsewhere(published, cli, dataset, tmp_path):
    root = published(dataset)
    files = files_below(root)
    elsewhere, here = tmp_path / "elsewhere.csv", root / INDEX[dataset]
    assert cli("index", dataset, "--root", root, "--output", elsewhere)[0] in DONE
    assert files_below(root) == files
    assert cli("index", dataset, "--root", root)[0] in DONE
    assert here.read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize("dataset", INDEX)
def test_an_index_is_replaced_only_when_asked_to(published, cli, dataset, tmp_path):
    root = published(dataset)
    before = load_dataset(dataset, root)
    index = root / INDEX[dataset]
    index.parent.mkdir(exist_ok=True)
    index.write_text(WRONG[dataset])
    code, _, err = cli("index", dataset, "--root", root)
    assert code == 2
    assert str(index) in err
    assert "--overwrite" in err
    assert index.read_text() == WRONG[dataset]
    code, _, err = cli("index", dataset, "--root", root, "--overwrite")
    assert code in DONE, err
    pd.testing.assert_frame_equal(load_dataset(dataset, root), before)


def test_another_output_is_replaced_only_when_asked_to(published, cli, tmp_path):
    root, output = published("things"), tmp_path / "mine.csv"
    output.write_text("mine\n")
    code, _, err = cli("index", "things", "--root", root, "--output", output)
    assert code == 2
    assert str(output) in err
    assert output.read_text() == "mine\n"
    assert cli("index", "things", "--root", root, "--output", output, "--overwrite")[0] in DONE
    assert output.read_text().startswith("things_id,")


def test_a_parquet_index_of_bold5000_is_not_shadowed_or_shadowing(published, cli):
    """A CSV written next to it would never be read: there is an index already."""
    root = published("bold5000")
    rows = load_dataset("bold5000", root).iloc[:2]
    (root / "preprocessed").mkdir()
    rows.drop(columns=["stimulus_id", "image"]).to_parquet(root / "preprocessed" / "images.parquet", index=False)
    code, _, err = cli("index", "bold5000", "--root", root)
    assert code == 2
    assert "images.parquet" in err
    assert not (root / "preprocessed" / "images.csv").exists()


@pytest.mark.parametrize("dataset", INDEX)
@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_a_listing_changes_no_byte(published, cli, dataset, seed, tmp_path, monkeypatch):
    root = published(dataset)
    assert cli("index", dataset, "--root", root, "--output", tmp_path / "first.csv")[0] in DONE
    with monkeypatch.context() as patch:
        ShuffledFolders(patch, seed)
        assert cli("index", dataset, "--root", root, "--output", tmp_path / "second.csv")[0] in DONE
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_names_with_commas_quotes_and_other_scripts_survive(cli, tmp_path):
    names = ['ice, "cream"', "crème_brûlée", "=bat", "NA", "001", " lamp"]
    paths = [f"Images/{name}/{name}_01b.jpg" for name in names]
    write_things(tmp_path, paths)
    before = load_dataset("things", tmp_path)
    assert sorted(before["category"]) == sorted(names)
    assert cli("index", "things", "--root", tmp_path)[0] in DONE
    pd.testing.assert_frame_equal(load_dataset("things", tmp_path), before)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nds",), ["'nds'", "things"]),
        (("things", "--root", "nowhere"), ["nowhere"]),
        (("things", "--root", "."), ["things", "stimuli/THINGS/Images"]),
        (("bold5000", "--root", "."), ["bold5000", "Stimuli_Presentation_Lists"]),
        (("nsd", "--root", "."), ["nsd", "nsd_stimuli.hdf5"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_written(cli, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("index", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert all(text in err for text in named), err
    assert list(tmp_path.iterdir()) == []


def test_images_that_were_unpacked_twice_leave_no_index(cli, tmp_path):
    write_things(tmp_path, ["object_images/dog/dog_01b.jpg", "object_images_D-K/dog/dog_01b.jpg"])
    code, _, err = cli("index", "things", "--root", tmp_path)
    assert code == 2
    assert "dog_01b.jpg" in err
    assert not (tmp_path / "preprocessed").exists()


def test_the_root_may_come_from_the_environment(published, cli, monkeypatch):
    root = published("nsd")
    monkeypatch.setenv("NSD_DATASET", str(root))
    assert cli("index", "nsd")[0] in DONE
    assert (root / "nsd.csv").is_file()


def test_a_missing_folder_of_the_output_is_one_error_or_made(published, cli, tmp_path):
    root = published("nsd")
    write_text(tmp_path / "file", ["x"])
    code, _, err = cli("index", "nsd", "--root", root, "--output", tmp_path / "file" / "nsd.csv")
    assert code == 2
    assert err.count("\n") == 1
