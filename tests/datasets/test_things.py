"""THINGS as it is downloaded: the ids are those of the original scripts, whatever else lies in the folders."""

import os
import re

import pytest
from helpers.published import (
    CONCEPTS,
    THINGS,
    THINGS_COLUMNS,
    THINGS_FULL,
    ShuffledFolders,
    check_table,
    sentences_with,
    things_paths,
    things_rows,
    write_image,
    write_text,
    write_things,
)

from lit_extract import load_dataset
from lit_extract.common.errors import InputError

BASES = ["stimuli/THINGS/Images", "Images", "object_images", ""]
PARTS = {
    "aardvark": "object_images_A-C",
    "bat": "object_images_A-C",
    "bat1": "object_images_A-C",
    "dog": "object_images_D-K",
    "ice_cream": "object_images_D-K",
    "zebra": "object_images_S-Z",
}
N_IMAGES, N_CATEGORIES = sum(map(len, THINGS.values())), len(THINGS)


def check_rows(root, paths, concepts=None):
    """The table has these images; returns what was found."""
    table, expected = load_dataset("things", root), things_rows(paths, concepts)
    assert table.columns.tolist() == ["stimulus_id", "image", *THINGS_COLUMNS]
    assert table["stimulus_id"].tolist() == list(range(len(paths)))
    return check_table(table, root, expected, THINGS_COLUMNS)


def refusal(root):
    with pytest.raises(InputError) as error:
        load_dataset("things", root)
    return str(error.value)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("concepts", [None, CONCEPTS])
def test_each_published_layout(tmp_path, base, concepts):
    paths = things_paths(base)
    check_rows(write_things(tmp_path, paths, concepts), paths, concepts)


def test_several_parts_are_one_dataset(tmp_path):
    paths = things_paths(by_part=PARTS)
    check_rows(write_things(tmp_path, paths, CONCEPTS), paths, CONCEPTS)


def test_ids_count_files_by_name_not_by_path(tmp_path):
    write_things(tmp_path, things_paths())
    table = load_dataset("things", tmp_path)
    names = ["bat1_01b", "bat1_03s", "bat_01b", "bat_02s", "bat_10n"]
    assert table["image_name"].tolist()[3:8] == names, "after three of aardvark"
    assert table.set_index("image_name").loc[names, "category_id"].tolist() == [2, 2, 1, 1, 1], "bat is before bat1"
    assert table["image_category_index"].tolist()[:8] == [1, 2, 3, 1, 2, 1, 2, 3]


def test_ids_do_not_depend_on_the_parts(tmp_path):
    together, apart = tmp_path / "together", tmp_path / "apart"
    write_things(together, things_paths("stimuli/THINGS/Images"))
    write_things(apart, things_paths(by_part=PARTS))
    columns = [column for column in THINGS_COLUMNS if column != "image_path"]
    first, second = (load_dataset("things", root)[columns] for root in (together, apart))
    assert first.to_dict("list") == second.to_dict("list")


@pytest.mark.parametrize(
    ("base", "metadata"), [("stimuli/THINGS/Images", "stimuli/THINGS"), ("stimuli/THINGS/Images", ""), ("Images", "")]
)
def test_category_ids_are_rows_of_the_list_of_concepts(tmp_path, base, metadata):
    paths = things_paths(base)
    findings = check_rows(write_things(tmp_path, paths, CONCEPTS, metadata), paths, CONCEPTS)
    by_name = dict(load_dataset("things", tmp_path)[["category", "category_id"]].itertuples(index=False))
    assert by_name == {"aardvark": 0, "ice_cream": 1, "bat1": 3, "bat": 4, "dog": 5, "zebra": 7}
    assert sentences_with(findings, 3, "abacus"), "concepts without images are counted and named"


def test_ranks_in_the_place_of_the_list_of_concepts_are_reported(tmp_path):
    paths = things_paths()
    findings = check_rows(write_things(tmp_path, paths), paths)
    assert len(sentences_with(findings, "unique_id.csv")) == 1
    listed = check_rows(write_things(tmp_path, paths, sorted(THINGS)), paths, sorted(THINGS))
    assert not sentences_with(listed, "unique_id.csv")


def test_a_category_that_is_no_concept_is_named(tmp_path):
    write_things(tmp_path, things_paths(), [name for name in CONCEPTS if name != "dog"])
    assert "dog" in refusal(tmp_path)


def test_other_counts_than_those_of_the_full_set_are_reported(tmp_path):
    paths = things_paths()
    findings = check_rows(write_things(tmp_path, paths, CONCEPTS), paths, CONCEPTS)
    assert sentences_with(findings, N_IMAGES, THINGS_FULL[0])
    assert sentences_with(findings, N_CATEGORIES, THINGS_FULL[1])


def test_nothing_is_found_wrong_with_the_full_set(tmp_path):
    concepts = [f"concept{k:04d}" for k in range(THINGS_FULL[1])]
    root = write_things(tmp_path / "things", [], concepts)
    write_image(tmp_path / "one.jpg")
    paths = []
    for number in range(THINGS_FULL[0]):
        category = concepts[number % len(concepts)]
        paths.append(f"Images/{category}/{category}_{number // len(concepts):02d}b.jpg")
        if number < len(concepts):
            (root / "Images" / category).mkdir(parents=True)
        os.link(tmp_path / "one.jpg", root / paths[-1])
    table = load_dataset("things", root)
    assert table["image_path"].tolist() == sorted(paths, key=lambda path: path.split("/")[-1])
    assert table["category_id"].max() == THINGS_FULL[1] - 1
    assert table.attrs["findings"] == []


@pytest.mark.parametrize("base", ["stimuli/THINGS/Images", "object_images", ""])
@pytest.mark.parametrize(
    ("junk", "named"),
    [
        ([f"dog/._dog_{k:02d}s.jpg" for k in range(7)], "._"),
        ([f"__MACOSX/dog/._dog_{k:02d}s.jpg" for k in range(7)], "__MACOSX"),
        ([f"__MACOSX/dog/dog_{k:02d}s.jpg" for k in range(7)], "__MACOSX"),
        ([f"dog/.thumbnails/dog_{k:02d}s.jpg" for k in range(7)], "thumb"),
        ([f"thumbnails/dog_{k:02d}s.jpg" for k in range(7)], "thumb"),
        ([f"dog/thumbnails/dog_{k:02d}s.jpg" for k in range(7)], "thumb"),
        ([f"{name}/Thumbs.db" for name in THINGS], "Thumbs.db"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_systems_leave_behind_is_one_counted_line_and_no_row(tmp_path, base, junk, named):
    paths = things_paths(base)
    clean = check_rows(write_things(tmp_path, paths, CONCEPTS), paths, CONCEPTS)
    for path in junk:
        write_image(tmp_path / base / path)
    new = [text for text in check_rows(tmp_path, paths, CONCEPTS) if text not in clean]
    assert len(new) == 1, new
    is_folder = "/.thumbnails/" in f"/{junk[0]}"  # a hidden folder counts as one
    assert sentences_with(new, named, 1 if is_folder else len(junk)), new


def test_a_macos_folder_next_to_the_images_is_no_row(tmp_path):
    paths = things_paths(by_part=PARTS)
    write_things(tmp_path, paths, CONCEPTS)
    for path in paths:
        folder, _, file = path.rpartition("/")
        write_image(tmp_path / "__MACOSX" / folder / f"._{file}")
    check_rows(tmp_path, paths, CONCEPTS)


@pytest.mark.parametrize("what", ["empty", "not fetched"])
def test_images_without_content_keep_their_ids_and_are_no_rows(tmp_path, what):
    """As when an archive was not unpacked to its end, or in a clone by git-annex, whose contents come later."""
    write_things(tmp_path, things_paths(), CONCEPTS)
    lost = ["bat_02s", "dog_12s"]
    for name in ("bat/bat_02s.jpg", "dog/dog_12s.jpg"):
        (tmp_path / "Images" / name).unlink()
        if what == "empty":
            (tmp_path / "Images" / name).touch()
        else:
            (tmp_path / "Images" / name).symlink_to("../../.git/annex/objects/x.jpg")
    table, expected = load_dataset("things", tmp_path), things_rows(things_paths(), CONCEPTS)
    expected = expected[~expected["image_name"].isin(lost)]
    for column in THINGS_COLUMNS:
        assert table[column].tolist() == expected[column].tolist(), column
    assert sentences_with(table.attrs["findings"], "bat_02s.jpg", "dog_12s.jpg", 2)


def test_hidden_folders_next_to_the_images_are_no_rows(tmp_path):
    paths = things_paths("")
    write_things(tmp_path, paths, CONCEPTS)
    for name in (".thumbnails/dog_13s.jpg", ".git/dog/dog_14s.jpg", ".Trash/bat/bat_99s.jpg"):
        write_image(tmp_path / name)
    check_rows(tmp_path, paths, CONCEPTS)


def test_other_files_and_formats_are_no_rows(tmp_path):
    paths = things_paths()
    write_things(tmp_path, paths, CONCEPTS)
    for name in ("Images/dog/dog_12s.png", "Images/dog/readme.txt", "Images/.DS_Store", "Images/dog/dog_12s.jpg.part"):
        write_image(tmp_path / name)
    check_rows(tmp_path, paths, CONCEPTS)


@pytest.mark.parametrize("archive", ["object_images_L-Q.zip", "object_images_D-K/object_images_D-K.zip"])
def test_an_archive_that_still_lies_there_is_named(tmp_path, archive):
    paths = things_paths(by_part=PARTS)
    clean = check_rows(write_things(tmp_path, paths, CONCEPTS), paths, CONCEPTS)
    (tmp_path / archive).write_bytes(b"PK\x03\x04" + bytes(100))
    new = [text for text in check_rows(tmp_path, paths, CONCEPTS) if text not in clean]
    assert len(new) == 1
    assert sentences_with(new, archive.split("/")[-1], 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("object_images_A-C/bat", "object_images/bat"),
        ("object_images_A-C/bat", "object_images_A-C/object_images_A-C/bat"),
        ("Images/bat", "Images/bat (1)"),
        ("Images/bat", "object_images/bat"),
        ("stimuli/THINGS/Images/bat", "Images/bat"),
    ],
)
def test_images_that_were_unpacked_twice_are_refused(tmp_path, first, second):
    for folder in (first, second):
        for number in range(9):
            write_image(tmp_path / folder / f"bat_{number:02d}b.jpg")
    message = refusal(tmp_path)
    assert sentences_with([message], "bat_00b.jpg", 9) or sentences_with([message], "bat_00b.jpg", 18), message


def test_an_index_wins(tmp_path):
    paths = things_paths()
    write_things(tmp_path, paths)
    write_text(
        tmp_path / "preprocessed" / "images.csv",
        [",".join(THINGS_COLUMNS), f"70,dog_12s,dog,9,1,{paths[-1]}", f"3,bat_01b,bat,8,1,{paths[4]}"],
    )
    table = load_dataset("things", tmp_path)
    assert table["stimulus_id"].tolist() == [70, 3]
    assert table["category_id"].tolist() == [9, 8]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_part", [None, PARTS])
def test_the_order_of_a_listing_changes_nothing(tmp_path, monkeypatch, seed, by_part):
    paths = things_paths(by_part=by_part)
    write_things(tmp_path, paths)
    for name in ("dog/._dog_12s.jpg", "thumbnails/dog_12s.jpg", "bat/Thumbs.db", "bat/._bat_01b.jpg"):
        write_image(tmp_path / (by_part["bat"] if by_part else "Images") / name)
    findings = load_dataset("things", tmp_path).attrs["findings"]
    shuffled = ShuffledFolders(monkeypatch, seed)
    assert check_rows(tmp_path, paths) == findings
    assert shuffled.changed > 2


def test_a_folder_without_images_names_where_they_are_looked_for(tmp_path):
    (tmp_path / "Images").mkdir()
    message = refusal(tmp_path)
    for name in (str(tmp_path), "preprocessed/images.csv", "stimuli/THINGS/Images", "object_images"):
        assert name in message, name


def test_a_query_keeps_the_ids_and_the_findings(tmp_path):
    write_things(tmp_path, things_paths())
    whole, part = load_dataset("things", tmp_path), load_dataset("things", tmp_path, "category == 'bat'")
    assert part["stimulus_id"].tolist() == [5, 6, 7]
    assert part.attrs["findings"] == whole.attrs["findings"]
    assert re.search("things_id", part.attrs["stimulus_id_meaning"])
