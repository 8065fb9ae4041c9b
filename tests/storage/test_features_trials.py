"""Features in the order of trials, from real runs on datasets as they are published."""

import numpy as np
import pandas as pd
import pytest
import torch
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
    write_image,
    write_nsd_mat,
    write_things,
    write_things_metadata,
)

from lit_extract import load_features, load_trials
from lit_extract.common.errors import InputError
from lit_extract.storage.store import Store

DESCRIPTORS = [column for column in TRIAL_COLUMNS if column != "stimulus_id"]


def extracted(data_module, root, output_dir, finalize=True, **settings):
    """Features of a tiny untrained model; row i is told from all others."""
    import lit_extract
    from lit_extract.jobs.trainer import predict_trainer

    model = lit_extract.VisionExtractor("test_vit.r160_in1k", untrained=True)
    data = getattr(lit_extract, data_module)(root=str(root), batch_size=4, num_workers=0, **settings)
    lit_extract.extract(model, data, predict_trainer("cpu", devices=1), str(output_dir), finalize=finalize)
    return next(output_dir.glob("*/*/*.pt" if finalize else "*/*/*.zarr"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with all three datasets as they are published."""
    root = tmp_path_factory.mktemp("published")
    write_bold(root / "bold5000", "BOLD5000_Stimuli/")
    write_things(root / "things", things_paths(), CONCEPTS)
    write_things_metadata(root / "things")
    write_brick(root / "nsd" / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", 4, side=16)
    write_nsd_mat(root / "nsd" / NSD_BUCKET / "nsd_expdesign.mat", *nsd_design())
    return root


@pytest.fixture(scope="module")
def of_things(published, tmp_path_factory):
    return extracted("THINGSDataModule", published / "things", tmp_path_factory.mktemp("out"))


@pytest.fixture
def features(of_things):
    return load_features(of_things)


@pytest.fixture
def trials(published):
    return load_trials("things", 1, published / "things")


@pytest.fixture
def expected():
    return things_trials(1, things_rows(things_paths()))


def numbers_by_trial(path, expected, layer):
    """The numbers of the file, which torch alone reads, one trial after another."""
    content = torch.load(path, weights_only=True)
    rows = [content["stimulus_ids"].index(stimulus) for stimulus in expected["stimulus_id"]]
    return np.stack([content["feats"][row, layer].numpy() for row in rows])


def refusal(function, *arguments, **settings):
    with pytest.raises(InputError) as error:
        function(*arguments, **settings)
    return str(error.value)


def test_the_oracle_tells_rows_apart(of_things):
    feats = torch.load(of_things, weights_only=True)["feats"]
    for layer in range(feats.shape[1]):
        assert len(np.unique(feats[:, layer].numpy(), axis=0)) == len(feats)


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.5", 3, -1])
def test_one_layer_in_the_order_of_the_trials(features, of_things, trials, expected, layer):
    index = int(layer.split(".")[1]) if isinstance(layer, str) else layer
    found = features.of(trials, layer)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), numbers_by_trial(of_things, expected, index), strict=True)


@pytest.mark.parametrize(
    ("name", "data_module", "subject"),
    [("bold5000", "BOLD5000DataModule", 2), ("bold5000", "BOLD5000DataModule", 4), ("nsd", "NSDDataModule", 3)],
)
def test_the_other_datasets(published, tmp_path, name, data_module, subject):
    path = extracted(data_module, published / name, tmp_path)
    trials = load_trials(name, subject, published / name)
    expected = bold_trials(subject) if name == "bold5000" else nsd_trials(subject, *nsd_design())
    if name == "nsd":
        message = refusal(load_features(path).of, trials, 2)
        assert str(expected["stimulus_id"][expected["stimulus_id"] > 3].iloc[0]) in message
        trials, expected = trials[trials["row"].notna()], expected[expected["stimulus_id"] < 4]
        assert len(trials) >= 9
    found = load_features(path).of(trials, 2)
    np.testing.assert_array_equal(found.numpy(), numbers_by_trial(path, expected, 2), strict=True)


def test_some_trials_in_another_order(features, of_things, trials, expected):
    chosen = trials[trials["session"] == 2].iloc[::-1]
    wanted = expected[expected["session"] == 2].iloc[::-1]
    found = features.of(chosen, 1)
    np.testing.assert_array_equal(found.numpy(), numbers_by_trial(of_things, wanted, 1), strict=True)
    assert features.of(trials.iloc[:0], 1).shape == (0, features.shape[2])


def test_features_of_a_part_are_found_by_id_not_by_row(published, trials, expected, tmp_path):
    """The rows of the trials are those of the whole dataset."""
    query = "category not in ['aardvark', 'bat1']"
    path = extracted("THINGSDataModule", published / "things", tmp_path, query=query, subset="part")
    features = load_features(path)
    message = refusal(features.of, trials, 0)
    wrong = [stimulus for stimulus in expected["stimulus_id"] if stimulus not in features.stimulus_ids]
    assert str(wrong[0]) in message
    assert str(len(set(wrong))) in message or str(len(wrong)) in message
    known = expected["stimulus_id"].isin(features.stimulus_ids)
    found = features.of(trials[known.to_numpy()], 0)
    np.testing.assert_array_equal(found.numpy(), numbers_by_trial(path, expected[known], 0), strict=True)


@pytest.mark.parametrize(
    "ids",
    [[5, 0, 11, 5], np.array([5, 0, 11, 5]), pd.Series([5, 0, 11, 5]), (5, 0, 11, 5), ["5", "0", "11", "5"]],
    ids=lambda ids: type(ids).__name__,
)
def test_rows_of_ids(features, ids):
    rows = features.rows_of(ids)
    assert rows == [5, 0, 11, 5]
    assert all(type(row) is int for row in rows)


def test_rows_of_ids_that_are_no_row_numbers(published, tmp_path):
    path = extracted("BOLD5000DataModule", published / "bold5000", tmp_path)
    features = load_features(path)
    assert features.stimulus_ids == [0, 1, 2, 3, 4, 6, 7, 8, 11, 15, 18, 24]
    assert features.rows_of([24, 6, 0, 11, 6]) == [11, 5, 0, 8, 5]
    assert features.rows_of([]) == []
    assert "5" in refusal(features.rows_of, [24, 5])


def test_rows_of_ids_that_are_text(tmp_path):
    for name in ("b/10.jpg", "a/2.jpg", "c.jpg"):
        write_image(tmp_path / "images" / name)
    path = extracted("ImageFolderDataModule", tmp_path / "images", tmp_path / "out")
    features = load_features(path)
    assert features.rows_of(["c.jpg", "a/2.jpg", "b/10.jpg", "c.jpg"]) == [2, 0, 1, 2]
    assert "c.jpeg" in refusal(features.rows_of, ["c.jpg", "c.jpeg"])


def test_ids_that_are_missing_are_counted_and_the_first_named(features):
    missing = [1000 + number for number in range(20)]
    message = refusal(features.rows_of, [3, *missing, 4])
    assert "1000" in message
    assert "1019" not in message
    assert "20" in message


def test_trials_of_another_dataset_are_refused(features, published):
    """Ids of BOLD5000 are numbers as well; some are ids of THINGS."""
    trials = load_trials("bold5000", 3, published / "bold5000")
    chosen = trials[trials["stimulus_id"].isin(features.stimulus_ids)]
    assert len(chosen) > 1
    for function in (features.of, features.to_rsatoolbox, features.to_xarray):
        arguments = (chosen, 0) if function == features.of else (0,)
        settings = {} if function == features.of else {"trials": chosen}
        message = refusal(function, *arguments, **settings)
        assert "bold5000" in message
        assert "things" in message


def test_an_unknown_layer_is_named(features, trials):
    assert "blocks.99" in refusal(features.of, trials, "blocks.99")


def test_a_table_that_is_none_of_trials_is_refused(features, trials):
    assert "stimulus_id" in refusal(features.of, trials.drop(columns="stimulus_id"), 0)


def test_other_layers_are_not_read(published, trials, expected, of_things, tmp_path):
    """In a store that is damaged where another layer lies, nothing is noticed."""
    store = extracted("THINGSDataModule", published / "things", tmp_path, finalize=False)
    features = load_features(store)
    (shard,) = [path for path in store.glob("cls/c/0/**/*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[10] ^= 1  # the first layer comes first
    shard.write_bytes(content)
    for layer in range(1, len(features.layers)):
        wanted = numbers_by_trial(of_things, expected, layer)
        np.testing.assert_array_equal(features.of(trials, layer).numpy(), wanted)
    assert "damaged" in refusal(features.of, trials, 0)


def test_only_the_layer_is_asked_for(published, trials, tmp_path, monkeypatch):
    store = extracted("THINGSDataModule", published / "things", tmp_path, finalize=False)
    read, layers = Store.read_layer, []
    monkeypatch.setattr(
        Store, "read_layer", lambda self, pool, layer, *rest: layers.append(layer) or read(self, pool, layer, *rest)
    )
    load_features(store).of(trials, "blocks.4")
    assert layers == [4]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # its own, of whole numbers
def test_rsatoolbox_has_trials_as_observations(features, of_things, trials, expected):
    from rsatoolbox.rdm import calc_rdm

    dataset = features.to_rsatoolbox("blocks.2", trials=trials)
    wanted = numbers_by_trial(of_things, expected, 2)
    np.testing.assert_array_equal(dataset.measurements, wanted, strict=True)
    for column in TRIAL_COLUMNS:
        assert list(dataset.obs_descriptors[column]) == expected[column].tolist(), column
    assert dataset.descriptors["layer"] == "blocks.2"
    assert dataset.descriptors["dataset"] == "things"
    rdm = calc_rdm(dataset, method="euclidean", descriptor="stimulus_id")
    ids = list(rdm.pattern_descriptors["stimulus_id"])
    assert sorted(ids) == sorted(set(expected["stimulus_id"]))
    one, other = expected["stimulus_id"][0], expected["stimulus_id"][3]
    means = [wanted[(expected["stimulus_id"] == k).to_numpy()].mean(axis=0) for k in (one, other)]
    distance = np.square(means[0] - means[1]).sum() / wanted.shape[1]
    assert rdm.get_matrices()[0][ids.index(one), ids.index(other)] == pytest.approx(distance, rel=1e-4)


def test_rsatoolbox_chooses_by_what_the_trials_have(features, trials, expected):
    dataset = features.to_rsatoolbox(0, trials=trials)
    for name, value in (("session", 2), ("repetition", 1), ("run", 1)):
        part = dataset.subset_obs(name, value)
        assert list(part.obs_descriptors["trial"]) == expected["trial"][expected[name] == value].tolist()
    sessions, values = dataset.split_obs("session"), []
    for part in sessions:
        values += list(part.obs_descriptors["trial"])
    assert values == expected["trial"].tolist()


def test_xarray_has_trials_as_a_dimension(features, of_things, trials, expected):
    array = features.to_xarray("blocks.2", trials=trials)
    assert array.dims == ("trial", "dim")
    np.testing.assert_array_equal(array.values, numbers_by_trial(of_things, expected, 2), strict=True)
    assert array.coords["layer"].item() == "blocks.2"
    for column in TRIAL_COLUMNS:
        assert array.coords[column].dims == ("trial",), column
        assert array.coords[column].values.tolist() == expected[column].tolist(), column


def test_xarray_of_all_layers(features, of_things, trials, expected):
    array = features.to_xarray(trials=trials)
    assert array.dims == ("trial", "layer", "dim")
    for layer, name in enumerate(features.layers):
        wanted = numbers_by_trial(of_things, expected, layer)
        np.testing.assert_array_equal(array.sel(layer=name).values, wanted)
    assert array.sel(trial=4).coords["stimulus_id"].item() == expected["stimulus_id"][4]


def test_xarray_averages_over_repetitions(features, of_things, trials, expected):
    means = features.to_xarray("blocks.1", trials=trials).groupby("stimulus_id").mean()
    wanted = numbers_by_trial(of_things, expected, 1)
    for stimulus in set(expected["stimulus_id"]):
        of_stimulus = wanted[(expected["stimulus_id"] == stimulus).to_numpy()]
        found = means.sel(stimulus_id=stimulus).values
        np.testing.assert_allclose(found, of_stimulus.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_some_trials_keep_their_numbers(features, trials, expected):
    chosen = trials[trials["repetition"] == 0]
    wanted = expected[expected["repetition"] == 0]
    array = features.to_xarray(0, trials=chosen)
    dataset = features.to_rsatoolbox(0, trials=chosen)
    for column in TRIAL_COLUMNS:
        assert array.coords[column].values.tolist() == wanted[column].tolist()
        assert list(dataset.obs_descriptors[column]) == wanted[column].tolist()


def test_without_trials_nothing_changes(features):
    assert features.to_xarray().dims == ("stimulus", "layer", "dim")
    assert set(features.to_rsatoolbox(0).obs_descriptors) >= {"stimulus_id"}
    assert not set(DESCRIPTORS) & set(features.to_rsatoolbox(0).obs_descriptors)


def test_rows_and_trials_together_are_refused(features, trials):
    message = refusal(features.to_rsatoolbox, 0, rows=[1, 2], trials=trials)
    assert "rows" in message
    assert "trials" in message
