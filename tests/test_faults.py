"""What disks and people do to a run's files: nothing that is done is lost, and nothing wrong is kept."""

import shutil

import numpy as np
import pytest

from lit_extract import load_features
from lit_extract.errors import InputError
from lit_extract.store import Store

SHARDS = {"data_shard_rows": 2}  # of seven rows: four shards


@pytest.fixture
def undisturbed(run_job, tmp_path):
    """The features of a run that no one disturbed."""
    feats = feats_of(run_job(**SHARDS))
    shutil.rmtree(tmp_path / "out")
    return feats


def feats_of(extraction):
    return load_features(extraction.files[0]).feats.numpy().copy()


def flip_a_bit(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def delete(file):
    file.unlink()


def fill_with_zeros(file):
    """What a power failure leaves of a file that had not reached the disk."""
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES = [flip_a_bit, truncate, delete, fill_with_zeros]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("array", ["status", "n_bytes"])
def test_damaged_values_of_rows_are_computed_again(run_job, undisturbed, capsys, array, damage):
    store = run_job(finalize=False, **SHARDS).store
    damage(store / array / "c" / "2")
    with pytest.raises(InputError, match=rf"{array} of rows 4 to 5 of .* damaged on disk; run the same"):
        Store(store).status() if array == "status" else Store(store).extra(array)
    capsys.readouterr()
    extraction = run_job(**SHARDS)
    said = capsys.readouterr().out
    assert "1 shards of " in said
    assert "3 of 4 shards done, 1 left" in said
    assert feats_of(extraction).tobytes() == undisturbed.tobytes()
    assert load_features(extraction.files[0]).metadata["bad_input_rows"] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_stimulus_ids_are_refused_and_mended(run_job, undisturbed, damage):
    store = run_job(finalize=False, **SHARDS).store
    damage(store / "stimulus_id" / "c" / "0")
    with pytest.raises(InputError, match=r"stimulus ids of .* are damaged on disk"):
        load_features(store)
    extraction = run_job(**SHARDS)
    assert load_features(extraction.files[0]).stimulus_ids == [f"{k}.png" for k in range(7)]
    assert feats_of(extraction).tobytes() == undisturbed.tobytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_finalize_alone_refuses_damaged_values_and_the_next_run_computes_them(cli, run_job, undisturbed, damage):
    store = run_job(finalize=False, **SHARDS).store
    damage(store / "status" / "c" / "1")
    code, _, error = cli("finalize", store)
    assert code == 2
    assert "2 of 7 rows are missing: rows 2 to 3; run the same predict command again" in error
    assert feats_of(run_job(**SHARDS)).tobytes() == undisturbed.tobytes()


@pytest.mark.parametrize("array", ["n_tokens", "loss", "bpb"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_values_of_captions_are_refused(make_store, damage, array):
    store, _ = make_store(extras={"n_tokens": "int32", "loss": "float32", "bpb": "float32"})
    damage(store.path / array / "c" / "1")
    with pytest.raises(InputError, match=rf"{array} of rows 4 to 7 .* damaged"):
        store.extra(array)
    assert store.drop_damaged() == [1]
    assert store.done_shards() == {0, 2}
    assert store.extra(array)[4:8].tolist() == [0] * 4


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.97, 0.999])
def test_a_flipped_bit_anywhere_in_a_shard_is_found_and_its_rows_are_computed_again(run_job, undisturbed, place):
    store = run_job(finalize=False, **SHARDS).store
    flip_a_bit(store / "cls" / "c" / "1" / "0" / "0", place)
    with pytest.raises(InputError, match=r"rows 2 to 3 of .* are damaged on disk .* set aside: run the same predict"):
        run_job(**SHARDS)
    assert feats_of(run_job(**SHARDS)).tobytes() == undisturbed.tobytes()


@pytest.mark.parametrize("damage", [truncate, delete])
def test_a_shard_that_is_not_whole_is_computed_again(run_job, undisturbed, damage):
    store = run_job(finalize=False, **SHARDS).store
    damage(store / "cls" / "c" / "3" / "0" / "0")
    assert feats_of(run_job(**SHARDS)).tobytes() == undisturbed.tobytes()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"[1, 2]", b'{"zarr_format": 3}', None])
@pytest.mark.parametrize("of", [".", "cls", "stimulus_id"])
def test_damaged_metadata_are_one_clear_error_and_the_rest_is_left_alone(cli, run_job, of, content):
    store = run_job(finalize=False, **SHARDS).store
    if content is None:
        (store / of / "zarr.json").unlink()
    else:
        (store / of / "zarr.json").write_bytes(content)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"is not a lit-extract store, or its metadata are damaged.* --overwrite"):
        run_job(**SHARDS)
    for command in ("finalize", "show"):
        code, _, error = cli(command, store)
        assert code == 2
        assert error.startswith("lit-extract: error: ")
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert np.isfinite(feats_of(run_job(overwrite=True, **SHARDS))).all()
