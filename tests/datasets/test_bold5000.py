"""BOLD5000 as it is downloaded: ids are positions in the lists of all presentations, and rows are images on disk."""

import tracemalloc

import pytest
from helpers.published import (
    BOLD_COLUMNS,
    BOLD_LISTS,
    PRESENTED,
    ShuffledFolders,
    bold_path,
    bold_rows,
    bold_shown,
    check_table,
    list_path,
    sentences_with,
    write_bold,
    write_image,
    write_text,
)

from lit_extract import load_dataset
from lit_extract.common.errors import InputError

BASES = ["", "BOLD5000_Stimuli/"]
OTHER_NAMES = {
    "airport1.jpg": "airport1.JPG",
    "beach5.jpg": "Beach5.jpeg",
    "n02084071_7.JPEG": "n02084071_7.jpg",
    "COCO_train2014_000000000009.jpg": "COCO_train2014_000000000009.png",
}


def check_rows(root, expected):
    """The table has these images; returns what was found."""
    return check_table(load_dataset("bold5000", root), root, expected, BOLD_COLUMNS)


def refusal(root):
    with pytest.raises(InputError) as error:
        load_dataset("bold5000", root)
    return str(error.value)


@pytest.mark.parametrize("base", BASES)
def test_each_published_layout(tmp_path, base):
    check_rows(write_bold(tmp_path, base), bold_rows(base))


def test_ids_are_positions_of_first_presentations_in_the_lists_of_all_subjects(tmp_path):
    write_bold(tmp_path)
    table = load_dataset("bold5000", tmp_path)
    # four lines of run 1, three of run 2, of which the second repeats; CSI2 begins with position 12
    assert table["bold_id"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 11, 15, 18, 24]
    assert table["bold_id"].max() > len(table)
    by_id = dict(table[["bold_id", "image_name"]].itertuples(index=False))
    assert by_id[2] == "airport1.jpg", "its first line begins with rep_ already"
    assert by_id[4] == "repair_shop1.jpg", "begins with rep, but not with rep_"
    assert by_id[15] == "beach5.jpg", "which CSI1 did not see"
    assert by_id[24] == "zoo3.jpg", "which CSI4 alone saw"
    sources = table.set_index("image_name")["stim_source"]
    assert sources["n01440764_10026.JPEG"] == "imagenet"
    assert sources["n02_scene.jpg"] == sources["nightclub2.jpg"] == sources["north_beach2.jpg"] == "scenes"
    assert sources["COCO2014_kitchen.jpg"] == "coco"


@pytest.mark.parametrize("base", BASES)
def test_names_that_differ_between_list_and_disk_are_found_and_reported(tmp_path, base):
    expected = bold_rows(base, OTHER_NAMES)
    findings = check_rows(write_bold(tmp_path, base, OTHER_NAMES), expected)
    assert expected["bold_id"].tolist() == bold_rows(base)["bold_id"].tolist()
    found = sentences_with(findings, len(OTHER_NAMES), "airport1.JPG")
    assert len(found) == 1, findings


def test_an_image_that_the_lists_spell_in_two_ways_is_one(tmp_path):
    write_bold(tmp_path)
    write_text(tmp_path / list_path(2, 1, 1), ["N02084071_7.jpeg", "rep_Airport1.jpg", *BOLD_LISTS[2, 1, 1][2:]])
    check_rows(tmp_path, bold_rows())


def test_a_name_that_could_be_either_of_two_files_is_refused(tmp_path):
    write_bold(tmp_path, on_disk={"beach5.jpg": "beach5.JPG"})
    write_image(tmp_path / PRESENTED / "Scene" / "Beach5.jpeg")
    assert "beach5.jpg" in refusal(tmp_path).lower()


def test_the_exact_name_comes_before_others(tmp_path):
    write_bold(tmp_path)
    write_image(tmp_path / PRESENTED / "Scene" / "Beach5.jpeg")
    check_rows(tmp_path, bold_rows())


def test_missing_images_are_named_and_counted_and_change_no_id(tmp_path):
    missing = ("airport1.jpg", "n01440764_10026.JPEG", "zoo3.jpg")
    expected = bold_rows(missing=missing)
    findings = check_rows(write_bold(tmp_path, missing=missing), expected)
    whole = bold_rows().set_index("image_name")["bold_id"]
    assert [whole[name] for name in expected["image_name"]] == expected["bold_id"].tolist()
    (line,) = sentences_with(findings, "airport1.jpg", len(missing))
    assert all(name in line for name in missing)


def test_an_empty_image_is_named_and_no_row(tmp_path):
    write_bold(tmp_path)
    (tmp_path / bold_path("zoo3.jpg", {})).write_bytes(b"")
    try:
        findings = check_rows(tmp_path, bold_rows(missing=("zoo3.jpg",)))
    except InputError as error:
        findings = [str(error)]
    assert sentences_with(findings, "zoo3.jpg", 1)


def test_images_of_no_list_are_counted_and_no_rows(tmp_path):
    write_bold(tmp_path)
    for number in range(7):
        write_image(tmp_path / PRESENTED / "COCO" / f"COCO_train2014_99999999999{number}.jpg")
    findings = check_rows(tmp_path, bold_rows())
    assert sentences_with(findings, "COCO_train2014_999999999990.jpg", 7)


def test_the_original_images_are_not_taken_for_those_presented(tmp_path):
    write_bold(tmp_path)
    for name in set(bold_shown()):
        write_image(tmp_path / bold_path(name, {}).replace("Presented_Stimuli", "Original_Images"))
    check_rows(tmp_path, bold_rows())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("junk", "named"),
    [
        ([f"{PRESENTED}/Scene/._scene{k}.jpg" for k in range(7)], "._"),
        ([f"{PRESENTED}/Scene/.thumbnails/airport{k}.jpg" for k in range(7)], "thumb"),
        ([f"{PRESENTED}/Scene/thumbnails/airport{k}.jpg" for k in range(7)], "thumb"),
        ([f"{PRESENTED}/{name}/Thumbs.db" for name in ("COCO", "ImageNet", "Scene")], "Thumbs.db"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_systems_leave_behind_is_one_counted_line_and_no_row(tmp_path, base, junk, named):
    clean = check_rows(write_bold(tmp_path, base), bold_rows(base))
    for path in junk:
        write_image(tmp_path / base / path)
    new = [text for text in check_rows(tmp_path, bold_rows(base)) if text not in clean]
    assert len(new) == 1, new
    is_folder = "thumbnails/" in junk[0]  # which counts as one
    assert sentences_with(new, named, 1 if is_folder else len(junk)), new


def test_lists_of_macos_and_other_files_are_no_presentations(tmp_path):
    write_bold(tmp_path)
    folder = tmp_path / list_path(1, 1, 1)
    folder.with_name(f"._{folder.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for path in (folder.parent / ".DS_Store", folder.parents[1] / ".DS_Store", folder.parents[2] / "._CSI1"):
        path.write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "__MACOSX" / list_path(1, 1, 1)).parent.mkdir(parents=True)
    (tmp_path / "__MACOSX" / list_path(1, 1, 1)).write_bytes(b"\0\5\x16\7")
    check_rows(tmp_path, bold_rows())


def test_a_number_that_is_no_run_costs_no_memory(tmp_path):
    """All numbers up to it are missing runs."""
    write_bold(tmp_path)
    write_text((tmp_path / list_path(1, 1, 1)).with_name("CSI1_sess01_run1000003.txt"), ["airport1.jpg"])
    tracemalloc.start()
    try:
        findings = load_dataset("bold5000", tmp_path).attrs["findings"]
        peak = tracemalloc.get_traced_memory()[1]
    except InputError as error:
        findings, peak = [str(error)], tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    assert sentences_with(findings, "1000003") or sentences_with(findings, "run 3")


def test_an_archive_that_was_not_unpacked_is_named(tmp_path):
    (tmp_path / "BOLD5000_Stimuli.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "BOLD5000_Stimuli.zip" in refusal(tmp_path)


@pytest.mark.parametrize("base", BASES)
def test_folders_of_macos_are_not_read(tmp_path, base):
    write_bold(tmp_path, base)
    for name in set(bold_shown()):
        path = bold_path(name, {}, base)
        write_image(tmp_path / "__MACOSX" / path)
        write_image(tmp_path / path.replace(PRESENTED, f"{PRESENTED}/__MACOSX"))
    check_rows(tmp_path, bold_rows(base))


def test_links_to_what_was_not_fetched_are_missing_images(tmp_path):
    """As in a clone by git-annex or DataLad, whose contents come later."""
    write_bold(tmp_path, missing=("zoo3.jpg", "beach5.jpg"))
    for name in ("zoo3.jpg", "beach5.jpg"):
        (tmp_path / bold_path(name, {})).symlink_to("../../../.git/annex/objects/x.jpg")
    findings = check_rows(tmp_path, bold_rows(missing=("zoo3.jpg", "beach5.jpg")))
    assert sentences_with(findings, "missing", "zoo3.jpg", "beach5.jpg", 2)


@pytest.mark.parametrize("index", ["images.csv", "images.parquet"])
def test_an_index_wins(tmp_path, index):
    write_bold(tmp_path)
    rows = bold_rows().iloc[[5, 2]].assign(bold_id=[40, 7])
    path = tmp_path / "preprocessed" / index
    path.parent.mkdir()
    rows.to_csv(path, index=False) if index.endswith("csv") else rows.to_parquet(path, index=False)
    assert load_dataset("bold5000", tmp_path)["stimulus_id"].tolist() == [40, 7]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_a_listing_changes_nothing(tmp_path, monkeypatch, seed):
    missing = ("zoo3.jpg", "nightclub2.jpg")
    write_bold(tmp_path, on_disk=OTHER_NAMES, missing=missing)
    for name in ("._airport1.jpg", "thumbnails/airport1.jpg", "Thumbs.db", "unknown2.jpg", "unknown1.jpg"):
        write_image(tmp_path / PRESENTED / "Scene" / name)
    findings = load_dataset("bold5000", tmp_path).attrs["findings"]
    shuffled = ShuffledFolders(monkeypatch, seed)
    assert check_rows(tmp_path, bold_rows(on_disk=OTHER_NAMES, missing=missing)) == findings
    assert shuffled.changed > 2


def test_without_lists_they_are_named(tmp_path):
    for name in set(bold_shown()):
        write_image(tmp_path / bold_path(name, {}))
    message = refusal(tmp_path)
    for name in (str(tmp_path), "Stimuli_Presentation_Lists", "preprocessed/images"):
        assert name in message, name


def test_without_images_there_are_no_rows_to_load(tmp_path):
    write_bold(tmp_path, missing=tuple(bold_shown()))
    assert "Presented_Stimuli" in refusal(tmp_path)


def test_an_empty_root_names_what_is_looked_for(tmp_path):
    message = refusal(tmp_path)
    for name in ("preprocessed/images.parquet", "preprocessed/images.csv", "Stimuli_Presentation_Lists"):
        assert name in message, name
