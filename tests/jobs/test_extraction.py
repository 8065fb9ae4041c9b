"""One job from settings to files: named safely, done once, resumed, never mixed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.language_models import save_model
from PIL import Image

from lit_extract import (
    CaptionDataModule,
    DemoDataModule,
    ImageFolderDataModule,
    ImageSourceDataModule,
    LanguageExtractor,
    VisionExtractor,
    extract,
    load_features,
)
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.layout import safe_name
from lit_extract.storage.store import Store

TINY = "test_vit.r160_in1k"


def _trainer():
    return predict_trainer("cpu", devices=1, precision="32-true")


def _model(_):
    return VisionExtractor(TINY, untrained=True)


def _language_model(tmp_path):
    save_model(tmp_path / "gpt2", "gpt2")
    return LanguageExtractor(str(tmp_path / "gpt2"), untrained=True)


def names(tmp_path):
    return sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("[!.]*/*/*"))


def feats_of(extraction):
    return load_features(extraction.files[0]).feats.numpy().copy()


def captions(tmp_path):
    (tmp_path / "captions.csv").write_text("stimulus_id,caption\n1,a dog\n")
    return CaptionDataModule(tmp_path / "captions.csv", "mine")


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        (
            _model,
            captions,
            "data: VisionExtractor works on images: use NSDDataModule or Im",
        ),
        (
            _model,
            lambda _: ImageSourceDataModule("demo"),
            "ImageFolderDataModule, not ImageSourceDataModule",
        ),
        (
            _language_model,
            lambda _: DemoDataModule(),
            "data: LanguageExtractor works on captions: use Cap",
        ),
        (lambda _: DemoDataModule(), _model, "model: DemoDataModule is not an extractor"),
        (lambda _: TINY, lambda _: "pictures", "model: str is not an extractor"),
        (_model, lambda _: "pictures", "ImageFolderDataModule, not str"),
    ],
)
def test_a_model_and_data_that_do_not_fit_are_refused(tmp_path, model, data, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        extract(model(tmp_path), data(tmp_path), _trainer(), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224.mae", "vit_base_patch16_224.mae"),
        ("bigscience/bloomz-560m", "bigscience_bloomz-560m"),
        ("hf-hub:timm/vit@main", "hf-hub_timm_vit@main"),
        ("a b\tc\nd", "a_b_c_d"),
        ("..", "_"),
        ("../../etc/passwd", "__.._etc_passwd"),
        ("/etc/passwd", "_etc_passwd"),
        (".hidden", "_hidden"),
        ("...x", "_x"),
        ("a\\b", "a_b"),
        ("naïve", "na_ve"),
        ("x=1+2@3", "x=1+2@3"),
    ],
)
def test_safe_name_never_is_a_path(name, expected):
    assert safe_name(name) == expected
    assert Path("/features", f"{safe_name(name)}.pt").resolve().parent == Path("/features")


def test_rows_are_those_of_the_images_each_run_alone(run_job, image_folder, tmp_path):
    """The oracle: each image through a model of its own, without data module, writer, store and finalize."""
    feats = feats_of(run_job(pool="avg"))
    model = VisionExtractor(TINY, untrained=True, pool="avg")
    model.configure_model()
    transform = timm.data.create_transform(**model.preprocessing, is_training=False)
    for row in range(7):
        with Image.open(image_folder / f"{row}.png") as image, torch.no_grad():
            hidden = model.backbone.forward_intermediates(
                transform(image)[None], norm=False, intermediates_only=True, output_fmt="NLC"
            )
        expected = torch.stack([tokens[0].mean(dim=0) for tokens in hidden]).numpy()
        np.testing.assert_allclose(feats[row], expected, rtol=1e-4, atol=1e-5)
    assert names(tmp_path) == [f"folder/all-untrained/{TINY}_pool-avg-untrained.pt"]


def test_from_python_as_in_a_notebook(tmp_path):
    model = VisionExtractor(TINY, untrained=True, pool="avg", layers=[0, -1])
    data = DemoDataModule(query="demo_id in [20, 3]", subset="two")
    extraction = extract(model, data, output_dir=str(tmp_path / "out"))
    (file,) = extraction.files
    assert file == tmp_path / "out" / "demo" / "two-untrained" / f"{TINY}_pool-avg-untrained.pt"
    features = load_features(file)
    assert features.stimulus_ids == [3, 20]
    assert features.layers == ["blocks.0", "blocks.5"]
    assert features.provenance["query"] == "demo_id in [20, 3]"
    assert features.provenance["precision"] == "32-true", (
        "an untrained model's layers may differ by less than bf16 holds"
    )
    assert features.metadata["notes"]["stimulus_id_meaning"] == data.stimuli.attrs["stimulus_id_meaning"]
    assert (extraction.store, extraction.was_done, extraction.bad_input_rows) == (None, False, [])


def test_a_second_time_it_is_done_and_nothing_is_computed(run_job, monkeypatch):
    first = run_job()
    monkeypatch.setattr("lit_extract.jobs.extraction.run_predict", lambda *_: pytest.fail("computed again"))
    second = run_job()
    assert second.was_done
    assert not first.was_done
    assert second.files == first.files


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 1}, ["seed was 0, now 1"]),
        ({"precision": "bf16-true"}, ["precision was '32-true', now 'bf16-true'"]),
        ({"data_batch_size": 3, "data_shard_rows": 3}, ["batch_size was 2, now 3", "shard_rows was 8, now 3"]),
        ({"layers": [0]}, ["layers had 6 entries, now 1"]),
        ({"pool": ["avg", "cls"], "seed": 1}, ["seed was 0, now 1"]),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_named_with_both_values(run_job, settings, named, finished):
    before = run_job(finalize=finished)
    if not finished and "pool" in settings:
        assert run_job(**settings).store is None, "other poolings have a store of their own"
        return
    with pytest.raises(InputError) as error:
        run_job(**settings)
    assert [text for text in named if text not in str(error.value)] == []
    assert "--overwrite" in str(error.value)
    assert run_job(finalize=finished).files == before.files, "what was there is untouched"


@pytest.mark.parametrize("finished", [True, False])
def test_rows_a_shard_are_those_of_the_run_that_is_resumed(run_job, tmp_path, caplog, finished):
    """Earlier versions have chosen other ones: their features are done, and their stores resumed."""
    caplog.set_level("INFO")
    before = run_job(finalize=finished, data_shard_rows=4)
    if not finished:
        next(before.store.glob("cls/c/1/0/0")).unlink()
    again = run_job()
    assert again.was_done == finished
    assert finished or "1 of 2 shards done, 1 left" in caplog.text
    assert load_features(again.files[0]).provenance["shard_rows"] == 4
    assert torch.equal(load_features(again.files[0]).feats, load_features(run_job(tmp_path / "new").files[0]).feats)
    assert load_features(run_job(overwrite=True).files[0]).provenance["shard_rows"] == 8


def test_overwrite_starts_from_scratch(run_job, tmp_path):
    first = feats_of(run_job())
    run_job(overwrite=True, finalize=False, seed=1)
    assert names(tmp_path) == [f"folder/all-untrained/{TINY}_pool-cls-untrained.zarr"], "the old file is gone"
    second = feats_of(run_job(overwrite=True, seed=2))
    assert not np.array_equal(first, second)
    assert load_features(run_job(seed=2).files[0]).provenance["seed"] == 2


def test_overwrite_also_removes_what_is_broken(run_job, tmp_path):
    store = run_job(finalize=False).store
    (store / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="not a lit-extract store"):
        run_job()
    assert run_job(overwrite=True).store is None
    (file,) = run_job().files
    file.write_bytes(b"broken")
    with pytest.raises(InputError, match="not a features file"):
        run_job()
    assert run_job(overwrite=True).files == [file]


def test_several_poolings_in_one_pass_equal_each_alone(run_job, tmp_path):
    both = run_job(pool=["cls", "avg"])
    assert [file.name for file in both.files] == [f"{TINY}_pool-{pool}-untrained.pt" for pool in ("cls", "avg")]
    together = [load_features(file).feats.numpy().tobytes() for file in both.files]
    shutil.rmtree(tmp_path / "out")
    assert together == [feats_of(run_job(pool=pool)).tobytes() for pool in ("cls", "avg")]


def test_a_pooling_that_is_there_is_kept_when_another_is_added(run_job):
    (cls,) = run_job().files
    written = cls.stat().st_ino
    assert run_job(pool=["cls", "avg"]).files[0] == cls
    assert cls.stat().st_ino == written


def test_finalize_later(run_job, tmp_path, monkeypatch):
    unfinished = run_job(finalize=False)
    assert unfinished.files == []
    assert names(tmp_path) == [f"folder/all-untrained/{TINY}_pool-cls-untrained.zarr"]
    feats = load_features(unfinished.store).feats.numpy()
    monkeypatch.setattr("lit_extract.jobs.extraction.run_predict", lambda *_: pytest.fail("computed again"))
    finished = run_job(keep_store=True)
    assert finished.store == unfinished.store
    np.testing.assert_array_equal(feats_of(finished), feats)


def test_a_query_goes_to_its_own_folder(run_job, tmp_path):
    whole = feats_of(run_job())
    some = run_job(data_query="name in ['5', '1']", data_subset="some")
    assert names(tmp_path) == [
        f"folder/{name}/{TINY}_pool-cls-untrained.pt" for name in ("all-untrained", "some-untrained")
    ]
    np.testing.assert_allclose(feats_of(some), whole[[1, 5]], rtol=1e-4, atol=1e-5)
    assert load_features(some.files[0]).stimulus_ids == ["1.png", "5.png"]


def test_another_preprocessing_is_named_with_both_values(image_folder, tmp_path):
    def run(preprocessing, finalize):
        model = VisionExtractor(TINY, untrained=True, preprocessing=preprocessing)
        data = ImageFolderDataModule(str(image_folder), num_workers=0)
        return extract(model, data, _trainer(), str(tmp_path / "out"), finalize=finalize)

    squash = {"crop_pct": 1.0, "crop_mode": "squash"}
    for finalize in (False, True):  # a store to resume, then a finished file
        run(squash, finalize)
        assert run(squash, finalize).was_done == finalize
        for other in (None, {**squash, "crop_pct": 0.75}, {**squash, "mean": [0.1, 0.2, 0.3]}):
            with pytest.raises(InputError) as caught:
                run(other, finalize)
            changed = {**squash, "mean": [0.5, 0.5, 0.5]} if other else squash
            now = other or {"crop_pct": 0.95, "crop_mode": "center"}
            for key, value in now.items():
                if value != changed[key]:
                    assert f"preprocessing.{key} was {changed[key]!r}, now {value!r}" in str(caught.value)


def test_a_data_module_of_another_model_is_not_used_silently(tmp_path, image_folder):
    data = ImageFolderDataModule(str(image_folder), num_workers=0)
    model = VisionExtractor(TINY, untrained=True)
    extract(model, data, _trainer(), str(tmp_path / "one"))
    other = VisionExtractor(TINY, untrained=True)
    other.preprocessing = {**model.preprocessing, "crop_pct": 0.5}
    with pytest.raises(InputError, match=r"data\.preprocessing: .*'crop_pct': 0\.95"):
        extract(other, data, _trainer(), str(tmp_path / "two"))


def test_a_lost_shard_is_computed_again_to_the_same_bytes(run_job, caplog):
    caplog.set_level("INFO")
    undisturbed = feats_of(run_job(keep_store=True, data_shard_rows=2))
    extraction = run_job(keep_store=True, data_shard_rows=2)
    shutil.rmtree(extraction.store / "cls" / "c" / "1")
    (extraction.store / "cls" / "c" / "2" / "0" / "0").write_bytes(b"truncated")
    extraction.files[0].unlink()
    again = run_job(data_shard_rows=2)
    assert "2 of 4 shards done, 2 left" in caplog.text
    assert feats_of(again).tobytes() == undisturbed.tobytes()


def test_a_store_that_was_kept_on_purpose_is_no_leftover(run_job):
    assert run_job(keep_store=True).store.exists()
    again = run_job()
    assert again.was_done
    assert again.store.exists()


def test_a_data_module_may_serve_a_second_model_with_more_layers(image_folder, tmp_path):
    data = ImageFolderDataModule(str(image_folder), batch_size=4)
    for layers in ([0], "blocks"):
        extractor = VisionExtractor(TINY, untrained=True, layers=layers)
        alone = ImageFolderDataModule(str(image_folder), batch_size=4, preprocessing=extractor.preprocessing)
        outputs = []
        for place, module in (("shared", data), ("alone", alone)):
            trainer = predict_trainer(accelerator="cpu", precision="32-true")
            file = extract(extractor, module, trainer, output_dir=str(tmp_path / f"{place}-{layers}")).files[0]
            outputs.append(load_features(file))
        assert outputs[0].provenance == outputs[1].provenance


def test_a_store_without_a_finished_shard_takes_any_other_settings(run_job, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_extract.storage.store.Store.write_shard", _fail_early)
    with pytest.raises(KeyError, match="early"):
        run_job()
    monkeypatch.undo()
    (store,) = tmp_path.rglob("*.zarr")
    assert not Store(store).done_shards()
    done = run_job(data_batch_size=3, data_shard_rows=3, seed=1)
    reference = run_job(tmp_path / "reference", data_batch_size=3, data_shard_rows=3, seed=1)
    assert torch.equal(load_features(done.files[0]).feats, load_features(reference.files[0]).feats)


def _fail_early(*_, **__):
    raise KeyError("early")


def test_a_store_with_a_finished_shard_keeps_its_settings(run_job, tmp_path):
    done = run_job(finalize=False, data_shard_rows=4)
    next(done.store.glob("cls/c/0/0/0")).unlink()
    with pytest.raises(InputError, match="seed was 0, now 1"):
        run_job(data_shard_rows=4, seed=1)
    assert Store(done.store).done_shards() == {1}


def test_a_second_folder_of_images_is_said_to_be_one(run_job, tmp_path, image_folder):
    run_job(finalize=False)
    other = tmp_path / "others"
    other.mkdir()
    (other / "x.png").write_bytes((image_folder / "3.png").read_bytes())
    for _ in range(2):  # of a store, then of a features file
        with pytest.raises(InputError) as error:
            run_job(data_root=str(other))
        assert repr(str(image_folder)) in str(error.value)
        assert repr(str(other)) in str(error.value)
        assert "--data.subset NAME" in str(error.value)
        assert "sha256" not in str(error.value)
        run_job()
    (file,) = (tmp_path / "out").rglob("*.pt")
    assert load_features(file).metadata["notes"]["root"] == str(image_folder)
