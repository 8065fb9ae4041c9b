"""What disks and people do to a run's files: nothing that is done is lost, and nothing wrong is kept."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import timm
import torch
from helpers import runs

from lit_extract import CaptionDataModule, ImageFolderDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.store import Store

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
def test_damaged_values_of_rows_are_computed_again(run_job, undisturbed, caplog, array, damage):
    caplog.set_level("INFO", "lit_extract")
    store = run_job(finalize=False, **SHARDS).store
    damage(store / array / "c" / "2")
    with pytest.raises(InputError, match=rf"{array} of rows 4 to 5 of .* damaged on disk; run the same"):
        Store(store).status() if array == "status" else Store(store).extra(array)
    caplog.clear()
    extraction = run_job(**SHARDS)
    assert "1 shard of " in caplog.text
    assert "3 of 4 shards done, 1 left" in caplog.text
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


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


KEYS = {"feats": torch.zeros(2, 1, 1), "num_params": 1, "layers": ["a"], "stimulus_ids": [0, 1]}


def save(content):
    return lambda file, trace: torch.save(content, file)


FOREIGN = {
    "a checkpoint": save({"state_dict": {"weight": torch.zeros(3)}}),
    "a tensor": save(torch.zeros(3)),
    "a list": save([1, 2]),
    "keys without provenance": save({**KEYS, "metadata": {}}),
    "metadata that are a text": save({**KEYS, "metadata": "provenance"}),
    "provenance that is a text": save({**KEYS, "metadata": {"provenance": "mine"}}),
    "provenance of nothing": save({**KEYS, "metadata": {"provenance": {}}}),
    "text": lambda file, trace: file.write_text("notes of mine"),
    "nothing": lambda file, trace: file.touch(),
    "noise": lambda file, trace: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "a zip": lambda file, trace: zipfile.ZipFile(file, "w").writestr("a.txt", "a"),
    "code": lambda file, trace: torch.save({**KEYS, "metadata": Malicious(trace)}, file),
    "code of a plain pickle": lambda file, trace: file.write_bytes(pickle.dumps(Malicious(trace))),
    "code of the old format": lambda file, trace: torch.save(
        Malicious(trace), file, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_someone_else_in_our_place_is_never_run_nor_overwritten(cli, run_job, tmp_path, content):
    store = run_job(finalize=False).store
    file, trace = store.with_name("test_vit.r160_in1k_pool-cls-untrained.pt"), tmp_path / "trace"
    FOREIGN[content](file, trace)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"(is not a features file|made with other settings).* --overwrite "):
        run_job()
    for command in (("finalize", store), ("show", file)):
        code, _, error = cli(*command)
        if content != "provenance of nothing" or command[0] == "finalize":
            assert code == 2, error
            assert error.startswith("lit-extract: error: ")
            assert error.count("\n") == 1
    assert file.read_bytes() == before
    assert load_features(store).n_done == 7
    assert not trace.exists()
    assert np.isfinite(feats_of(run_job(overwrite=True))).all()
    assert not trace.exists()


def test_a_folder_in_our_place_is_refused_and_kept(run_job):
    store = run_job(finalize=False).store
    file = store.with_name("test_vit.r160_in1k_pool-cls-untrained.pt")
    file.mkdir()
    (file / "notes").touch()
    for settings in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"pool-cls-untrained\.pt"):
            run_job(**settings)
    assert (file / "notes").exists()
    assert load_features(store).n_done == 7


def called(name):
    """The tiny model under another name."""
    model = VisionExtractor("test_vit.r160_in1k", untrained=True)
    model.model_name = name
    model._create_backbone = lambda: timm.create_model("test_vit.r160_in1k")
    return model


def test_models_whose_names_are_written_alike_are_not_taken_for_each_other(tmp_path, image_folder):
    def run(name, **settings):
        model = called(name)
        data = ImageFolderDataModule(str(image_folder), num_workers=0, cache="off")
        return extract(model, data, predict_trainer("cpu", 1, precision="32-true"), str(tmp_path / "out"), **settings)

    store = run("a/b", finalize=False).store
    with pytest.raises(InputError, match=r"zarr' was started with other settings: model was 'a/b', now 'a_b'"):
        run("a_b")
    assert load_features(store).provenance["model"] == "a/b"
    run("a/b")
    with pytest.raises(InputError, match=r"pt' was made with other settings: model was 'a/b', now 'a_b'"):
        run("a_b")


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a/../../b", "a b", "x.y/z", ".", "~/x", "a\nb", "con", "-x"])
def test_no_name_escapes_the_output_folder(tmp_path, image_folder, name):
    model = called(name)
    data = ImageFolderDataModule(str(image_folder), num_workers=0, cache="off")
    (file,) = extract(model, data, predict_trainer("cpu", 1, precision="32-true"), str(tmp_path / "out")).files
    everything = {path for path in tmp_path.rglob("*") if path.is_file() and image_folder not in path.parents}
    assert everything == {file}
    assert file.parent == tmp_path / "out" / "folder" / "all-untrained"
    assert load_features(file).provenance["model"] == name


def test_a_name_that_is_too_long_is_refused_before_anything_is_done(tmp_path, image_folder):
    for length, is_refused in ((219, False), (230, True), (5000, True)):
        model = called("m" * length)
        data = ImageFolderDataModule(str(image_folder), num_workers=0, cache="off")
        trainer = predict_trainer("cpu", 1, precision="32-true")
        if is_refused:
            with pytest.raises(InputError, match=r"model\.name: 'mmm.* makes a file name of .* the maximum is 255"):
                extract(model, data, trainer, str(tmp_path / "long"))
            assert not (tmp_path / "long").exists()
        else:
            assert extract(model, data, trainer, str(tmp_path / "out")).files[0].exists()


@pytest.mark.parametrize("subset", ["..", "a/b", "/tmp", "", ".", "a/", "x" * 201, "nul\0"])
def test_no_subset_escapes_the_output_folder(subset):
    with pytest.raises(InputError, match=r"^data\.subset: "):
        ImageFolderDataModule("/images", query="name == 'x'", subset=subset)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a b", "nul\0"])
def test_no_prompt_name_escapes_the_output_folder(name):
    with pytest.raises(InputError, match=r"data\.prompt_name: .* names files: use letters, digits"):
        CaptionDataModule("captions.csv", prompt_name=name)


@pytest.mark.parametrize("kind", ["vision", "language"])
@pytest.mark.parametrize("name", ["", "..", "no/such/model", "x" * 300])
def test_names_of_no_model_are_one_clear_error(cli, tmp_path, image_folder, kind, name):
    (tmp_path / "captions.csv").write_text("stimulus_id,caption\n1,A dog.\n")
    data = {"vision": ["--data.root", image_folder], "language": ["--data.captions", tmp_path / "captions.csv"]}
    config = {"vision": "configs/folder/vision.yaml", "language": "configs/demo/language.yaml"}[kind]
    arguments = ["--model.name", name, *data[kind], "--output_dir", tmp_path / "out", "--trainer.accelerator", "cpu"]
    code, _, error = cli("predict", "--config", config, *arguments)
    assert code == 2, error
    assert error.startswith("lit-extract: error: model.name: ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def may_mount():
    """Skips where a small disk can't be had: one is mounted in a namespace of its own, which needs no root."""
    mount = "mount -t tmpfs -o size=1m tmpfs /mnt"
    tried = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")


@pytest.mark.usefixtures("may_mount")
def test_a_disk_that_fills_up_in_a_shard_and_in_finalize_and_one_that_may_not_be_written(tmp_path):
    script = Path(__file__).parents[1] / "helpers" / "small_disk.py"
    command = ["unshare", "--map-root-user", "--mount", sys.executable, script, tmp_path / "disk"]
    environment = {**os.environ, "PYTHONPATH": str(runs.REPOSITORY), **runs.ENVIRONMENT}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("as it should be") == 3


@pytest.mark.slow
def test_a_data_loading_worker_that_is_killed_ends_the_run_with_one_clear_error(tmp_path):
    images, output = runs.write_images(tmp_path / "images", 32, size=32), tmp_path / "out"
    options = ("--data.batch_size", "2", "--data.shard_rows", "4", "--data.num_workers", "2", "--trainer.devices", "1")
    with runs.slow_predict(images, output, *options, SLOW_STEP="0.5") as run:
        assert run.wait_until(lambda: "step 5" in run.output), run.output
        run.others()[0].kill()
        assert run.wait() == 2, run.output
        (said,) = run.said
        assert re.match(r"lit-extract: error: DataLoader worker \(pid.* killed.*run the same command again", said), said
        assert psutil.wait_procs(run.others(), timeout=10)[1] == []
    done = len(runs.done_shards(output))
    assert 2 <= done < 8
    assert f"{done} of 8 shards done" in runs.complete(images, output, *options)
