"""Rows that could not be decoded are computed once they can be, and no others; images that changed are noticed."""

import os
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
from helpers import old_store, runs
from PIL import Image

from lit_extract import NSDDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.datasets import decode
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.archive import read_content
from lit_extract.storage.places.local import LocalPlace
from lit_extract.storage.store import Store, StoreSpec, remove_store
from lit_extract.storage.store_files import StoreFiles

SKIP = {"data_on_bad_image": "skip", "data_shard_rows": 2}


@pytest.fixture
def computed(monkeypatch):
    """How many rows went through the model, batch by batch."""
    rows, activations = [], VisionExtractor.activations

    def counting(self, inputs):
        rows.append(len(inputs["image"]))
        return activations(self, inputs)

    monkeypatch.setattr(VisionExtractor, "activations", counting)
    return rows


@pytest.fixture
def break_image(image_folder):
    """A function that replaces an image by zeros of its size; it returns one that puts it back at another time."""

    def do(name):
        path = image_folder / name
        content = path.read_bytes()
        path.write_bytes(bytes(len(content)))

        def restore():
            path.write_bytes(content)
            now = path.stat().st_mtime_ns + 10**9
            os.utime(path, ns=(now, now))

        return restore

    return do


def content_of(file):
    return torch.load(file, weights_only=True)


def assert_repaired(file, rows, intact, before):
    """The repaired rows are what they are in a run of good images, within rounding; the others are the same bytes."""
    feats = content_of(file)["feats"].numpy()
    assert np.delete(feats, rows, 0).tobytes() == np.delete(before, rows, 0).tobytes()
    np.testing.assert_allclose(feats[rows], intact[rows], rtol=1e-4, atol=1e-5)
    assert load_features(file).metadata["bad_input_rows"] == []


@pytest.fixture
def intact(run_job, tmp_path):
    """Features of all images when all are good, by pooling."""
    extraction = run_job(pool=["cls", "avg"], data_shard_rows=2, output_dir=tmp_path / "intact")
    return {load_features(file).provenance["pool"]: content_of(file)["feats"].numpy() for file in extraction.files}


def test_one_row_is_repaired_after_finalizing_and_nothing_else_is_computed(
    run_job, break_image, intact, computed, caplog
):
    restore = break_image("4.png")
    (file,) = run_job(**SKIP).files
    before = content_of(file)
    restore()
    computed.clear()
    caplog.set_level("INFO", "lit_extract")
    extraction = run_job(**SKIP)
    assert computed == [1]
    assert (extraction.was_done, extraction.bad_input_rows, extraction.store) == (False, [], None)
    assert "computing again: 1 stimulus can be decoded now: 4.png" in caplog.text
    assert_repaired(file, [4], intact["cls"], before["feats"].numpy())
    after = content_of(file)
    assert after["metadata"]["notes"].pop("repaired_rows") == [4]
    for key in ("notes", "provenance"):
        assert after["metadata"][key] == before["metadata"][key], key
    others = [row for row in range(7) if row != 4]
    assert torch.equal(after["inputs"][others], before["inputs"][others])
    assert run_job(**SKIP).was_done
    assert computed == [1]


def test_a_row_of_layers_that_differ_in_width_is_repaired(run_job, break_image, computed, tmp_path):
    """Its shard is computed, all other rows come from the file, layer by layer."""
    resnet = {"name": "test_resnet.r160_in1k", "pool": "avg", "dtype": "bfloat16"}
    (whole,) = run_job(**resnet, data_shard_rows=2, output_dir=tmp_path / "intact").files
    restore = break_image("4.png")
    (file,) = run_job(**resnet, **SKIP).files
    before = load_features(file).feats
    assert len({layer.shape for layer in before.values()}) > 1
    assert all(layer[4].isnan().all() for layer in before.values())
    restore()
    computed.clear()
    assert run_job(**resnet, **SKIP).bad_input_rows == []
    assert computed == [1]
    expected, others = load_features(whole).feats, [0, 1, 2, 3, 5, 6]
    for name, layer in load_features(file).feats.items():
        assert torch.equal(layer[others].view(torch.int16), before[name][others].view(torch.int16))
        torch.testing.assert_close(layer[4], expected[name][4], rtol=0.01, atol=0.01)


def test_all_poolings_are_repaired_together_in_several_shards(run_job, break_image, intact, computed):
    restore = [break_image(f"{row}.png") for row in (0, 1, 4, 6)]
    files = run_job(pool=["cls", "avg"], **SKIP).files
    before = [content_of(file)["feats"].numpy() for file in files]
    for each in restore[:3]:
        each()
    computed.clear()
    assert run_job(pool=["cls", "avg"], **SKIP).bad_input_rows == [6]
    assert computed == [2, 1]
    restore[3]()
    assert run_job(pool=["cls", "avg"], **SKIP).bad_input_rows == []
    assert computed == [2, 1, 1]
    for file, old, pool in zip(files, before, ("cls", "avg"), strict=True):
        assert_repaired(file, [0, 1, 4, 6], intact[pool], old)
        assert load_features(file).metadata["notes"]["repaired_rows"] == [0, 1, 4, 6]


@pytest.mark.parametrize("finished", [True, False])
def test_a_row_that_is_still_bad_is_said_again_and_nothing_is_written(run_job, break_image, computed, finished):
    break_image("4.png")
    first = run_job(finalize=finished, **SKIP)
    place = first.files[0] if finished else first.store / "status" / "c" / "2"
    written = place.stat()
    computed.clear()
    again = run_job(finalize=finished, **SKIP)
    assert (again.bad_input_rows, again.was_done, computed) == ([4], finished, [])
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_in_an_unfinished_store_only_the_row_is_computed(run_job, break_image, intact, computed, tmp_path):
    restore = break_image("4.png")
    store = run_job(finalize=False, **SKIP).store
    before = load_features(store).feats.numpy()
    restore()
    computed.clear()
    extraction = run_job(**SKIP)
    assert computed == [1]
    assert_repaired(extraction.files[0], [4], intact["cls"], before)


def test_rows_that_are_missing_and_rows_that_were_bad_in_one_run(run_job, break_image, intact, computed):
    restore = break_image("4.png")
    store = run_job(finalize=False, **SKIP).store
    before = load_features(store).feats.numpy()
    shutil.rmtree(store / "cls" / "c" / "0")
    restore()
    computed.clear()
    extraction = run_job(**SKIP)
    assert computed == [2, 1]
    assert_repaired(extraction.files[0], [4], intact["cls"], before)


def test_a_kept_store_is_repaired_with_its_file_and_stays(run_job, break_image, intact, computed):
    restore = break_image("6.png")  # alone in its shard, which is not full
    first = run_job(keep_store=True, **SKIP)
    before = content_of(first.files[0])["feats"].numpy()
    restore()
    computed.clear()
    extraction = run_job(**SKIP)
    assert computed == [1]
    assert extraction.store == first.store
    assert_repaired(extraction.files[0], [6], intact["cls"], before)
    assert (
        load_features(extraction.store).feats.numpy().tobytes() == content_of(first.files[0])["feats"].numpy().tobytes()
    )


def test_a_repair_whose_image_changes_before_it_is_finalized_is_of_the_image_as_it_is(
    run_job, break_image, image_folder, intact, computed, tmp_path
):
    content = (image_folder / "4.png").read_bytes()
    break_image("4.png")
    (file,) = run_job(**SKIP).files
    before = content_of(file)["feats"].numpy()
    Image.new("RGB", (30, 30), (200, 10, 10)).save(image_folder / "4.png")
    repaired = run_job(finalize=False, **SKIP)
    assert repaired.store.exists()
    (image_folder / "4.png").write_bytes(content)
    computed.clear()
    run_job(**SKIP)
    assert computed == [1]
    assert_repaired(file, [4], intact["cls"], before)


def test_damage_of_a_file_is_not_carried_into_the_repaired_one(run_job, break_image):
    restore = break_image("4.png")
    (file,) = run_job(**SKIP).files
    content = bytearray(file.read_bytes())
    with file.open("rb") as opened:
        place = read_content(opened)["feats"].offset
    content[place + 5] ^= 1
    file.write_bytes(content)
    restore()
    with pytest.raises(InputError, match=r"pt' is damaged .*checksum.*; restore it, or pass --overwrite"):
        run_job(**SKIP)
    assert file.read_bytes() == content


class KilledError(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize(
    ("finished", "writes"), [*((False, writes) for writes in range(7)), *((True, writes) for writes in range(10))]
)
def test_killed_between_any_two_writes_of_a_repair_nothing_is_lost(
    run_job, break_image, intact, monkeypatch, writes, finished
):
    """Each array of a shard is one write; each of two features files is one more."""
    restore = break_image("4.png")
    pools = {"pool": ["cls", "avg"], **SKIP}
    first = run_job(finalize=finished, **pools)
    before = (
        {pool: load_features(first.store, pool).feats.numpy() for pool in intact}
        if not finished
        else {load_features(file).provenance["pool"]: content_of(file)["feats"].numpy() for file in first.files}
    )
    restore()
    left = writes

    def count(function):
        def counted(*arguments, **settings):
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            return function(*arguments, **settings)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(StoreFiles, "write", count(StoreFiles.write))
        patch.setattr(LocalPlace, "write_verified", count(LocalPlace.write_verified))
        patch.setattr("lit_extract.storage.finalize.remove_store", count(remove_store))
        try:
            run_job(**pools)
            was_killed = False
        except KilledError:
            was_killed = True
    assert was_killed
    extraction = run_job(**pools)
    for file in extraction.files:
        pool = load_features(file).provenance["pool"]
        assert_repaired(file, [4], intact[pool], before[pool])
    assert extraction.store is None


def test_killed_before_the_status_a_store_can_be_finalized_and_its_row_is_nan(run_job, break_image, monkeypatch, cli):
    restore = break_image("4.png")
    store = run_job(finalize=False, **SKIP).store
    restore()

    write = StoreFiles.write

    def no_status(self, name, shard, values):
        if name == "status":
            raise KilledError
        write(self, name, shard, values)

    with monkeypatch.context() as patch:
        patch.setattr(StoreFiles, "write", no_status)
        with pytest.raises(KilledError):
            run_job(**SKIP)
    assert load_features(store).feats[4].isnan().all()
    assert cli("finalize", store)[0] == 0
    file = store.with_suffix(".pt")
    assert load_features(file).feats[4].isnan().all()
    assert load_features(file).metadata["bad_input_rows"] == [4]
    assert cli("verify", file)[0] == 0


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_that_changed_is_noticed_though_its_size_is_the_same(run_job, image_folder, finished):
    path = image_folder / "3.png"
    Image.new("RGB", (23, 27), (10, 20, 30)).save(path, compress_level=0)
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    run_job(finalize=finished, data_shard_rows=2)
    Image.new("RGB", (23, 27), (30, 20, 10)).save(path, compress_level=0)
    os.utime(path, ns=(time + 1, time + 1))
    assert path.stat().st_size == size
    with pytest.raises(
        InputError, match=r"stimuli have changed since .*: 3\.png\. Restore the files, or .*--overwrite"
    ):
        run_job(data_shard_rows=2)


@pytest.mark.parametrize("finished", [True, False])
def test_images_that_were_only_copied_are_the_same(run_job, image_folder, computed, caplog, finished):
    run_job(finalize=finished, data_shard_rows=2)
    for path in image_folder.iterdir():
        os.utime(path, ns=(1, 1))
    computed.clear()
    caplog.set_level("INFO", "lit_extract")
    assert run_job(data_shard_rows=2).was_done == finished
    assert computed == []
    assert "comparing the content of 7 stimuli whose file size or time has changed" in (caplog.text)


def test_files_of_the_same_size_and_time_are_not_read_again(run_job, monkeypatch):
    run_job(data_shard_rows=2)
    for module in ("images", "batches"):
        monkeypatch.setattr(f"lit_extract.data.{module}.read_stimulus", lambda *_: pytest.fail("read again"))
    assert run_job(data_shard_rows=2).was_done


def test_rows_of_an_hdf5_file_are_compared_by_their_pixels(tmp_path, computed, caplog):
    path = tmp_path / "nsd_stimuli.hdf5"
    with h5py.File(path, "w") as file:
        file["imgBrick"] = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)

    def run(workers):
        model = VisionExtractor("test_vit.r160_in1k", untrained=True, pool="cls")
        data = NSDDataModule(str(tmp_path), batch_size=2, num_workers=workers, cache="off")
        return extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), str(tmp_path / "out"))

    caplog.set_level("INFO", "lit_extract")
    run(0)
    os.utime(path, ns=(1, 1))
    computed.clear()
    assert run(2).was_done
    assert computed == []
    assert "comparing the content of 5 stimuli" in caplog.text
    with h5py.File(path, "r+") as file:
        file["imgBrick"][3] = 0
    with pytest.raises(InputError, match=r"stimuli have changed since .*: 3\. Restore"):
        run(0)
    assert decode._open_hdf5 == {}


def as_before_contents_were_noted(file):
    """A features file of an earlier version."""
    content = content_of(file)
    del content["inputs"], content["metadata"]["notes"]["exif_rotations"]
    torch.save(content, file)


def test_a_file_of_an_earlier_version_is_compared_by_size_and_repaired(
    run_job, break_image, image_folder, intact, computed
):
    restore = break_image("4.png")
    (file,) = run_job(**SKIP).files
    as_before_contents_were_noted(file)
    before = content_of(file)
    assert run_job(**SKIP).was_done
    restore()
    computed.clear()
    run_job(**SKIP)
    assert computed == [1]
    assert_repaired(file, [4], intact["cls"], before["feats"].numpy())
    after = content_of(file)
    assert "inputs" not in after
    assert after["metadata"]["n_bytes_sha256"] == before["metadata"]["n_bytes_sha256"]
    assert run_job(**SKIP).was_done
    Image.new("RGB", (5, 5)).save(image_folder / "3.png")
    with pytest.raises(InputError, match="the size of some files differs"):
        run_job(**SKIP)


def test_a_store_of_an_earlier_version_is_resumed_and_repaired(run_job, break_image, intact, computed, monkeypatch):
    restore = break_image("4.png")
    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.data.images.ImageDataModule.input_columns", ("n_bytes",))
        store = run_job(finalize=False, **SKIP).store
    assert Store(store).extras == ["n_bytes"]
    shutil.rmtree(store / "cls" / "c" / "0")
    before = load_features(store).feats.numpy()
    before[:2] = intact["cls"][:2]
    restore()
    computed.clear()
    (file,) = run_job(**SKIP).files
    assert computed == [2, 1]
    assert_repaired(file, [4], intact["cls"], before)
    assert "inputs" not in content_of(file)
    assert run_job(**SKIP).was_done


def test_a_store_of_format_1_is_resumed_and_repaired(run_job, break_image, intact, computed):
    restore = break_image("4.png")
    path = run_job(finalize=False, **SKIP).store
    before = load_features(path).feats.numpy()
    assert old_store.convert(path).layout.version == 1
    np.testing.assert_array_equal(load_features(path).feats.numpy(), before)
    shutil.rmtree(path / "cls" / "c" / "0")
    (path / "stimulus_id" / "c" / "0").unlink()
    restore()
    computed.clear()
    (file,) = run_job(**SKIP).files
    assert computed == [2, 1]
    assert_repaired(file, [4], intact["cls"], before)


@pytest.mark.parametrize("part", ["layers", "width", "files"])
def test_a_store_that_says_it_is_of_another_shape_is_not_written_to(run_job, part):
    path = run_job(finalize=False).store
    store = Store(path)
    if part == "files":
        store._change(notes={**store.notes, "files": {"cls": "another.pt"}})
    else:
        layers = store.layers if part == "width" else ["a", "b", "c", "d", "e"]
        (width,) = store.layer_shapes[0]
        width += part == "width"
        about = store.shard_rows, store.stimulus_ids(), store.provenance, store.notes, store.layout.extras
        remove_store(store.path)
        Store.create(path, StoreSpec(store.pools, layers, [(width,)] * len(layers), *about)).keep()
        shard = Store(path)
        zeros = np.zeros((7, len(layers), width), dtype=np.float32)
        extras = {name: np.zeros(7, dtype) for name, dtype in shard.layout.extras.items()}
        shard.write_shard(0, {"cls": zeros}, np.ones(7, np.uint8), extras)
    with pytest.raises(InputError, match="poolings, layers, shapes or files that do not match"):
        run_job()
    assert Store(path).done_shards() == {0}


def test_exif_rotations_are_counted_once_for_all_rows(cli, image_folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for row in (1, 2, 5):
        with Image.open(image_folder / f"{row}.png") as image:
            image.save(image_folder / f"{row}.png", exif=exif)
    settings = ["--data.root", image_folder, "--output_dir", tmp_path / "out", "--data.batch_size", 2]
    command = ["predict", "--config", runs.REPOSITORY / "configs" / "folder" / "vision.yaml", *runs.MODEL, *settings]
    said = "  3 images have an EXIF rotation, which is not applied\n"
    for finalize in ("false", "true", "true"):  # also of a store, and of what is done already
        code, out, err = cli(*command, "--finalize", finalize, "--data.num_workers", 2)
        assert code == 0, err
        assert out.count(said) == out.count("EXIF") == 1
    assert load_features(runs.features_file(tmp_path / "out")).metadata["notes"]["exif_rotations"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(runs.ONE_RANK, marks=pytest.mark.long), runs.TWO_RANKS])
def test_a_repair_that_is_killed_is_resumed(tmp_path, ranks):
    images, output = runs.write_images(tmp_path / "images", 200, size=32), tmp_path / "out"
    good = {row: (images / f"{row:05d}.jpg").read_bytes() for row in (3, 70, 199)}
    for row, content in good.items():
        (images / f"{row:05d}.jpg").write_bytes(bytes(len(content)))
    skip = ("--data.on_bad_image", "skip")
    with runs.predict(images, output, *ranks, *skip) as run:
        assert run.wait() == 3, run.output
    file, store = runs.features_file(output), runs.store_folder(output)
    before = file.read_bytes()
    old = content_of(file)
    for row, content in good.items():
        (images / f"{row:05d}.jpg").write_bytes(content)
    with runs.slow_predict(images, output, *ranks, *skip, SLOW_STEP="0.5") as run:
        assert run.wait_until(lambda: (store / "cls" / "c").exists()), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    assert file.read_bytes() == before
    with runs.slow_predict(images, output, *ranks, *skip) as run:
        assert run.wait() == 0, run.output
        assert run.output.count("step") <= 3
    new = content_of(file)
    assert new["metadata"]["bad_input_rows"] == []
    rows = list(good)
    assert np.delete(new["feats"].numpy(), rows, 0).tobytes() == np.delete(old["feats"].numpy(), rows, 0).tobytes()
    assert torch.isfinite(new["feats"][rows]).all()
    assert not store.exists()
