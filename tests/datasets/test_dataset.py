"""A dataset is one file and one line."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lit_extract
from lit_extract.datasets import DATASETS, dataset

PACKAGE = Path(lit_extract.__file__).parent

NEW_DATASET = """
from lit_extract.datasets.dataset import Dataset

DATASET = Dataset(
    name="coco",
    title="COCO",
    data_module="COCODataModule",
    root_variable="COCO_DATASET",
    index=("images.csv",),
    columns=("coco_id", "file"),
    image_column="file",
    id_column="coco_id",
    id_meaning="coco_id of images.csv",
)
"""

USE = """
import sys
from lit_extract import load_captions, load_dataset
from lit_extract.cli import main

assert load_dataset("coco").attrs["stimulus_id_meaning"] == "coco_id of images.csv"
assert load_captions("captions.csv")["stimulus_id"].tolist() == [30, 10]
sys.exit(main(sys.argv[1:]))
"""


def run_python(folder, *arguments):
    environment = {"PYTHONPATH": str(folder), "COCO_DATASET": str(folder / "coco"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_new_dataset_is_one_file_and_one_line(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "lit_extract", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lit_extract" / "datasets" / "coco.py").write_text(NEW_DATASET)
    init = tmp_path / "lit_extract" / "datasets" / "__init__.py"
    before = init.read_text()
    init.write_text(before.replace('    "demo",\n', '    "demo",\n    "coco",\n'))
    assert len(init.read_text().splitlines()) == len(before.splitlines()) + 1

    images = tmp_path / "coco"
    shutil.copytree(DATASETS["demo"].ships_at, images)
    names = sorted(path.name for path in images.glob("*.jpg"))[:2]
    (images / "images.csv").write_text(f"coco_id,file\n30,{names[1]}\n10,{names[0]}\n")
    (tmp_path / "models.yml").touch()
    (tmp_path / "captions.csv").write_text("coco_id,caption\n30,a dog\n10,a cat\n")
    vision = "--model VisionExtractor --model.name test_vit.r160_in1k --model.untrained true".split()
    run = run_python(tmp_path, "-c", USE, "predict", *vision, "--data", "lit_extract.COCODataModule")
    assert run.returncode == 0, run.stderr
    features = lit_extract.load_features(next((tmp_path / "features" / "coco").rglob("*.pt")))
    assert features.stimulus_ids == [30, 10]

    assert "  COCODataModule\n" in run_python(tmp_path, "-m", "lit_extract", "predict", "--help").stdout


@pytest.mark.parametrize("name", DATASETS)
def test_the_data_module_of_a_dataset_is_a_class_like_any_other(name):
    data = getattr(lit_extract, DATASETS[name].data_module)(root="somewhere", batch_size=3)
    assert data.dataset_name == name
    assert DATASETS[name].data_module in dir(lit_extract)
    assert type(data).__module__ == "lit_extract.data.images"
    assert type(data).__doc__.startswith(DATASETS[name].title)
    copy = pickle.loads(pickle.dumps(data))
    assert (type(copy), copy.batch_size) == (type(data), 3)


def test_ids_and_names_of_datasets_are_not_mixed_up():
    assert len({known.id_column for known in DATASETS.values()}) == len(DATASETS)
    assert len({known.data_module for known in DATASETS.values()}) == len(DATASETS)
    for name, known in DATASETS.items():
        assert re.fullmatch("[a-z0-9]+", name), "it is the name of a folder"
        assert not known.columns or {known.id_column, known.image_column} <= set(known.columns)
        assert isinstance(known, dataset.Dataset)
