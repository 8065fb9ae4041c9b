"""Whole commands with a vision model of Transformers, and a run of it that is killed and resumed."""

import signal
from pathlib import Path

import pytest
from helpers import runs
from helpers.vision_families import FAMILIES, save

from lit_extract import load_dataset
from lit_extract.storage.features import load_features

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "vision.yaml"
CPU = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")


def settings(folder, *others):
    return "--model", "TransformersVisionExtractor", "--model.name", str(folder), *CPU, *others


@pytest.fixture
def tiny(tmp_path):
    save(tmp_path / "dinov3-tiny", *FAMILIES["DINOv3"][:2])
    return tmp_path / "dinov3-tiny"


def test_from_photographs_to_a_certificate(cli, tiny, tmp_path):
    out_dir = tmp_path / "out"
    job = ("--config", CONFIG, *settings(tiny), "--output_dir", out_dir, "--model.pool", "[cls, avg]")
    code, out, err = cli("plan", *job)
    assert (code, err) == (0, "")
    assert "3×32" in out
    assert "the whole picture, squashed to 32 × 32" in out
    assert "decoded images" not in out  # none are kept
    code, out, err = cli("predict", *job, "--data.num_workers", 2, "--data.cache", tmp_path / "cache")
    assert (code, err) == (0, "")
    assert "sees the whole picture, squashed to 32 × 32" in out
    assert not (tmp_path / "cache").exists()
    files = sorted((out_dir / "demo" / "all").glob("*.pt"))
    assert [file.name for file in files] == [f"dinov3-tiny_pool-{pool}.pt" for pool in ("avg", "cls")]
    for file in files:
        features = load_features(file)
        assert features.stimulus_ids == load_dataset("demo")["stimulus_id"].tolist()
        assert len(features.layer(-1).unique(dim=0)) == 24
        code, out, _ = cli("verify", file, "--parity", 4, "--checkpoint", tiny)
        assert code == 0, out
    code, out, _ = cli("status", out_dir)
    assert code == 0
    assert "dinov3-tiny" in out
    code, out, _ = cli("show", files[0])
    assert "'image_processor': 'DINOv3ViTImageProcessor', 'backend': 'torchvision'" in out
    code, out, err = cli("report", files[0].parent, "--out", tmp_path / "report", "--permutations", 2)
    assert (code, err) == (0, "")
    assert "already done" in cli("predict", *job)[1]


def test_other_settings_of_the_processor_are_other_features(cli, tmp_path):
    """What was saved as a processor is compared when a run is resumed, as all that determines the numbers."""
    folder = tmp_path / "tiny"
    save(folder, *FAMILIES["ViT"][:2])
    job = ("--config", CONFIG, *settings(folder), "--output_dir", tmp_path / "out")
    assert cli("predict", *job)[0] == 0
    code, _, err = cli("predict", *job, "--model.backend", "pil")
    assert code == 2
    assert "preprocessing.backend was 'torchvision', now 'pil'" in err


def test_an_image_that_is_skipped(cli, tiny, image_folder, tmp_path):
    (image_folder / "2.png").write_bytes(b"no image")
    config = CONFIG.parents[1] / "folder" / "vision.yaml"
    where = ("--data.root", image_folder, "--output_dir", tmp_path / "out", "--data.on_bad_image", "skip")
    code, out, _ = cli("predict", "--config", config, *settings(tiny), *where)
    assert code == 3
    assert "1 row could not be decoded" in out
    (file,) = (tmp_path / "out").rglob("*.pt")
    features = load_features(file)
    assert features.layer(0).isnan().any(dim=1).tolist() == [row == 2 for row in range(7)]


@pytest.mark.slow
def test_killed_and_resumed(tiny, tmp_path):
    images = runs.write_images(tmp_path / "images", 1500)
    config = CONFIG.parents[1] / "folder" / "vision.yaml"

    def run(output, *others):
        where = ("--data.root", str(images), "--output_dir", str(output), "--trainer.devices", "1")
        job = ("predict", "--config", str(config), *settings(tiny), *runs.SMALL_SHARDS, *where, *others)
        return runs.command(output.with_suffix(f".{len(others)}.log"), *job)

    with run(tmp_path / "undisturbed", "--data.num_workers", "0") as undisturbed:
        assert undisturbed.wait() == 0, undisturbed.output
    name = Path("folder", "all", "dinov3-tiny_pool-cls.pt")
    store = (tmp_path / "out" / name).with_suffix(".zarr")
    with run(tmp_path / "out") as killed:
        assert killed.wait_until(lambda: len([*store.glob("cls/c/*/0/0")]) >= 2), killed.output
        killed.signal_all(signal.SIGKILL)
        killed.wait()
    done = len([*store.glob("cls/c/*/0/0")])
    assert 2 <= done < 24
    with run(tmp_path / "out", "--data.num_workers", "1") as resumed:
        assert resumed.wait() == 0, resumed.output
        assert f"{done} of 24 shards done" in resumed.output
    runs.assert_same_features(tmp_path / "out" / name, tmp_path / "undisturbed" / name)
