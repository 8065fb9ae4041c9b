"""Trials in scanner order: each dataset's sources against lists that are worked out from the design itself."""

import numpy as np
import pandas as pd
import pytest
from helpers.published import (
    BOLD_LISTS,
    CONCEPTS,
    NSD_BUCKET,
    NSD_INFO,
    NSD_SESSIONS,
    THINGS_SHOWN,
    TRIAL_COLUMNS,
    ShuffledFolders,
    bold_rows,
    bold_shown,
    bold_trials,
    list_path,
    nsd_design,
    nsd_info,
    nsd_trials,
    things_metadata,
    things_paths,
    things_rows,
    things_trials,
    write_bold,
    write_brick,
    write_nsd_mat,
    write_text,
    write_things,
    write_things_metadata,
)

from lit_extract import load_dataset, load_trials
from lit_extract.common.errors import InputError

ALL = range(1, 9)
MAT = "nsd_expdesign.mat"


def check_trials(trials, expected, images):
    """The table has these trials; their rows are those of ``images``, a stimulus table, or missing."""
    assert trials.columns.tolist() == [*TRIAL_COLUMNS, "row"]
    for column in TRIAL_COLUMNS:
        assert trials[column].tolist() == expected[column].tolist(), column
    assert isinstance(trials.index, pd.RangeIndex)
    assert trials.index.tolist() == list(range(len(expected)))
    row_of = {stimulus: row for row, stimulus in enumerate(images["stimulus_id"])}
    assert trials["row"].dtype == "Int64"
    assert trials["row"].astype(object).where(trials["row"].notna(), None).tolist() == [
        row_of.get(stimulus) for stimulus in expected["stimulus_id"]
    ]


def refusal(*arguments):
    with pytest.raises(InputError) as error:
        load_trials(*arguments)
    return str(error.value)


def message_of(*arguments):
    """Return what a refusal says, or nothing."""
    try:
        load_trials(*arguments)
    except InputError as error:
        return str(error)
    return ""


# NSD


@pytest.fixture(scope="module")
def design():
    return nsd_design()


@pytest.fixture(scope="module")
def info_text(design):
    return nsd_info(*design).to_csv(index=False)


@pytest.fixture(scope="module")
def with_info(tmp_path_factory, info_text):
    """A folder with all images and the published table."""
    root = tmp_path_factory.mktemp("info")
    write_brick(root / "nsd_stimuli.hdf5", 73_000, side=1)
    (root / NSD_INFO).write_text(info_text)
    return root


@pytest.fixture(scope="module")
def with_mat(tmp_path_factory, design):
    """A folder with all images and the published design, where the bucket has them."""
    root = tmp_path_factory.mktemp("mat")
    write_brick(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", 73_000, side=1)
    write_nsd_mat(root / NSD_BUCKET / MAT, *design)
    return root


@pytest.fixture(scope="module")
def images():
    return pd.DataFrame({"stimulus_id": range(73_000)})


def test_the_design_is_the_published_one(design):
    """The oracle's own: each image three times, 750 trials a session, 73,000 images in all."""
    masterordering, subjectim = design
    assert np.unique(subjectim).tolist() == list(range(1, 73_001))
    assert (np.bincount(masterordering)[1:] == 3).all()
    trials = nsd_trials(1, *design)
    runs = trials.groupby(["session", "run"]).size()
    assert runs.groupby("session").sum().tolist() == [750] * 40
    assert runs.loc[1].tolist() == [63, 62] * 6
    assert sorted(trials["repetition"].value_counts().items()) == [(0, 10_000), (1, 10_000), (2, 10_000)]


@pytest.mark.parametrize("subject", [3, *(pytest.param(other, marks=pytest.mark.slow) for other in ALL if other != 3)])
def test_both_sources_of_nsd_are_the_trials_that_were_run(with_info, with_mat, design, images, subject):
    expected = nsd_trials(subject, *design)
    first, second = load_trials("nsd", subject, with_info), load_trials("nsd", subject, with_mat)
    check_trials(first, expected, images)
    pd.testing.assert_frame_equal(first, second)
    assert len(first) == 750 * NSD_SESSIONS[subject - 1]
    assert first["session"].max() == NSD_SESSIONS[subject - 1]
    assert first.attrs["dataset"] == second.attrs["dataset"] == "nsd"


def test_the_table_comes_before_the_design(with_info, design, images, tmp_path):
    for name in ("nsd_stimuli.hdf5", NSD_INFO):
        (tmp_path / name).symlink_to(with_info / name)
    (tmp_path / MAT).write_bytes(b"no design")
    check_trials(load_trials("nsd", 4, tmp_path), nsd_trials(4, *design), images)


@pytest.mark.parametrize("place", ["", NSD_BUCKET])
def test_the_design_is_found_at_the_root_too(tmp_path, design, place):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    write_nsd_mat(tmp_path / place / MAT, *design)
    images = pd.DataFrame({"stimulus_id": range(5)})
    check_trials(load_trials("nsd", 1, tmp_path), nsd_trials(1, *design), images)


@pytest.mark.parametrize("orientation", [lambda order: order[:, None], lambda order: order.astype(np.uint16)])
def test_the_design_may_be_stored_in_other_ways(tmp_path, design, orientation):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    write_nsd_mat(tmp_path / MAT, *design, masterordering=orientation(design[0]))
    trials = load_trials("nsd", 8, tmp_path)
    assert trials["stimulus_id"].tolist() == nsd_trials(8, *design)["stimulus_id"].tolist()


def test_images_that_the_index_lacks_have_no_row(tmp_path, with_info, design):
    (tmp_path / NSD_INFO).symlink_to(with_info / NSD_INFO)
    ids = [2, 50_000, 0, 3]
    write_text(tmp_path / "nsd.csv", ["nsd_id,name,path", *(f"{number},n{number},{number}.jpg" for number in ids)])
    trials = load_trials("nsd", 5, tmp_path)
    check_trials(trials, nsd_trials(5, *design), pd.DataFrame({"stimulus_id": ids}))
    assert trials["row"].notna().sum() >= 9, "images 0, 2 and 3 were seen three times by all"
    of_index = load_dataset("nsd", tmp_path)
    chosen = trials.dropna(subset="row")
    assert of_index["nsd_id"].iloc[chosen["row"]].tolist() == chosen["stimulus_id"].tolist()


def test_subjects_may_be_numpy_integers(with_mat):
    trials = load_trials("nsd", np.int64(8), with_mat)
    pd.testing.assert_frame_equal(trials, load_trials("nsd", 8, with_mat))


def test_the_root_may_come_from_the_environment(with_mat, monkeypatch):
    monkeypatch.setenv("NSD_DATASET", str(with_mat))
    pd.testing.assert_frame_equal(load_trials("nsd", 8), load_trials("nsd", 8, with_mat))


def broken_info(text, nsd_id, changes):
    """The published table with other values in the line of an image."""
    header, *lines = text.splitlines()
    names = header.split(",")
    line = lines[nsd_id].replace(", ", "; ").split(",")
    for column, value in changes.items():
        line[names.index(column)] = str(value)
    lines[nsd_id] = ",".join(line).replace("; ", ", ")
    return "\n".join([header, *lines, ""])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"subject1_rep1": "first"}, ["subject1_rep1"]),
        ({"nsdId": 73_000}, ["nsdId", "73000"]),
        ({"nsdId": 1}, ["nsdId", "1"]),
        ({"subject1_rep0": -3}, ["subject1_rep0", "-3"]),
    ],
    ids=["no number", "id too large", "id twice", "negative"],
)
def test_a_damaged_table_of_nsd_is_refused(tmp_path, info_text, changes, named):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    (tmp_path / NSD_INFO).write_text(broken_info(info_text, 0, changes))
    message = refusal("nsd", 1, tmp_path).replace("73,000", "73000")
    assert NSD_INFO in message
    assert all(text in message for text in named), message


def test_a_trial_number_twice_in_the_table_of_nsd_is_refused(tmp_path, info_text, design):
    """Both are of trials that were run; then there is another one that no image has."""
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    shown = nsd_trials(1, *design)
    other = int(shown[(shown["stimulus_id"] != 0) & (shown["trial"] > 25_000)]["trial"].iloc[0]) + 1
    (tmp_path / NSD_INFO).write_text(broken_info(info_text, 0, {"subject1_rep2": other}))
    message = refusal("nsd", 1, tmp_path)
    assert NSD_INFO in message
    assert str(other) in message.replace(",", "")


@pytest.mark.parametrize("column", ["nsdId", "subject1_rep0", "subject1_rep2"])
def test_a_missing_column_of_the_table_of_nsd_is_named(tmp_path, info_text, column):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    header, _, rest = info_text.partition("\n")
    changed = ",".join("other" if name == column else name for name in header.split(","))
    (tmp_path / NSD_INFO).write_text(f"{changed}\n{rest}")
    message = refusal("nsd", 1, tmp_path)
    assert NSD_INFO in message
    assert column in message


def replaced(values, value):
    values = values.copy()
    values.flat[5] = value
    return values


@pytest.mark.parametrize(
    "damage",
    [
        lambda order, images: {"masterordering": None},
        lambda order, images: {"subjectim": None},
        lambda order, images: {"masterordering": replaced(order, 0)[None].astype(float)},
        lambda order, images: {"masterordering": replaced(order, 10_001)[None].astype(float)},
        lambda order, images: {"masterordering": replaced(order.astype(float), 7.5)[None]},
        lambda order, images: {"masterordering": replaced(order.astype(float), np.nan)[None]},
        lambda order, images: {"masterordering": np.array(["text"])},
        lambda order, images: {"masterordering": order[None, :20_000].astype(float)},
        lambda order, images: {"subjectim": replaced(images, 0).astype(float)},
        lambda order, images: {"subjectim": replaced(images, 73_001).astype(float)},
        lambda order, images: {"subjectim": images[:7].astype(float)},
        lambda order, images: {"subjectim": images[:, :9000].astype(float)},
    ],
    ids=[
        *("no order", "no images", "order 0", "order too large", "no integer", "NaN", "text", "too short"),
        *("image 0", "image too large", "no subject 8", "too few images"),
    ],
)
def test_a_damaged_design_is_refused(tmp_path, design, damage):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    write_nsd_mat(tmp_path / MAT, *design, **damage(*design))
    assert MAT in message_of("nsd", 1, tmp_path) + message_of("nsd", 8, tmp_path), "it was accepted for both"


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(300), b"no design at all\n" * 20])
def test_a_file_that_is_no_design_is_refused(tmp_path, content):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    (tmp_path / MAT).write_bytes(content)
    assert MAT in refusal("nsd", 1, tmp_path)


def test_a_design_that_broke_off_is_refused(tmp_path, with_mat):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    content = (with_mat / NSD_BUCKET / MAT).read_bytes()
    (tmp_path / MAT).write_bytes(content[: len(content) // 3])
    assert MAT in refusal("nsd", 1, tmp_path)


def test_without_sources_both_are_named(tmp_path):
    write_brick(tmp_path / "nsd_stimuli.hdf5", 5)
    message = refusal("nsd", 1, tmp_path)
    assert NSD_INFO in message
    assert MAT in message


# THINGS


@pytest.fixture
def things(tmp_path):
    write_things(tmp_path, things_paths(), CONCEPTS)
    write_things_metadata(tmp_path)
    return tmp_path


@pytest.mark.parametrize("subject", THINGS_SHOWN)
@pytest.mark.parametrize("folder", ["", "betas_csv", "fmri/single-trial/betas_csv"])
def test_things_has_its_published_trials(tmp_path, subject, folder):
    write_things(tmp_path, things_paths("stimuli/THINGS/Images"), CONCEPTS)
    write_things_metadata(tmp_path, folder)
    trials = load_trials("things", subject, tmp_path)
    check_trials(trials, things_trials(subject, things_rows(things_paths())), load_dataset("things", tmp_path))
    assert trials.attrs["dataset"] == "things"
    assert trials["row"].notna().all()


def test_repetitions_of_things_count_over_sessions_and_kinds_of_trial(things):
    trials = load_trials("things", 1, things)
    assert trials["repetition"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    images = load_dataset("things", things)
    shown = images["image_name"].iloc[trials["row"]].tolist()
    assert shown == [stem for _, _, stem, _ in THINGS_SHOWN[1]]


def test_things_with_an_index_has_its_ids(things):
    names = ["dog_12s", "bat_02s", "zebra_01b", "bat1_01b", "aardvark_13s", "bat1_03s", "ice_cream_01b", "bat_10n"]
    header = "things_id,image_name,category,category_id,image_category_index,image_path"
    lines = [f"{100 + k},{stem},c,1,1,Images/{stem}.jpg" for k, stem in enumerate(names)]
    write_text(things / "preprocessed" / "images.csv", [header, *lines])
    trials = load_trials("things", 1, things)
    assert trials["stimulus_id"].tolist() == [100 + names.index(stem) for _, _, stem, _ in THINGS_SHOWN[1]]
    assert trials["row"].tolist() == [names.index(stem) for _, _, stem, _ in THINGS_SHOWN[1]]


def test_a_file_of_macos_is_not_taken_for_the_trials(things):
    expected = load_trials("things", 1, things)
    for folder in ("betas_csv", "__MACOSX/betas_csv"):
        (things / folder).mkdir(parents=True, exist_ok=True)
        (things / folder / "._sub-01_StimulusMetadata.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    pd.testing.assert_frame_equal(load_trials("things", 1, things), expected)


def write_metadata(root, table):
    table.to_csv(root / "betas_csv" / "sub-01_StimulusMetadata.csv", index=False)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda table: table.drop(columns="session"), ["session"]),
        (lambda table: table.drop(columns="run"), ["run"]),
        (lambda table: table.drop(columns="stimulus"), ["stimulus"]),
        (lambda table: table.assign(trial_id=[0, 1, 1, *range(3, 11)]), ["trial_id", "1"]),
        (lambda table: table.assign(session="first"), ["session", "first"]),
        (lambda table: table.assign(run=[1.5, *table["run"][1:]]), ["run", "1.5"]),
        (lambda table: table.assign(session=[0, *table["session"][1:]]), ["session", "0"]),
        (lambda table: table.replace("dog_12s.jpg", "dogs_12s.jpg"), ["dogs_12s", "1"]),
        (lambda table: table.iloc[:0], []),
    ],
    ids=["session", "run", "stimulus", "trial twice", "text", "no integer", "session 0", "unknown stimulus", "empty"],
)
def test_damaged_trials_of_things_are_refused(things, damage, named):
    write_metadata(things, damage(things_metadata(1)))
    message = refusal("things", 1, things)
    assert "sub-01_StimulusMetadata.csv" in message
    assert all(text in message for text in named), message


def test_trials_of_things_in_another_order_are_sorted_or_refused(things):
    """Its trial_id is the column of the responses."""
    write_metadata(things, things_metadata(1).sort_values("stimulus"))
    try:
        trials = load_trials("things", 1, things)
    except InputError as error:
        message = str(error)
    else:
        message = "trial_id"
        images = things_rows(things_paths(), CONCEPTS)
        check_trials(trials, things_trials(1, images), load_dataset("things", things))
    assert "trial_id" in message


def test_stimuli_that_are_no_images_of_things_are_counted(things):
    table = things_metadata(1)
    table["stimulus"] = [f"catch_{row:02d}.jpg" for row in range(len(table))]
    write_metadata(things, table)
    message = refusal("things", 1, things)
    assert "catch_00" in message
    assert "11" in message


def test_trials_of_things_for_a_subject_without_a_file(things):
    assert "sub-03_StimulusMetadata.csv" in refusal("things", 3, things)


# BOLD5000


@pytest.mark.parametrize("base", ["", "BOLD5000_Stimuli/"])
@pytest.mark.parametrize("subject", [1, 2, 3, 4])
def test_bold5000_has_the_trials_of_its_lists(tmp_path, base, subject):
    write_bold(tmp_path, base)
    trials = load_trials("bold5000", subject, tmp_path)
    check_trials(trials, bold_trials(subject), load_dataset("bold5000", tmp_path))
    assert trials.attrs["dataset"] == "bold5000"
    assert trials["session"].nunique() == (1 if subject == 4 else 2), "a subject with fewer sessions"


def test_trials_of_missing_images_keep_their_ids_and_have_no_row(tmp_path):
    missing = ("airport1.jpg", "beach5.jpg")
    write_bold(tmp_path, missing=missing)
    images = load_dataset("bold5000", tmp_path)
    for subject in (1, 2, 3, 4):
        trials = load_trials("bold5000", subject, tmp_path)
        check_trials(trials, bold_trials(subject), images)
        assert trials["row"].isna().tolist() == [name in missing for name in bold_shown(subject)]


def test_names_that_differ_from_the_disk_are_the_same_trials(tmp_path):
    write_bold(tmp_path, on_disk={"airport1.jpg": "Airport1.JPEG", "zoo3.jpg": "zoo3.JPG"})
    write_text(tmp_path / list_path(2, 1, 1), ["N02084071_7.jpeg", "rep_AIRPORT1.jpg", *BOLD_LISTS[2, 1, 1][2:]])
    images = load_dataset("bold5000", tmp_path)
    for subject in (1, 2, 4):
        check_trials(load_trials("bold5000", subject, tmp_path), bold_trials(subject), images)


def test_trials_of_bold5000_under_an_index(tmp_path):
    """The index names the images; the lists are the published ones."""
    write_bold(tmp_path)
    rows = bold_rows().iloc[::-1]
    (tmp_path / "preprocessed").mkdir()
    rows.to_csv(tmp_path / "preprocessed" / "images.csv", index=False)
    check_trials(load_trials("bold5000", 1, tmp_path), bold_trials(1), load_dataset("bold5000", tmp_path))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_a_listing_changes_no_trial(tmp_path, monkeypatch, seed):
    write_bold(tmp_path / "bold")
    write_things(tmp_path / "things", things_paths(), CONCEPTS)
    write_things_metadata(tmp_path / "things", "fmri/betas_csv")
    roots = {"bold5000": (1, tmp_path / "bold"), "things": (1, tmp_path / "things")}
    before = {name: load_trials(name, *where) for name, where in roots.items()}
    shuffled = ShuffledFolders(monkeypatch, seed)
    for name, where in roots.items():
        pd.testing.assert_frame_equal(load_trials(name, *where), before[name])
    assert shuffled.changed > 2


def test_an_empty_list_of_bold5000_is_refused(tmp_path):
    write_bold(tmp_path)
    path = tmp_path / list_path(1, 1, 2)
    path.write_bytes(b"")
    assert path.name in refusal("bold5000", 1, tmp_path)


# all


@pytest.mark.parametrize("dataset", ["nsd", "bold5000", "things"])
@pytest.mark.parametrize("subject", [9, 0, -1])
def test_an_unknown_subject_is_refused(tmp_path, with_mat, dataset, subject):
    write_bold(tmp_path / "bold5000")
    write_things(tmp_path / "things", things_paths(), CONCEPTS)
    write_things_metadata(tmp_path / "things")
    message = refusal(dataset, subject, with_mat if dataset == "nsd" else tmp_path / dataset)
    assert "subject" in message
    assert str(subject) in message


@pytest.mark.parametrize(("dataset", "root"), [("demo", None), ("folder", ".")])
def test_a_dataset_without_trials_names_those_that_have_some(dataset, root):
    message = refusal(dataset, 1, root)
    assert all(name in message for name in (dataset, "nsd", "bold5000", "things")), message


def test_an_unknown_dataset_is_refused():
    assert "'nds'" in refusal("nds", 1)


@pytest.mark.parametrize("dataset", ["nsd", "bold5000", "things"])
def test_a_root_that_is_no_folder_is_refused(tmp_path, dataset):
    assert str(tmp_path / "nowhere") in refusal(dataset, 1, tmp_path / "nowhere")
