"""A table of one's own is a dataset: its ids, its order, its images, or one error that says what is wrong."""

import shlex
import shutil

import pandas as pd
import pytest

from lit_extract import CaptionDataModule, ImageTableDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.datasets import load_dataset, table
from lit_extract.jobs.trainer import predict_trainer


def write(folder, rows, name="faces.csv"):
    path = folder / name
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


@pytest.fixture
def faces(image_folder):
    """A table next to a folder of images, in another order than that of their names; one image is elsewhere."""
    images = [f"images/{k}.png" for k in (3, 0, 6)] + [str(image_folder / "1.png")]
    return write(
        image_folder.parent,
        {"stimulus_id": ["c", "a", "z", "b"], "image": images, "age": [30, 20, 60, 10], "sex": list("mfmf")},
    )


@pytest.mark.parametrize("name", ["faces.csv", "faces.parquet"])
def test_rows_are_those_of_the_table_in_its_order(faces, image_folder, name):
    path = write(faces.parent, pd.read_csv(faces), name)
    found = load_dataset("table", path)
    assert found["stimulus_id"].tolist() == ["c", "a", "z", "b"]
    assert found["image"].tolist() == [str(image_folder / f"{k}.png") for k in (3, 0, 6, 1)]
    assert found["age"].tolist() == [30, 20, 60, 10]
    assert load_dataset("table", path, query="age > 15 and sex == 'm'", limit=1)["stimulus_id"].tolist() == ["c"]


def test_features_are_those_of_the_images_from_the_command_line_and_from_python(faces, run_job, cli, tmp_path):
    by_path = load_features(run_job().files[0])
    model = ("--model", "VisionExtractor", "--model.name", "test_vit.r160_in1k", "--model.untrained", "true")
    here = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--output_dir", tmp_path / "cli")
    data = ("--data", "ImageTableDataModule", "--data.root", faces, "--data.subset", "faces", "--data.num_workers", "0")
    code, _, err = cli("predict", *model, *data, *here)
    assert code == 0, err
    on_command_line = load_features(tmp_path / "cli/table/faces-untrained/test_vit.r160_in1k_pool-cls-untrained.pt")
    extractor = VisionExtractor("test_vit.r160_in1k", untrained=True)
    trainer = predict_trainer("cpu", devices=1, precision="32-true")
    done = extract(extractor, ImageTableDataModule(str(faces), num_workers=0), trainer, str(tmp_path / "python"))
    for found in (on_command_line, load_features(done.files[0])):
        assert found.stimulus_ids == ["c", "a", "z", "b"]
        expected = by_path[["3.png", "0.png", "6.png", "1.png"]]
        assert abs(found.feats - expected).max() < 1e-5 < abs(expected[0] - expected[1]).max()


def test_captions_of_the_table_are_put_in_its_order(faces, tmp_path):
    captions = write(tmp_path, {"stimulus_id": list("abcz"), "caption": ["A", "B", "C", "Z"]}, "captions.csv")
    data = CaptionDataModule(str(captions), "own", dataset="table", root=str(faces))
    assert data.stimuli["caption"].tolist() == ["C", "A", "Z", "B"]
    write(tmp_path, {"stimulus_id": list("abcx"), "caption": ["A", "B", "C", "X"]}, "captions.csv")
    with pytest.raises(InputError, match="1 caption of a stimulus that is not in table: x"):
        _ = CaptionDataModule(str(captions), "own", dataset="table", root=str(faces)).stimuli


def test_the_same_table_elsewhere_has_the_same_fingerprint(image_folder, tmp_path):
    path = write(tmp_path, {"stimulus_id": [1, 2], "image": ["images/0.png", "images/1.png"]})
    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy / "images")
    shutil.copy(path, copy / "renamed.csv")
    here, there = load_dataset("table", path), load_dataset("table", copy / "renamed.csv")
    assert table.fingerprint(here) == table.fingerprint(there)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"stimulus_id": [1, 1], "image": ["a", "b"]}, "a stimulus_id that occurs twice"),
        ({"stimulus_id": ["a", ""], "image": ["a", "b"]}, "no stimulus_id in line 3"),
        ({"stimulus_id": [1, 2], "path": ["a", "b"]}, "has no column image; it has stimulus_id, path"),
        ({"id": [1, 2], "image": ["a", "b"]}, "has no column stimulus_id"),
        ({"stimulus_id": [1, 2], "image": ["a", ""]}, r"has no image for stimulus 2 \(line 3\)$"),
        (
            {"stimulus_id": [1, 2], "image": ["a", "b\x1b[31m"]},
            r"has an image with control .*bytes, for stimulus 2 \(line 3\)$",
        ),
        (
            {"stimulus_id": ["s1", "s 2", "s3"], "image": ["", "b", ""]},
            r"for stimulus 's1' \(line 2\), .* 's3' \(line 4\)$",
        ),
        ({"stimulus_id": [1], "image": ["a"], "image_row": [1]}, "image_row, which is a reserved name"),
        ({"stimulus_id": [], "image": []}, "has no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_error(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        load_dataset("table", write(tmp_path, rows))


def test_a_table_that_is_none_is_one_error(tmp_path):
    for root, said in ((None, "give --data.root FILE"), (tmp_path, "is a folder"), (tmp_path / "x.csv", "no file")):
        with pytest.raises(InputError, match=said):
            load_dataset("table", root)


def test_missing_images_are_named_before_anything_runs(tmp_path):
    data = ImageTableDataModule(str(write(tmp_path, {"stimulus_id": [1], "image": ["none.png"]})))
    with pytest.raises(InputError, match=r"1 of 1 image is missing: .*none\.png"):
        data.setup()


@pytest.mark.parametrize("stimulus", ['it\'s "b".png', "é", 7])
def test_the_error_about_a_missing_image_gives_the_query_that_leaves_it_out(image_folder, tmp_path, stimulus):
    ids = [stimulus, 5 if stimulus == 7 else "5"]
    path = str(write(tmp_path, {"stimulus_id": ids, "image": ["gone.png", str(image_folder / "0.png")]}))
    with pytest.raises(InputError, match=r"1 of 2 images is missing: .*gone\.png") as error:
        ImageTableDataModule(path).setup()
    option, query, *subset = shlex.split(str(error.value).split("leave rows out with ")[1])
    assert (option, subset) == ("--data.query", ["--data.subset", "NAME"])
    data = ImageTableDataModule(path, query=query, subset="NAME")
    data.setup()
    assert data.stimuli["stimulus_id"].tolist() == ids[1:]
