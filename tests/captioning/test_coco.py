"""NSD's captions out of COCO's annotations, as those files are."""

import json

import pandas as pd
import pytest

from lit_extract.datasets import load_captions

STIM_INFO = """,cocoId,cocoSplit,cropBox,loss,nsdId,flagged,BOLD5000,shared1000
0,262145,train2017,"(0, 0, 0.16, 0.16)",0.1,1,False,False,False
1,532481,val2017,"(0, 0, 0.1, 0.1)",0.1,0,False,False,True
2,262146,train2017,"(0, 0, 0.1, 0.1)",0.2,2,False,False,False
"""
TRAIN = [
    {"image_id": 262146, "id": 3, "caption": "A person skiing down a slope.\n"},
    {"image_id": 262145, "id": 7, "caption": "People shopping; an open market."},
    {"image_id": 262145, "id": 2, "caption": " A   crowd\nat stalls "},
    {"image_id": 99, "id": 1, "caption": "Not in NSD"},
]
VAL = [{"image_id": 532481, "id": 5, "caption": "A man flies a kite."}]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "info.csv").write_text(STIM_INFO)
    for name, annotations in {"train": TRAIN, "val": VAL}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"info": {}, "annotations": annotations}))
    return tmp_path


@pytest.fixture
def build(cli, files):
    def build(*names, info="info.csv"):
        annotations = json.dumps([str(files / f"{name}.json") for name in names])
        return cli("coco-captions", files / info, annotations, "--output", files / "out" / "nsd-captions-coco.csv")

    return build


def test_all_captions_of_each_image_in_nsds_order(build, files):
    assert build("train", "val")[0] == 0
    table = pd.read_csv(files / "out" / "nsd-captions-coco.csv")
    assert table.to_dict("list") == {
        "nsd_id": [0, 1, 2],
        "coco_id": [532481, 262145, 262146],
        "coco_split": ["val2017", "train2017", "train2017"],
        "caption": ["A man flies a kite.", "People shopping; an open market.", "A person skiing down a slope."],
        "captions": [
            "A man flies a kite.",
            "People shopping, an open market.;A crowd at stalls",
            "A person skiing down a slope.",
        ],
    }


def test_it_is_what_language_features_read(build, files):
    build("train", "val")
    table = load_captions(files / "out" / "nsd-captions-coco.csv")
    assert table["stimulus_id"].tolist() == [0, 1, 2]
    assert table["caption"][1] == "People shopping; an open market.", "a semicolon inside a caption stays"


def test_a_missing_split_is_named(build, files):
    code, _, error = build("train")
    assert code == 2
    assert "no caption for the COCO images 532481" in error
    assert not (files / "out").exists()


def test_a_file_that_is_there_is_kept(build):
    build("train", "val")
    code, _, error = build("train", "val")
    assert code == 2
    assert "exists already" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has no column cocoId, cocoSplit, nsdId"),
        (STIM_INFO.replace("0.1,0,", "0.1,1,"), "a nsdId that occurs twice in line 2 (1), line 3 (1)"),
        (STIM_INFO.replace("0.1,0,", "0.1,3,"), "must count from 0, each number once"),
    ],
)
def test_wrong_stimulus_tables(build, files, content, message):
    (files / "info.csv").write_text(content)
    code, _, error = build("train", "val")
    assert code == 2
    assert message in error


@pytest.mark.parametrize("content", ['{"images": []}', "[1]", "{", '{"annotations": [{"image_id": 1}]}'])
def test_wrong_annotations(build, files, content):
    (files / "val.json").write_text(content)
    code, _, error = build("train", "val")
    assert code == 2
    assert "is not a file of COCO's captions" in error
