"""Variants of one model side by side, by a tag in the names of files; the first stimuli, as a subset of their own."""

import json
from pathlib import Path

import pytest
import torch
from helpers.language_models import save_model

from lit_extract import DemoDataModule, ImageSourceDataModule, load_dataset, load_features
from lit_extract.commands.predict import answer_if_done
from lit_extract.common.errors import InputError
from lit_extract.data.captions import CaptionDataModule

IMAGES = ("--config", "demo/vision", "--model.name", "test_vit.r160_in1k", "--model.untrained", "true")
CAPTIONS = "derivatives/captions/demo-captions-handwritten.csv"
ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")


@pytest.fixture
def predict(cli, tmp_path):
    """A function that runs a command line on the demo; it returns exit code and what was printed."""

    def run(*options, command="predict"):
        given = [*IMAGES, *ON_CPU, "--data.num_workers", "0", "--output_dir", str(tmp_path / "out"), *options]
        return cli(command, *given)

    return run


def files(tmp_path):
    return sorted(path.relative_to(tmp_path / "out" / "demo").as_posix() for path in tmp_path.glob("out/demo/*/*.pt"))


def test_variants_stand_side_by_side_and_the_clash_suggests_it(run_job, tmp_path):
    (first,) = run_job().files
    with pytest.raises(InputError, match=r"layers had 6 entries, now 2\. To keep both, name this run with --tag"):
        run_job(layers=[0, 1])
    extraction = run_job(layers=[0, 1], tag="two.0+")
    assert extraction.files == [first.with_name("test_vit.r160_in1k_pool-cls_tag-two.0+-untrained.pt")]
    found, whole = load_features(extraction.files[0]), load_features(first)
    assert found.layers == ["blocks.0", "blocks.1"]
    assert torch.equal(found.feats, whole.feats[:, :2])
    assert found.metadata["notes"]["tag"] == "two.0+"
    assert "tag" not in found.provenance
    assert "tag" not in whole.metadata["notes"]
    assert run_job(layers=[0, 1], tag="two.0+").was_done
    with pytest.raises(InputError, match="layers had 2 entries, now 6"):
        run_job(tag="two.0+")


def test_a_store_under_other_settings_suggests_a_tag_too(run_job):
    run_job(finalize=False)
    with pytest.raises(InputError, match=r"was started with other settings: seed was 0, now 1\..* --tag NAME"):
        run_job(seed=1)
    assert run_job(seed=1, tag="other").files


@pytest.mark.parametrize("tag", ["", "a/b", "../x", ".x", "_x", "a b", "é", "x" * 250])
def test_a_tag_names_files(run_job, tag, tmp_path):
    with pytest.raises(InputError, match=r"tag: .* names files|makes a file name of .* and tag"):
        run_job(tag=tag)
    assert not (tmp_path / "out").exists()


def test_commands_know_tags(predict, cli, tmp_path):
    assert predict("--tag", "a", "--data.limit", "3")[0] == 0
    assert files(tmp_path) == ["first3-untrained/test_vit.r160_in1k_pool-cls_tag-a-untrained.pt"]
    given = [*IMAGES, *ON_CPU, "--output_dir", str(tmp_path / "out"), "--data.limit", "3"]
    assert answer_if_done([*given, "--tag", "a"]).state == "already done"
    assert answer_if_done(given) is None
    left = [
        json.loads(predict(*options, "--data.limit", "3", "--json", command="plan")[1])
        for options in (["--tag", "a"], [])
    ]
    assert [plan["models"][0]["rows"] for plan in left] == [3, 3]
    assert left[0]["models"][0]["disk_left"] == 0 < left[1]["models"][0]["disk_left"]
    assert predict("--data.limit", "3")[0] == 0
    _, out, _ = cli("status", tmp_path / "out")
    assert out.splitlines()[1].split() == ["model", "pool", "tag", "state", "rows", "L×D", "size", "written"]
    status = json.loads(cli("status", tmp_path / "out", "--json")[1])
    assert sorted((entry["tag"] or "", entry["subset"]) for entry in status["entries"]) == [
        ("", "first3"),
        ("a", "first3"),
    ]
    assert status["missing"] == []


def test_captions_take_no_tag(cli, tmp_path):
    code, _, err = cli("predict", "--config", "demo/captions", "--model.base_url", "http://127.0.0.1:1", "--tag", "x",
                       "--output", tmp_path / "x.csv")  # fmt: skip
    assert code == 2
    assert "--tag: for features only" in err


def test_the_first_stimuli_are_a_subset_of_their_own_with_the_same_rows(predict, cli, tmp_path):
    assert predict("--data.limit", "5")[0] == predict()[0] == 0
    part, whole = (
        load_features(next(tmp_path.glob(f"out/demo/{subset}-untrained/*.pt"))) for subset in ("first5", "all")
    )
    assert part.stimulus_ids == whole.stimulus_ids[:5]
    torch.testing.assert_close(part.feats, whole.feats[:5])
    assert part.provenance["limit"] == 5
    assert "limit" not in whole.provenance
    code, out, _ = cli("verify", part.path, "--parity", "5")
    assert (code, "parity of 5 stimuli" in out) == (0, True)


def test_captions_have_the_first_stimuli_in_the_order_of_the_images(cli, tmp_path):
    save_model(tmp_path / "model", "llama")
    lines = Path(CAPTIONS).read_bytes().decode().split("\n")
    model = ("--config", "demo/language", "--model.name", "tiny", "--model.checkpoint", tmp_path / "model")

    def predict(rows, *options):
        (tmp_path / "own.csv").write_text("\n".join([lines[0], *(lines[1 + row] for row in rows), ""]), newline="")
        where = ("--data.captions", tmp_path / "own.csv", "--output_dir", tmp_path / "out")
        return cli("predict", *model, *ON_CPU, *where, *options)

    assert predict([20, 3, 0, 1, 2, 4], "--data.limit", "5")[0] == 0
    (file,) = tmp_path.glob("out/demo/first5/*.pt")
    assert load_features(file).stimulus_ids == [0, 1, 2, 3, 4]
    code, _, err = predict([20, 3, 0, 1, 4], "--data.limit", "5", "--tag", "x")
    assert (code, "has no caption for 1 of 5 stimuli of demo: 2" in err) == (2, True)
    assert predict([20, 3, 0, 1, 4], "--data.limit", "4", "--data.subset", "mine")[0] == 0
    (file,) = tmp_path.glob("out/demo/mine/*.pt")
    assert load_features(file).stimulus_ids == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("settings", "subset"),
    [
        ({}, "all"),
        ({"limit": 5}, "first5"),
        ({"limit": 5, "subset": "pilot"}, "pilot"),
        ({"limit": 5, "subset": "even", "query": "demo_id % 2 == 0"}, "even-first5"),
    ],
)
def test_a_limit_names_its_subset(settings, subset):
    assert DemoDataModule(**settings).subset == subset
    assert CaptionDataModule(CAPTIONS, "x", "demo", **settings).subset == subset


def test_a_limit_comes_after_the_query():
    assert load_dataset("demo", query="demo_id % 2 == 1", limit=3)["stimulus_id"].tolist() == [1, 3, 5]
    assert load_dataset("demo", limit=24).attrs == load_dataset("demo").attrs
    assert len(ImageSourceDataModule("demo", limit=2).sources) == 2


@pytest.mark.parametrize("limit", [0, -1, 25])
def test_a_limit_that_there_is_not_is_refused(limit):
    with pytest.raises(InputError, match=rf"data\.limit: {limit}"):
        load_dataset("demo", limit=limit)
    with pytest.raises(InputError, match=rf"data\.limit: {limit}"):
        _ = DemoDataModule(limit=limit).stimuli


def test_a_limit_with_a_query_still_needs_a_name():
    with pytest.raises(InputError, match=r"name the chosen rows with --data\.subset NAME"):
        DemoDataModule(query="demo_id < 3", limit=2)


def test_features_of_a_sweep_say_so(run_job, monkeypatch):
    assert "sweep" not in load_features(run_job().files[0]).metadata["notes"]
    monkeypatch.setenv("LIT_EXTRACT_SWEEP", "1")
    assert load_features(run_job(tag="swept").files[0]).metadata["notes"]["sweep"] is True
