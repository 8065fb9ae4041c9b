"""All features files of one folder have the same stimuli in the same order, the dataset's, and the same images."""

import csv
import io
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.language_models import save_model

from lit_extract import ImageTableDataModule, NSDDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.finalize import finalize

DEMO = ("--config", "configs/demo/language.yaml", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
SHIPPED = "derivatives/captions/demo-captions-handwritten.csv"


@pytest.fixture
def predict(cli, tmp_path):
    save_model(tmp_path / "model", "llama")

    def run(captions, *options, name="tiny"):
        model = ("--model.name", name, "--model.checkpoint", tmp_path / "model")
        where = ("--data.captions", captions, "--output_dir", tmp_path / "out")
        return cli("predict", *DEMO, *model, *where, *options)

    return run


@pytest.fixture
def write(tmp_path):
    """A function that writes rows of the shipped captions in another order."""
    with Path(SHIPPED).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)

    def run(order, change=lambda row: row):
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([header, *(change(rows[place]) for place in order)])
        (tmp_path / "captions.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
        return tmp_path / "captions.csv"

    return run


def feats(tmp_path, subset="all", name="tiny"):
    return load_features(tmp_path / "out" / "demo" / subset / f"{name}_pool-avg_prompt-handwritten.pt")


def test_half_of_the_captions_in_reverse_order_is_no_dataset(predict, write, tmp_path):
    assert predict(SHIPPED, name="whole")[0] == 0
    whole = feats(tmp_path, name="whole")
    half = write(range(11, -1, -1))
    code, _, err = predict(half)
    assert code == 2
    assert "no caption for 12 of 24 stimuli of demo: 12, 13" in err
    assert not list((tmp_path / "out" / "demo" / "all").glob("tiny*"))
    code, out, _ = predict(half, "--data.subset", "half")
    assert code == 0
    assert "rows are sorted in the order of demo" in out
    found = feats(tmp_path, "half")
    assert found.stimulus_ids == list(range(12))
    assert torch.allclose(found.feats, whole.feats[:12], atol=1e-6)


def test_a_reversed_file_gives_the_same_bytes(predict, write, tmp_path):
    assert predict(SHIPPED, name="whole")[0] == 0
    code, _, err = predict(write(range(23, -1, -1), lambda row: [f"{row[0]}.0", *row[1:]]))
    assert (code, err) == (0, "")
    assert torch.equal(feats(tmp_path).feats, feats(tmp_path, name="whole").feats)
    assert feats(tmp_path).stimulus_ids == feats(tmp_path, name="whole").stimulus_ids == list(range(24))


def test_another_part_in_the_same_folder_is_refused_before_a_model_is_loaded(predict, write, tmp_path, monkeypatch):
    assert predict(write(range(12)), "--data.subset", "part", name="first")[0] == 0
    monkeypatch.setattr("lit_extract.modules.language.LanguageExtractor.configure_model", None)  # it would fail
    code, _, err = predict(write(range(6, 18)), "--data.subset", "part")
    assert code == 2
    assert "first_pool-avg_prompt-handwritten.pt' has 12 stimuli, and this run has 12; 6 are in both" in err
    assert "--data.subset NAME" in err
    assert [path.name for path in (tmp_path / "out" / "demo" / "part").iterdir()] == [
        "first_pool-avg_prompt-handwritten.pt"
    ]


def test_vision_and_language_features_of_a_folder_can_be_compared(cli, tmp_path, image_folder):
    """Captions that this program makes of a folder keep the path; another folder of images is refused."""
    save_model(tmp_path / "model", "llama")
    vision = (
        *("predict", "--config", "configs/folder/vision.yaml", "--trainer.accelerator", "cpu"),
        *("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--output_dir", tmp_path / "out"),
    )
    assert cli(*vision, "--data.root", image_folder)[0] == 0
    (file,) = (tmp_path / "out").rglob("*.pt")
    stimuli = load_features(file).stimulus_ids
    rows = [f"{path},name,a caption of {path},model,caption" for path in reversed(stimuli)]
    (tmp_path / "captions.csv").write_text("\n".join(["path,name,caption,model,prompt", *rows]) + "\n")
    language = (
        *("predict", "--config", "configs/folder/language.yaml", "--trainer.accelerator", "cpu"),
        *("--model.name", "tiny", "--model.checkpoint", tmp_path / "model", "--output_dir", tmp_path / "out"),
        *("--data.captions", tmp_path / "captions.csv", "--data.prompt_name", "own"),
    )
    code, _, err = cli(*language, "--data.root", image_folder)
    assert (code, err) == (0, "")
    (captions,) = (tmp_path / "out").rglob("tiny*.pt")
    assert load_features(captions).stimulus_ids == stimuli
    other = tmp_path / "other"
    other.mkdir()
    (image_folder / stimuli[0]).rename(other / "z.png")
    code, _, err = cli(*vision, "--model.seed", 1, "--model.name", "vit_tiny_patch16_224", "--data.root", other)
    assert code == 2
    assert f"data.root: '{other}': " in err
    assert "; 0 are in both" in err


@pytest.fixture
def images(image_folder, tmp_path):
    """A function that copies the images to a folder, with their times, and changes some of them there."""

    def copy(name, *changed, content=lambda content: content[:-1]):
        folder = tmp_path / name
        shutil.copytree(image_folder, folder)
        for image in changed:
            path = folder / image
            stat = path.stat()
            path.write_bytes(content(path.read_bytes()))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        return str(folder)

    return copy


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("finished", [True, False])
def test_other_images_under_the_same_names_are_refused_before_a_model_is_loaded(run_job, images, monkeypatch, finished):
    first = run_job(finalize=finished)
    assert run_job(tag="copy", data_root=images("copy")).files, "the same images elsewhere"
    monkeypatch.setattr("lit_extract.modules.vision.VisionExtractor.configure_model", None)  # it would fail
    for root, which in (
        (images("shorter", "2.png", "5.png"), "2 of 7 differ: 2.png, 5.png"),
        (images("as_long", "3.png", content=flipped), "1 of 7 differ: 3.png"),
    ):
        with pytest.raises(InputError) as error:
            run_job(tag="again", data_root=root)
        assert str(error.value).startswith(
            f"data.root: {root!r}: {str(first.files[0] if finished else first.store)!r} was made from other images: "
            f"{which}. All features of one folder must have the same images"
        )


def test_images_of_other_sizes_are_found_without_reading_them(run_job, images, monkeypatch):
    run_job()
    other = images("other", *(f"{row}.png" for row in range(7)))
    monkeypatch.setattr("lit_extract.data.base.contents", lambda places: [0] * len(places) if not places else 1 / 0)
    with pytest.raises(InputError, match=r"7 of 7 differ: 0\.png, 1\.png"):
        run_job(tag="again", data_root=other)


def test_few_images_are_read_before_a_run_and_the_others_compared_after_it(run_job, images, monkeypatch):
    monkeypatch.setattr("lit_extract.jobs.outputs.MOST_IMAGES_READ", 2)
    run_job()
    other = images("other", *(f"{row}.png" for row in range(7)), content=flipped)
    with pytest.raises(InputError, match=r"at least 2 of 7 differ: 0\.png, 4\.png"):
        run_job(tag="again", data_root=other)
    for row in (0, 4):
        shutil.copy(Path(other).with_name("images") / f"{row}.png", other)
    with pytest.raises(InputError, match=r"is complete, but .* made from other images: 5 of 7 differ: 1\.png"):
        run_job(tag="again", data_root=other)


def test_an_image_of_the_same_size_and_time_is_found_when_the_run_is_complete(run_job, images, tmp_path, monkeypatch):
    first = run_job()
    root = images("other", "3.png", content=flipped)
    os.utime(Path(root, "3.png"), ns=(0, Path(root).with_name("images").joinpath("3.png").stat().st_mtime_ns))
    with pytest.raises(InputError, match=r"is complete, but .*: 1 of 7 differ: 3\.png\. To keep both, move") as error:
        run_job(tag="again", data_root=root)
    (store,) = first.files[0].parent.glob("*.zarr")
    assert str(error.value).startswith(f"{str(store)!r} is complete, but {str(first.files[0])!r} was made")
    monkeypatch.setattr("lit_extract.jobs.extraction.run_predict", lambda *_: pytest.fail("computed again"))
    with pytest.raises(InputError, match="is complete, but"):
        run_job(tag="again", data_root=root)
    elsewhere = store.rename(tmp_path / store.name)  # the ways out, of which nothing is lost
    (file,) = finalize(elsewhere, keep_store=True)
    assert len(load_features(file)) == 7
    elsewhere.rename(store)
    first.files[0].unlink()
    assert run_job(tag="again", data_root=root).files


def test_a_bad_image_is_no_other_image(run_job, image_folder):
    good = (image_folder / "3.png").read_bytes()
    (image_folder / "3.png").write_bytes(good[:50])
    for tag in ("a", "b"):
        assert run_job(tag=tag, data_on_bad_image="skip").bad_input_rows == [3]
    (image_folder / "3.png").write_bytes(good)
    for tag in ("c", "a", "b"):  # the last two are repaired
        assert run_job(tag=tag, data_on_bad_image="skip").bad_input_rows == []


def test_images_that_were_corrected_are_computed_once_the_old_features_are_removed(run_job, image_folder):
    old = [run_job(tag=tag).files[0] for tag in ("a", "b")]
    (image_folder / "3.png").write_bytes((image_folder / "2.png").read_bytes())
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"1 of 7 differ: 3\.png.* first remove the features of the old ones"):
            run_job(tag="a", overwrite=overwrite)
    for file in old:
        file.unlink()
    assert all(run_job(tag=tag).files for tag in ("a", "b"))


@pytest.mark.parametrize("are_other", [False, True])
def test_rows_of_an_hdf5_file_are_compared_by_their_pixels(tmp_path, monkeypatch, are_other):
    """Its size is that of all rows, and differs between copies of the file."""
    for module in ("lit_extract.storage.folder", "lit_extract.datasets.decode"):
        monkeypatch.setattr(f"{module}.MAX_IMAGE_BYTES", 1000)
    bricks = np.random.default_rng(0).integers(0, 256, (6, 425, 425, 3), dtype=np.uint8)

    def run(name, tag, bricks, **how):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "nsd_stimuli.hdf5", "w") as file:
            file.create_dataset("imgBrick", data=bricks, **how)
        model = VisionExtractor("test_vit.r160_in1k", untrained=True)
        data = NSDDataModule(str(tmp_path / name), num_workers=0)
        return extract(model, data, predict_trainer("cpu", devices=1), str(tmp_path / "out"), tag=tag).files

    run("plain", "a", bricks)
    if are_other:
        bricks[4] += 1
        with pytest.raises(InputError, match="1 of 6 differ: 4"):
            run("packed", "b", bricks, compression="gzip")
    else:
        assert run("packed", "b", bricks, compression="gzip")


@pytest.mark.parametrize("finished", [True, False])
def test_other_rows_of_a_table_are_kept_apart_by_a_subset_not_by_a_tag(image_folder, tmp_path, monkeypatch, finished):
    monkeypatch.chdir(tmp_path)

    def run(table, n_rows, **settings):
        rows = "".join(f"{row},images/{row}.png\n" for row in range(n_rows))
        Path(table).write_text(f"stimulus_id,image\n{rows}")
        model = VisionExtractor("test_vit.r160_in1k", untrained=True)
        data = ImageTableDataModule(table, num_workers=0, subset=settings.pop("subset", "all"))
        return extract(model, data, predict_trainer("cpu", devices=1), "out", finalize=finished, **settings)

    run("two.csv", 2)
    with pytest.raises(InputError, match=r"n_stimuli was 2, now 3.* with --data\.subset NAME") as error:
        run("three.csv", 3)
    assert "--tag" not in str(error.value)
    with pytest.raises(InputError, match=r"^data\.root: 'three\.csv': 'out/table/all-untrained/.*' has 2 stimuli"):
        run("three.csv", 3, tag="three")
    run("three.csv", 3, subset="three")
    run("three.csv", 3, overwrite=True)
