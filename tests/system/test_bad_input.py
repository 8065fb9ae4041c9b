"""Jobs that meet bad images, images that change, full disks and infinite activations: nothing is lost or hidden."""

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_extract import DemoDataModule, VisionExtractor, load_features
from lit_extract.common.errors import InputError
from lit_extract.storage.store import Store


def feats_of(extraction):
    return load_features(extraction.files[0]).feats.numpy().copy()


def test_a_bad_image_stops_the_run_with_the_finished_shards_safe(run_job, image_folder, tmp_path, monkeypatch):
    write_shard = Store.write_shard

    def on_a_slow_disk(*arguments):
        time.sleep(0.3)
        return write_shard(*arguments)

    monkeypatch.setattr(Store, "write_shard", on_a_slow_disk)
    whole = (image_folder / "4.png").read_bytes()
    (image_folder / "4.png").write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match=r"stimulus 4\.png \(row 4\) can't be decoded.*4\.png"):
        run_job(data_shard_rows=2)
    (store,) = (tmp_path / "out").glob("*/*/*.zarr")
    assert load_features(store).n_done == 4
    (image_folder / "4.png").write_bytes(whole)
    assert run_job(data_shard_rows=2).bad_input_rows == []


def test_the_run_goes_on_when_a_bad_image_was_replaced(run_job, image_folder):
    (image_folder / "4.png").write_text("broken")
    with pytest.raises(InputError, match="repair or replace the file and run the same command again"):
        run_job(data_shard_rows=2)
    Image.new("RGB", (50, 50)).save(image_folder / "4.png")
    assert run_job(data_shard_rows=2).bad_input_rows == []


def test_a_skipped_image_that_was_mended_is_computed_when_the_run_goes_on(run_job, image_folder):
    whole = (image_folder / "4.png").read_bytes()
    (image_folder / "4.png").write_text("broken")
    assert run_job(data_on_bad_image="skip", data_shard_rows=2, finalize=False).bad_input_rows == [4]
    (image_folder / "4.png").write_bytes(whole)
    extraction = run_job(data_shard_rows=2)
    assert extraction.bad_input_rows == []
    assert not np.isnan(feats_of(extraction)).any()


def test_stimuli_that_have_changed_are_not_taken_for_those_that_were_extracted(run_job, image_folder):
    run_job(finalize=False)
    Image.new("RGB", (50, 50)).save(image_folder / "4.png")
    with pytest.raises(InputError, match=r"stimuli have changed since .*zarr' was written.*: 4\.png\. .*--overwrite"):
        run_job()
    file = run_job(overwrite=True).files[0]
    Image.new("RGB", (60, 60)).save(image_folder / "4.png")
    with pytest.raises(InputError, match=r"stimuli have changed since .*pt' was written"):
        run_job()
    assert run_job(overwrite=True).files == [file]


def test_a_skipped_image_is_nan_and_listed_and_changes_no_other_row(run_job, image_folder, tmp_path):
    intact = feats_of(run_job())
    shutil.rmtree(tmp_path / "out")
    (image_folder / "4.png").write_text("broken")
    extraction = run_job(data_on_bad_image="skip")
    assert extraction.bad_input_rows == load_features(extraction.files[0]).metadata["bad_input_rows"] == [4]
    feats = feats_of(extraction)
    assert np.isnan(feats[4]).all()
    assert np.delete(feats, 4, 0).tobytes() == np.delete(intact, 4, 0).tobytes()
    assert run_job(data_on_bad_image="skip").bad_input_rows == [4], "also when it is done already"


def test_a_shard_of_nothing_but_bad_images_is_finished_too(run_job, image_folder):
    for row in (2, 3):
        (image_folder / f"{row}.png").write_text("broken")
    extraction = run_job(data_on_bad_image="skip", data_shard_rows=2)
    assert extraction.bad_input_rows == [2, 3]
    assert np.isnan(feats_of(extraction)).all(axis=(1, 2)).tolist() == [False, False, True, True, False, False, False]


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_stops_the_run_with_the_finished_shards_safe(run_job, tmp_path, monkeypatch):
    undisturbed = feats_of(run_job(data_shard_rows=2))
    shutil.rmtree(tmp_path / "out")
    write_shard = Store.write_shard
    with monkeypatch.context() as patch:
        filling = lambda self, shard, *rest: (full if shard == 2 else write_shard)(self, shard, *rest)  # noqa: E731
        patch.setattr(Store, "write_shard", filling)
        with pytest.raises(InputError, match=r"No space left on device; 2 of 4 shards are safe: .*same command again"):
            run_job(data_shard_rows=2)
    assert feats_of(run_job(data_shard_rows=2)).tobytes() == undisturbed.tobytes()


def test_a_disk_that_is_full_from_the_beginning_is_said(run_job, monkeypatch):
    monkeypatch.setattr("lit_extract.storage.places.local.LocalPlace.write_file", full)
    with pytest.raises(InputError, match=r"can't write .*\.zarr': .*No space left on device"):
        run_job()


def test_rows_that_the_model_makes_infinite_are_listed_apart(run_job, monkeypatch):
    activations = VisionExtractor.activations

    def overflowing(self, inputs):
        outputs = activations(self, inputs)
        outputs["feats"][:, :, 3] = torch.inf
        return outputs

    monkeypatch.setattr(VisionExtractor, "activations", overflowing)
    extraction = run_job()
    assert (extraction.not_finite_rows, extraction.bad_input_rows) == (list(range(7)), [])


def test_exit_codes_tell_of_bad_rows(cli, image_folder, tmp_path):
    (image_folder / "4.png").write_text("broken")
    config = Path(__file__).parents[2] / "configs" / "folder" / "vision.yaml"
    command = ["predict", "--config", config, "--model.name", "test_vit.r160_in1k", "--model.untrained", "true"]
    command += ["--data.num_workers", 0, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    command += ["--data.root", image_folder, "--output_dir", tmp_path / "out"]
    code, _, err = cli(*command)
    assert code == 2
    assert err.startswith("lit-extract: error: stimulus 4.png (row 4)")
    code, out, _ = cli(*command, "--data.on_bad_image", "skip")
    assert code == 3
    assert "1 row could not be decoded and is NaN: 4" in out
    code, out, _ = cli(*command, "--data.on_bad_image", "skip")
    assert code == 3
    assert "already done: " in out


@pytest.mark.parametrize("folder", ["/proc/no/such", "file"])
def test_a_folder_that_can_not_be_made_is_named_with_its_setting(run_job, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InputError, match=rf"^output_dir: nothing can be written to '{folder}/folder/all-untrained': "):
        run_job(output_dir=folder)


@pytest.mark.parametrize("folder", ["", " "])
def test_an_empty_folder_is_not_the_working_directory(run_job, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    before = [*tmp_path.iterdir()]
    with pytest.raises(InputError, match=rf"^output_dir: '{folder}' is empty"):
        run_job(output_dir=folder)
    assert [*tmp_path.iterdir()] == before
    with pytest.raises(InputError, match=r"^data\.root: no folder given"):
        DemoDataModule(root="").read_table()
    with pytest.raises(InputError, match=r"^data\.cache: '' is empty"):
        run_job(data_cache="")
