"""Reading features back, and refusing what is something else, without running it."""

import json
import os
import pickle
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lit_extract.common.errors import InputError
from lit_extract.storage.features import load_features
from lit_extract.storage.finalize import finalize


@pytest.fixture(params=["pt", "store"])
def saved(request, make_store):
    """The same features as a .pt and as a store: path and numbers."""
    store, feats = make_store(ids=[f"image_{k}.jpg" for k in range(10)])
    path = store.path if request.param == "store" else finalize(store.path)[0]
    return path, feats["cls"]


def test_numbers_names_and_ids(saved):
    path, feats = saved
    features = load_features(path)
    np.testing.assert_array_equal(features.feats.numpy(), feats, strict=True)
    assert features.layers == ["blocks.0", "blocks.1", "blocks.2"]
    assert features.stimulus_ids == [f"image_{k}.jpg" for k in range(10)]
    assert features.num_params == 123
    assert features.n_done == 10
    assert features.provenance == {"model": "m", "dataset": "demo", "weights": "untrained", "seed": 0, "pool": "cls"}
    assert features.metadata["bad_input_rows"] == features.metadata["not_finite_rows"] == []


@pytest.mark.parametrize(
    ("layer", "index"),
    [("blocks.0", 0), ("blocks.2", 2), (0, 0), (2, 2), (-1, 2), (-3, 0)],
)
def test_one_layer_by_name_or_index(saved, layer, index):
    path, feats = saved
    np.testing.assert_array_equal(load_features(path).layer(layer).numpy(), feats[:, index], strict=True)


@pytest.mark.parametrize("layer", ["blocks.3", "norm", "", 3, -4])
def test_unknown_layer_names_those_there(saved, layer):
    with pytest.raises(InputError) as error:
        load_features(saved[0]).layer(layer)
    assert repr(layer) in str(error.value)
    assert "blocks.0, blocks.1, blocks.2" in str(error.value)


def test_another_pooling_than_the_one_there_is_refused(saved):
    assert load_features(saved[0], pool="cls").n_done == 10
    with pytest.raises(InputError, match=r"pool: .*cls.*"):
        load_features(saved[0], pool="avg")


def test_of_several_poolings_one_must_be_chosen(make_store):
    store, feats = make_store(pools=("cls", "avg"))
    np.testing.assert_array_equal(load_features(store.path, "avg").feats.numpy(), feats["avg"])
    with pytest.raises(InputError, match="pool: None must be one of cls, avg"):
        load_features(store.path)


def test_a_file_is_mapped_not_read(make_store):
    store, _ = make_store()
    (file,) = finalize(store.path)
    features = load_features(file)
    assert features.feats.shape == (10, 3, 4)
    assert str(file) in Path("/proc/self/maps").read_text()


def test_many_files_may_be_open(make_store):
    """Several tensors a file, more files than a process may have open; earlier tests may have left some open."""
    store, _ = make_store()
    (file,) = finalize(store.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(one.name) for one in Path("/proc/self/fd").iterdir()) + 50, hard)
    )
    try:
        opened = [load_features(file) for _ in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.equal(opened[0].feats, opened[-1].feats)


def test_an_unfinished_store_has_nan_where_rows_are_missing(make_store):
    store, feats = make_store(n=10, shard_rows=4, shards=[2, 0])
    features = load_features(store.path)
    assert features.n_done == 6
    expected = feats["cls"].copy()
    expected[4:8] = np.nan
    np.testing.assert_array_equal(features.feats.numpy(), expected, strict=True)
    np.testing.assert_array_equal(features.layer("blocks.1").numpy(), expected[:, 1], strict=True)


def test_a_truncated_shard_is_missing_rows_not_an_error(make_store):
    store, feats = make_store(n=10, shard_rows=4)
    shard = store.path / "cls" / "c" / "1" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    features = load_features(store.path)
    assert features.n_done == 6
    expected = feats["cls"].copy()
    expected[4:8] = np.nan
    np.testing.assert_array_equal(features.layer(0).numpy(), expected[:, 0])


def test_a_damaged_layer_is_an_error_that_says_where_and_the_others_are_read(make_store):
    store, feats = make_store(n=10, shard_rows=4)
    shard = store.path / "cls" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1  # the first layer comes first
    shard.write_bytes(content)
    features = load_features(store.path)
    np.testing.assert_array_equal(features.layer(1).numpy(), feats["cls"][:, 1])
    with pytest.raises(InputError, match=r"m_pool-cls\.zarr.*damaged"):
        features.layer(0)


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, save):
    trace, path = tmp_path / "trace", tmp_path / "x.pt"
    keys = ("feats", "num_params", "layers", "stimulus_ids", "metadata")
    save(dict.fromkeys(keys, Malicious(trace)), path)
    with pytest.raises(InputError, match=r"x\.pt' is not a features file"):
        load_features(path)
    assert not trace.exists()


KEYS = {"feats": torch.zeros(2, 1, 1), "num_params": 1, "layers": ["a"], "stimulus_ids": [0, 1]}


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(3)},  # a checkpoint
        {"feats": torch.zeros(2, 1, 1), "num_params": 1},  # made by the scripts that were before
        {**KEYS, "metadata": {}},
        {**KEYS, "metadata": None},
        torch.zeros(3),
        [1, 2],
        7,
        None,
    ],
    ids=lambda content: str(content)[:30],
)
def test_a_pt_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"x\.pt' is not a features file"):
        load_features(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(range(256)) * 40])
def test_bytes_of_something_else_are_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt' is not a features file"):
        load_features(path)


def test_a_truncated_file_is_refused(make_store):
    store, _ = make_store()
    (file,) = finalize(store.path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not a features file"):
        load_features(file)


def test_a_path_to_nothing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.pt'"):
        load_features(tmp_path / "nowhere.pt")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a folder, not a .pt or a .zarr; there are none in it"):
        load_features(tmp_path)


@pytest.mark.parametrize("rows", [None, [7, 2, 5]])
def test_rsatoolbox_has_the_numbers_under_their_ids(saved, rows):
    from rsatoolbox.rdm import calc_rdm

    path, feats = saved
    dataset = load_features(path).to_rsatoolbox("blocks.1", rows)
    expected = feats[list(range(10)) if rows is None else rows, 1]
    np.testing.assert_array_equal(dataset.measurements, expected, strict=True)
    ids = [f"image_{k}.jpg" for k in (range(10) if rows is None else rows)]
    assert list(dataset.obs_descriptors["stimulus_id"]) == ids
    assert dataset.descriptors["layer"] == "blocks.1"
    assert (dataset.descriptors["model"], dataset.descriptors["dataset"]) == ("m", "demo")
    rdm = calc_rdm(dataset, method="correlation", descriptor="stimulus_id")
    by_id = dict(zip(rdm.pattern_descriptors["stimulus_id"], range(len(ids)), strict=True))
    found = rdm.get_matrices()[0][by_id["image_2.jpg"], by_id["image_7.jpg"]]
    assert found == pytest.approx(1 - np.corrcoef(feats[2, 1], feats[7, 1])[0, 1], abs=1e-6)


def test_xarray_has_the_numbers_under_their_names(saved):
    path, feats = saved
    features = load_features(path)
    array = features.to_xarray()
    assert array.dims == ("stimulus", "layer", "dim")
    np.testing.assert_array_equal(array.values, feats, strict=True)
    np.testing.assert_array_equal(array.sel(stimulus="image_4.jpg", layer="blocks.2"), feats[4, 2])
    one = features.to_xarray(-1)
    assert (one.dims, one.coords["layer"].item()) == (("stimulus", "dim"), "blocks.2")
    np.testing.assert_array_equal(one.sel(stimulus=["image_9.jpg", "image_0.jpg"]), feats[[9, 0], 2])
    assert json.loads(array.attrs["provenance"]) == features.provenance


def test_xarray_of_a_file_leaves_the_numbers_in_it(make_store):
    store, _ = make_store()
    features = load_features(finalize(store.path)[0])
    assert np.shares_memory(features.to_xarray().values, features.feats.numpy())


SHOWN = [4, 9, 4, 0]  # in scanner order, with a repetition


@pytest.fixture
def trials():
    """Four trials, whose index is not their position and whose row is that of another table."""
    columns = {"subject": 2, "session": [1, 1, 1, 2], "repetition": [0, 0, 1, 0], "row": [70, 71, 72, 73]}
    shown = [f"image_{k}.jpg" for k in SHOWN]
    return pd.DataFrame({**columns, "stimulus_id": shown}, index=[30, 10, 20, 0])


def test_one_layer_for_each_trial(saved, trials):
    path, feats = saved
    features = load_features(path)
    assert features.rows_of(trials["stimulus_id"]) == SHOWN
    for layer, index in (("blocks.2", 2), (-3, 0)):
        np.testing.assert_array_equal(features.of(trials, layer).numpy(), feats[SHOWN, index], strict=True)
    assert features.of(trials[:0], 0).shape == (0, feats.shape[2])


def test_ids_are_the_same_whichever_type_they_have(make_store):
    store, feats = make_store(ids=list(range(100, 110)))
    features = load_features(store.path)
    assert features.rows_of([103, "101", 109.0, np.int32(100), 103]) == [3, 1, 9, 0, 3]
    shown = pd.DataFrame({"stimulus_id": ["107", "100"]})
    np.testing.assert_array_equal(features.of(shown, 1).numpy(), feats["cls"][[7, 0], 1])


def test_stimuli_without_features_are_counted_and_named(saved, trials):
    features = load_features(saved[0])
    with pytest.raises(InputError, match=r"^stimulus_ids: .* 2 .*: other\.jpg, 7$"):
        features.rows_of(["image_1.jpg", "other.jpg", 7, "other.jpg"])
    for convert in (features.of, features.to_rsatoolbox):
        with pytest.raises(InputError, match="other"):
            convert(trials=trials.replace("image_0.jpg", "other.jpg"), layer=0)


def test_trials_of_another_dataset_or_without_stimuli_are_refused(saved, trials):
    features = load_features(saved[0])
    trials.attrs["dataset"] = "demo"
    features.of(trials, 0)
    trials.attrs["dataset"] = "nsd"
    with pytest.raises(InputError, match=r"^trials: .*'nsd'.*'demo'"):
        features.of(trials, 0)
    with pytest.raises(InputError, match=r"^trials: no column stimulus_id; .*session"):
        features.to_xarray(trials=trials.drop(columns="stimulus_id"))


def test_rsatoolbox_has_what_describes_each_trial(saved, trials):
    path, feats = saved
    dataset = load_features(path).to_rsatoolbox(1, trials=trials)
    np.testing.assert_array_equal(dataset.measurements, feats[SHOWN, 1], strict=True)
    assert {name: list(values) for name, values in dataset.obs_descriptors.items()} == {
        "stimulus_id": [f"image_{k}.jpg" for k in SHOWN],
        "subject": [2, 2, 2, 2],
        "session": [1, 1, 1, 2],
        "repetition": [0, 0, 1, 0],
    }
    (first, second) = dataset.split_obs("session")
    assert (first.measurements.shape[0], second.measurements.shape[0]) == (3, 1)
    with pytest.raises(InputError, match=r"^rows and trials: "):
        load_features(path).to_rsatoolbox(1, rows=[0], trials=trials)


def test_xarray_has_what_describes_each_trial(saved, trials):
    path, feats = saved
    features = load_features(path)
    array = features.to_xarray(trials=trials)
    assert array.dims == ("trial", "layer", "dim")
    np.testing.assert_array_equal(array.values, feats[SHOWN], strict=True)
    assert array.coords["stimulus_id"].values.tolist() == [f"image_{k}.jpg" for k in SHOWN]
    assert set(array.coords) == {"subject", "session", "repetition", "stimulus_id", "layer"}
    repeated = array.sel(layer="blocks.2").groupby("stimulus_id").mean("trial")
    np.testing.assert_array_equal(repeated.sel(stimulus_id="image_9.jpg"), feats[9, 2])
    one = features.to_xarray("blocks.0", trials)
    np.testing.assert_array_equal(one[one.session == 2], feats[[0], 0])


@pytest.mark.parametrize(("package", "convert"), [("rsatoolbox", "to_rsatoolbox"), ("xarray", "to_xarray")])
def test_a_missing_package_is_one_clear_error(saved, monkeypatch, package, convert):
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'lit-extract\[report\]'"):
        getattr(load_features(saved[0]), convert)(0)


def test_a_folder_is_named_as_one_with_what_is_in_it(make_store, cli):
    store, _ = make_store()
    folder, file = store.path.parent, store.path.parent / "m_pool-cls.pt"
    for command in (("show", folder), ("finalize", folder)):
        code, _, err = cli(*command)
        assert code == 2
        assert f"{str(folder)!r} is a folder" in err
        assert repr(str(store.path)) in err
    finalize(store.path)
    with pytest.raises(InputError) as error:
        load_features(folder)
    assert repr(str(file)) in str(error.value)
    assert "overwrite" not in str(error.value)
    assert "damaged" not in str(error.value)


def test_a_newer_file_names_the_version_that_reads_it_and_an_old_store_does_not_mind(make_store, cli):
    store, _ = make_store()
    (file,) = finalize(store.path, keep_store=True)
    content = torch.load(file, weights_only=True)
    content["metadata"]["format"] = 3
    content["metadata"]["notes"]["lit_extract"] = "9.9"
    content["metadata"]["provenance"] |= {"subset": "all"}
    torch.save(content, file)
    said = "has format 3; this version reads 2: install lit-extract 9.9"
    with pytest.raises(InputError, match=said):
        load_features(file)
    assert load_features(store.path).n_done == 10
    code, out, _ = cli("status", file.parent)
    assert code == 0
    assert f"not ours: {file.name}" in out
    assert said in out
    del content["metadata"]["format"]  # of a file as old as can be
    torch.save(content, file)
    assert load_features(file).n_done == 10


def test_stimuli_by_id(saved):
    path, feats = saved
    features = load_features(path)
    one, several = features["image_7.jpg"], features[pd.Series(["image_7.jpg", "image_2.jpg", "image_7.jpg"])]
    np.testing.assert_array_equal(one.numpy(), feats[7], strict=True)
    np.testing.assert_array_equal(several.numpy(), feats[[7, 2, 7]], strict=True)
    assert "image_7.jpg" in features
    assert "image_70.jpg" not in features
    assert (len(features), list(features)) == (10, features.stimulus_ids)
    with pytest.raises(InputError, match=r"no row for 2 stimuli: imge_7.jpg, x; did you mean image_7.jpg\?"):
        _ = features[["image_1.jpg", "imge_7.jpg", "x"]]
    with pytest.raises(InputError, match=r"no row for stimulus IMAGE_7\.JPG; did you mean image_7\.jpg\?$"):
        _ = features["IMAGE_7.JPG"]


def test_rows_by_number_are_not_looked_up_by_id(saved, make_store):
    path, feats = saved
    features = load_features(path)
    np.testing.assert_array_equal(features.feats[0].numpy(), feats[0])
    with pytest.raises(InputError, match=r"has no row for stimulus 0; row 0 by number is features\.feats\[0\]$"):
        _ = features[0]
    with pytest.raises(InputError, match=r"no row for 2 stimuli: 9, 10; row 9 by number is features\.feats\[9\]$"):
        _ = features[range(9, 11)]
    with pytest.raises(InputError, match=r"no row for stimulus 10$"):
        _ = features[10]
    with pytest.raises(InputError, match=r"a slice has no ids; rows by number are features\.feats\[start:stop\]$"):
        _ = features[0:3]
    with pytest.raises(InputError, match=r"row 3 by number is features\.layer\(name\)\[3\]$"):
        _ = replace(features, layer_shapes=[(4,), (5,)])[np.int64(3)]


def test_numbers_are_ids_as_text_too(make_store):
    store, feats = make_store()
    features = load_features(finalize(store.path)[0])
    for given in (103, "103", 103.0, np.int64(103)):
        np.testing.assert_array_equal(features[given].numpy(), feats["cls"][3])
    with pytest.raises(InputError, match=r"no row for stimulus 3; row 3 by number is features\.feats\[3\]$"):
        _ = features[3]


def test_a_notebook_shows_the_same_facts_and_no_markup_of_the_file(make_store):
    store, _ = make_store(layers=5, shards=[0], name="a<b")
    features = load_features(store.path)
    lines = [line.split(maxsplit=1) for line in repr(features).splitlines()[1:6]]
    assert lines[0] == ["model", "m, random weights"]
    assert lines[2] == ["size", "10 stimuli × 5 layers × 4 dimensions"]
    assert lines[3] == ["layers", "blocks.0 … blocks.4 (5 layers)"]
    assert "4 of 10" in repr(features)
    html = features._repr_html_()
    assert "a&lt;b.zarr" in html
    assert "a<b" not in html
    assert html.count("<tr>") == len(repr(features).splitlines()) - 1


def test_a_plot_is_a_figure_that_a_notebook_shows(make_store):
    store, _ = make_store()
    figure = load_features(store.path).plot()
    assert [axis.get_title() for axis in figure.axes[1:4]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert figure._repr_png_().startswith(b"\x89PNG")
