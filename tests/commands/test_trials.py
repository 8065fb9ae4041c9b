"""lit-extract trials: the table of a subject's trials in a file."""

import pandas as pd
import pytest
from helpers.published import (
    CONCEPTS,
    NSD_BUCKET,
    TRIAL_COLUMNS,
    bold_trials,
    nsd_design,
    nsd_trials,
    things_paths,
    things_rows,
    things_trials,
    write_bold,
    write_brick,
    write_nsd_mat,
    write_things,
    write_things_metadata,
)

from lit_extract import load_dataset, load_trials


@pytest.fixture
def root(tmp_path):
    """A folder with all three datasets, as they are published."""
    write_bold(tmp_path / "bold5000", missing=("airport1.jpg",))
    write_things(tmp_path / "things", things_paths(), CONCEPTS)
    write_things_metadata(tmp_path / "things")
    write_brick(tmp_path / "nsd" / "nsd_stimuli.hdf5", 6)
    write_nsd_mat(tmp_path / "nsd" / NSD_BUCKET / "nsd_expdesign.mat", *nsd_design())
    return tmp_path


def expected_trials(dataset, subject):
    if dataset == "nsd":
        return nsd_trials(subject, *nsd_design())
    return bold_trials(subject) if dataset == "bold5000" else things_trials(subject, things_rows(things_paths()))


@pytest.mark.parametrize(("dataset", "subject"), [("nsd", 1), ("nsd", 8), ("bold5000", 4), ("things", 2)])
def test_the_file_is_the_table(root, cli, tmp_path, dataset, subject):
    file = tmp_path / "trials.csv"
    code, out, err = cli("trials", dataset, "--subject", subject, "--root", root / dataset, "--output", file)
    table, expected = pd.read_csv(file), expected_trials(dataset, subject)
    assert table.columns.tolist() == [*TRIAL_COLUMNS, "row"]
    for column in TRIAL_COLUMNS:
        assert table[column].tolist() == expected[column].tolist(), column
    row_of = {stimulus: row for row, stimulus in enumerate(load_dataset(dataset, root / dataset)["stimulus_id"])}
    rows = [row_of.get(stimulus) for stimulus in expected["stimulus_id"]]
    assert code == 0, err
    assert table["row"].astype("Int64").astype(object).where(table["row"].notna(), None).tolist() == rows
    assert f"{len(expected):,}" in out
    assert None not in rows or str(rows.count(None)) in out.replace(",", "")
    again = load_trials(dataset, subject, root / dataset)
    pd.testing.assert_frame_equal(pd.read_csv(file, dtype={"row": "Int64"}), again)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nsd", "--subject", "9", "--root", "nsd"), ["subject", "9"]),
        (("nsd", "--subject", "one", "--root", "nsd"), ["subject", "one"]),
        (("nsd", "--root", "nsd"), ["subject"]),
        (("demo", "--subject", "1"), ["demo", "nsd", "bold5000", "things"]),
        (("folder", "--subject", "1", "--root", "."), ["folder"]),
        (("things", "--subject", "3", "--root", "things"), ["sub-03_StimulusMetadata.csv"]),
        (("nsd", "--subject", "1", "--root", "things"), ["nsd"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_written(root, cli, monkeypatch, arguments, named):
    monkeypatch.chdir(root)
    before = set(root.rglob("*"))
    code, _, err = cli("trials", *arguments, "--output", "trials.csv")
    assert code == 2
    assert err.count("\n") == 1
    assert all(text in err for text in named), err
    assert set(root.rglob("*")) == before
