"""Layers that differ in shape, several vectors a stimulus, and other data types than float32.

Oracles: zarr's own reader and torch.load in processes that do not import lit_extract.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lit_extract.common.errors import InputError
from lit_extract.inspection.soundness import soundness_of
from lit_extract.storage.features import load_features
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import NOT_FINITE, OK
from lit_extract.storage.store import Store, StoreSpec

N, ROWS = 7, 3
FORMS = {
    "widths": [(3,), (5,), (2,)],
    "tokens": [(4, 3)] * 2,
    "tokens of each layer": [(4, 3), (5, 3)],
}
DTYPES = ("float32", "float16", "bfloat16")
OF_TODAY = {
    "model": "m",
    "options": {},
    "weights": "untrained",
    "seed": 0,
    "pool": "avg",
    "dataset": "demo",
    "subset": "all",
    "precision": "32-true",
    "n_stimuli": N,
}

READ_ZARR = """
import json, sys, zarr
group = zarr.open_group(sys.argv[1], mode="r")
names = [name for name in group.array_keys() if name.split(".")[0] in group.attrs["pools"]]
print(json.dumps({name: [group[name].metadata.to_dict()["data_type"], list(group[name].shape),
                         group[name][...].astype("float64").tolist()] for name in names}))
"""
READ_PT = """
import json, sys, torch
feats = torch.load(sys.argv[1], weights_only=True)["feats"]
parts = feats.items() if isinstance(feats, dict) else [(None, feats)]
print(json.dumps([[name, str(part.dtype), list(part.shape), part.double().tolist()] for name, part in parts]))
"""


def elsewhere(program, *arguments):
    """What a process of its own prints, from JSON; it can't import lit_extract."""
    program = f"import sys; sys.modules['lit_extract'] = None\n{program}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.fixture
def build(tmp_path):
    """A function that makes a store of random numbers of some form; it returns the store and each layer's (N, …)."""

    def make(shapes, dtype="float32", shards=None, bad=None):
        layers = [f"stages.{k}" for k in range(len(shapes))]
        provenance = {**OF_TODAY, "layers": layers, "shard_rows": ROWS}
        del provenance["pool"]
        notes = {"files": {"avg": "m_pool-avg.pt"}, "num_params": 12}
        spec = StoreSpec(["avg"], layers, shapes, ROWS, list(range(N)), provenance, notes, dtype=dtype)
        store = Store.create(tmp_path / "m_pool-avg.zarr", spec)
        generator = torch.Generator().manual_seed(0)
        numbers = [torch.randn(N, *shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes]
        if bad is not None:
            numbers[-1][bad] = torch.inf
        for shard in range(store.n_shards) if shards is None else shards:
            rows = slice(store.rows_of(shard).start, store.rows_of(shard).stop)
            write_rows(store, shard, [layer[rows] for layer in numbers])
        return store, numbers

    return make


def write_rows(store, shard, layers):
    kept = [layer.view(torch.uint16) if layer.dtype == torch.bfloat16 else layer for layer in layers]
    if len({layer.shape for layer in layers}) == 1:
        feats = {"avg": torch.stack(kept, dim=1).numpy()}
    else:
        feats = {f"avg.{k}": layer.numpy() for k, layer in enumerate(kept)}
    finite = torch.stack([layer.float().isfinite().flatten(1).all(dim=1) for layer in layers]).all(dim=0)
    store.write_shard(shard, feats, np.where(finite, OK, NOT_FINITE).astype(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_zarr_reads_the_store_and_torch_the_file(build, form, dtype):
    shapes = FORMS[form]
    store, numbers = build(shapes, dtype)
    in_zarr = elsewhere(READ_ZARR, store.path)
    is_stacked = len({*shapes}) == 1
    expected = {"avg": torch.stack(numbers, dim=1)} if is_stacked else {f"avg.{k}": x for k, x in enumerate(numbers)}
    assert {*in_zarr} == {*expected}
    for name, (data_type, shape, values) in in_zarr.items():
        assert (data_type, shape) == ("uint16" if dtype == "bfloat16" else dtype, list(expected[name].shape))
        found = torch.tensor(values, dtype=torch.float64)
        if dtype == "bfloat16":
            found = found.to(torch.int32).to(torch.uint16).view(torch.bfloat16).double()
        assert torch.equal(found, expected[name].double())

    opened = load_features(store.path)
    assert [torch.equal(opened.layer(k), layer) for k, layer in enumerate(numbers)] == [True] * len(shapes)
    (file,) = finalize(store.path)
    named = [(None, expected["avg"])] if is_stacked else [*zip(store.layers, numbers, strict=True)]
    for (name, found_type, shape, values), (layer, layer_numbers) in zip(elsewhere(READ_PT, file), named, strict=True):
        assert (name, found_type, shape) == (layer, f"torch.{dtype}", list(layer_numbers.shape))
        assert torch.equal(torch.tensor(values, dtype=torch.float64), layer_numbers.double())
    features = load_features(file)
    assert (features.layer_shapes, features.dtype) == (shapes, dtype)
    assert features.shape == (N, len(shapes), *(shapes[0] if is_stacked else ()))
    for k, layer in enumerate(numbers):
        assert torch.equal(features.layer(k), layer)
        assert torch.equal(features.layer(f"stages.{k}"), features.layer(k - len(shapes)))
    assert soundness_of(file).problems == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_all_layers_are_padded_with_zeros(build, form, dtype):
    store, numbers = build(FORMS[form], dtype)
    padded = load_features(store.path).padded([4, 0])
    widest = max(layer[0].numel() for layer in numbers)
    assert (padded.dtype, padded.shape) == (torch.float32, (2, len(numbers), widest))
    for k, layer in enumerate(numbers):
        chosen = layer[[4, 0]].flatten(1).float()
        assert torch.equal(padded[:, k, : chosen.shape[1]], chosen)
        assert (padded[:, k, chosen.shape[1] :] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_is_done_when_all_its_files_are_there(build, form):
    store, numbers = build(FORMS[form], shards=[0, 2])
    assert store.done_shards() == {0, 2}
    names = [*store.feats_arrays]
    (store.path / store.feats_arrays[names[0]].key(2)).unlink()
    assert Store(store.path).done_shards() == {0}
    missing = load_features(store.path)
    assert missing.n_done == 3
    assert missing.layer(-1)[3:].isnan().all()
    for shard in (1, 2):
        rows = slice(3 * shard, 3 * shard + 3)
        write_rows(store, shard, [layer[rows] for layer in numbers])
    (file,) = finalize(store.path)
    assert all(torch.equal(load_features(file).layer(k), layer) for k, layer in enumerate(numbers))


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_of_any_layer_is_found_and_its_shard_set_aside(build, form):
    store, _ = build(FORMS[form])
    last = [*store.feats_arrays.values()][-1]
    file = store.path / last.key(1)
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="rows 3 to 5"):
        finalize(store.path)
    assert Store(store.path).done_shards() == {0, 2}


def test_files_of_two_layers_can_t_take_each_other_s_place(build):
    store, _ = build([(3,), (4,), (3,)])
    first, _, last = (store.path / array.key(0) for array in store.feats_arrays.values())
    content = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(content)
    with pytest.raises(InputError, match="damaged on disk"):
        finalize(store.path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_in_one_layer_is_found_wherever_it_is(build, dtype):
    store, _ = build(FORMS["widths"], dtype, bad=5)
    (file,) = finalize(store.path)
    assert load_features(file).metadata["not_finite_rows"] == [5]
    assert soundness_of(file).problems == []
    content = torch.load(file, weights_only=True)
    content["feats"]["stages.1"][2, 1] = torch.nan
    torch.save(content, file)
    assert soundness_of(file).problems == ["NaN or infinity in rows that are not listed: 2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feats: feats.pop("stages.1"), "the names in feats differ from its layers|2 layers|3 layers for 2"),
        (lambda feats: feats.update({"stages.1": feats["stages.1"][1:]}), "differ in rows or data type"),
        (lambda feats: feats.update({"stages.1": feats["stages.1"].half()}), "differ in rows or data type"),
        (lambda feats: feats.update({"stages.1": torch.zeros(N)}), "feats is not a float32 or float16 or bfloat16"),
        (lambda feats: feats.update({"stages.1": feats["stages.1"].double()}), "feats is not a float32 or float16"),
        (lambda feats: feats.update({"stages.1": 3}), "feats"),
        (lambda feats: feats.update({"another": feats.pop("stages.1")}), "names in feats"),
        (lambda feats: feats.clear(), "feats"),
    ],
)
def test_a_file_whose_layers_do_not_fit_is_refused(build, change, message):
    store, _ = build(FORMS["widths"])
    (file,) = finalize(store.path)
    content = torch.load(file, weights_only=True)
    change(content["feats"])
    torch.save(content, file)
    with pytest.raises(InputError, match=message):
        load_features(file)
    assert soundness_of(file).problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_shapes": [[3], [5]]}, "2 layer_shapes"),
        ({"layer_shapes": [[3], [5], [4]]}, "avg.2/zarr.json has shape"),
        ({"layer_shapes": [[3], [5], []]}, "layer_shapes"),
        ({"layer_shapes": [[3], [5], [1, 1, 2]]}, "layer_shapes"),
        ({"layer_shapes": [[3], [5], [2**30]]}, "layer_shapes"),
        ({"dtype": "float64"}, "dtype"),
        ({"dtype": "float16"}, "avg.0/zarr.json has data_type"),
    ],
)
def test_a_store_whose_metadata_do_not_fit_is_refused(build, change, message):
    store, _ = build(FORMS["widths"])
    group = store.path / "zarr.json"
    content = json.loads(group.read_text())
    content["attributes"] |= change
    group.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        Store(store.path)


def test_plain_features_keep_the_formats_that_earlier_versions_read(build):
    store, _ = build([(4,)] * 2)
    assert store.layout.version == 2
    (file,) = finalize(store.path)
    assert torch.load(file, weights_only=True)["metadata"]["format"] == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_other_libraries_get_names_and_numbers(build, form, dtype):
    store, numbers = build(FORMS[form], dtype)
    features = load_features(store.path)
    array = features.to_xarray(layer=-1)
    axes = ("stimulus", "token", "dim") if numbers[-1].ndim == 3 else ("stimulus", "dim")
    assert array.dims == axes
    np.testing.assert_array_equal(array.values.astype(np.float64), numbers[-1].double().numpy())
    measurements = features.to_rsatoolbox(0).measurements
    np.testing.assert_array_equal(measurements, numbers[0].flatten(1).float().numpy())
    if len({*FORMS[form]}) > 1:
        with pytest.raises(InputError, match="layer: give one"):
            features.to_xarray()
    else:
        assert features.to_xarray().dims == ("stimulus", "layer", "token", "dim")
