"""The check at the end of a run: what its precision rounded away, measured against timm and transformers."""

import numpy as np
import pytest
import timm
import torch
from helpers.language_models import save_captions, save_model
from helpers.runs import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_extract import CaptionDataModule, ImageFolderDataModule, LanguageExtractor, VisionExtractor, extract
from lit_extract.commands.predict import PredictCLI
from lit_extract.jobs.float32_check import choose_rows, compare
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.modules.precision import in_float32
from lit_extract.modules.weights import on_cpu_in_float32
from lit_extract.storage.features import load_features
from lit_extract.storage.layout import BAD_INPUT, OK
from lit_extract.storage.store import Store

NAME = "test_vit.r160_in1k"
LAYER_SCALE = {"init_values": 1e-5}  # as DINOv2 starts


@pytest.fixture
def predict(cli, image_folder, tmp_path):
    def run(*options):
        config = REPOSITORY / "configs" / "folder" / "vision.yaml"
        where = ("--data.root", image_folder, "--output_dir", tmp_path / "out", "--data.num_workers", 0)
        on = ("--trainer.accelerator", "cpu", "--trainer.devices", 1)
        return cli("predict", "--config", config, "--model.name", NAME, *on, *where, *options)

    return run


UNTRAINED = ("--model.untrained", "true", "--model.options", "{init_values: 1.0e-5}")
FILE = f"out/folder/all-untrained/{NAME}_pool-cls-untrained"


def test_bf16_that_erases_what_differs_is_a_warning_everywhere(predict, cli, tmp_path):
    code, said, _ = predict(*UNTRAINED, "--trainer.precision", "bf16-true")
    assert code == 3
    assert "warning: the rounding error of bf16-true is as large as the differences between stimuli" in said
    assert "--trainer.precision 32-true" in said
    assert "bf16-true, sees the middle 95 % × 95 % of a square picture (91 % of its area), resized to 160 × 160" in said
    file = tmp_path / f"{FILE}.pt"
    assert max(load_features(str(file)).metadata["notes"]["precision_check"]["pools"]["cls"]["of_differences"]) >= 1
    code, said, _ = predict(*UNTRAINED, "--trainer.precision", "bf16-true")
    assert code == 3
    assert "already done" in said
    assert "warning: the rounding error of bf16-true" in said
    _, said, _ = cli("show", file)
    assert "warning: the rounding error of bf16-true" in said
    _, said, _ = cli("verify", file)
    assert "warning: the rounding error of bf16-true" in said


def test_a_program_learns_of_it_too(image_folder, tmp_path):
    model = VisionExtractor(NAME, untrained=True, options={"init_values": 1e-5})
    trainer = predict_trainer("cpu", devices=1, precision="bf16-true")
    done = extract(model, ImageFolderDataModule(str(image_folder)), trainer, str(tmp_path / "out"))
    (warning,) = done.warnings
    assert warning.startswith(
        "the rounding error of bf16-true is as large as the differences between stimuli, in blocks."
    )


def test_an_untrained_model_runs_in_float32_unless_asked_otherwise(predict, tmp_path):
    code, said, _ = predict(*UNTRAINED)
    assert code == 0, said
    assert "(91 % of its area), resized to 160 × 160; no rounding beyond float32" in said
    features = load_features(str(tmp_path / f"{FILE}.pt"))
    assert features.provenance["precision"] == "32-true"
    check = features.metadata["notes"]["precision_check"]
    assert check["rows"] == list(range(7))
    assert max(check["pools"]["cls"]["relative_error"]) < 1e-5


def test_a_trained_model_keeps_the_precision_of_the_machine(monkeypatch, image_folder, tmp_path):
    monkeypatch.setattr("lit_extract.jobs.trainer.default_precision", lambda accelerator: "bf16-true")
    model = timm.create_model(NAME, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    arguments = ["--config", str(REPOSITORY / "configs/folder/vision.yaml"), "--data.root", str(image_folder)]
    arguments += ["--model.name", NAME, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    trained = PredictCLI([*arguments, "--model.checkpoint", str(tmp_path / "weights.pth")])
    assert trained.trainer.precision == "bf16-true"
    assert PredictCLI([*arguments, "--model.untrained", "true"]).trainer.precision == "32-true"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_error_noted_is_that_against_timm_in_float32(precision, image_folder, tmp_path):
    model = VisionExtractor(NAME, untrained=True, pool=["cls", "avg"])
    data = ImageFolderDataModule(root=str(image_folder), num_workers=0)
    done = extract(model, data, predict_trainer("cpu", 1, precision=precision), str(tmp_path))
    with on_cpu_in_float32(0):
        backbone = timm.create_model(NAME, pretrained=False).eval()
    if precision == "bf16-true":
        backbone = backbone.bfloat16().float()
    pixels = torch.cat([data.batches_of([[row]])[0]["image"] for row in range(7)]).float() / 255
    mean, std = (torch.tensor(model.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        blocks = backbone.forward_intermediates(
            (pixels - mean) / std, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
    for file in done.files:
        features = load_features(file)
        pool = features.provenance["pool"]
        pooled = [prefix[:, 0] if pool == "cls" else patches.mean(1) for patches, prefix in blocks]
        error = [float((features.layer(k) - layer).norm() / layer.norm()) for k, layer in enumerate(pooled)]
        assert min(error) > 1e-4
        noted = features.metadata["notes"]["precision_check"]["pools"][pool]
        np.testing.assert_allclose(noted["relative_error"], error, rtol=0.01)
        apart = [
            float((features.layer(k) - layer).norm() / (layer - layer.mean(0)).norm()) for k, layer in enumerate(pooled)
        ]
        np.testing.assert_allclose(noted["of_differences"], apart, rtol=0.01)


def test_the_error_noted_is_that_against_transformers_in_float32(tmp_path):
    folder, captions = tmp_path / "model", tmp_path / "captions.csv"
    save_model(folder, "llama")
    texts = save_captions(captions, [12, 11, 9])
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), pool="last")
    trainer = predict_trainer("cpu", 1, precision="bf16-true")
    features = load_features(
        extract(extractor, CaptionDataModule(str(captions), "test"), trainer, str(tmp_path)).files[0]
    )
    assert {parameter.dtype for parameter in extractor.model.parameters()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in texts
        ]
    noted = features.metadata["notes"]["precision_check"]["pools"]["last"]["relative_error"]
    for k in range(len(noted) - 1):  # the last hidden state comes after the final norm
        layer = torch.stack([hidden[k + 1][0, -1] for hidden in states])
        error = float((features.layer(k) - layer).norm() / layer.norm())
        assert error > 1e-4
        assert noted[k] == pytest.approx(error, rel=0.02)


def test_a_store_without_the_check_is_checked_by_the_next_run(run_job, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    (file,) = run_job(precision="bf16-true", output_dir=tmp_path / "other").files
    expected = load_features(file).metadata["notes"]["precision_check"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "note", full)
        (file,) = run_job(precision="bf16-true", keep_store=True).files
    assert "precision_check" not in load_features(file).metadata["notes"]
    file.unlink()
    (file,) = run_job(precision="bf16-true").files
    assert load_features(file).metadata["notes"]["precision_check"] == expected


def test_a_check_that_fails_loses_nothing(run_job, monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("lit_extract.jobs.float32_check.compute_again", fail)
    (file,) = run_job().files
    assert "the check of 32-true against float32 failed: OutOfMemoryError: no room" in caplog.messages
    assert load_features(file).metadata["notes"]["precision_check"]["failed"] == "OutOfMemoryError: no room"


def test_the_model_is_as_it_was_after_the_check():
    with on_cpu_in_float32(0):
        model = timm.create_model(NAME, pretrained=False).eval().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), in_float32(model):
        assert model(torch.zeros(1, 3, 160, 160)).dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_rows_are_spread_and_good():
    status = np.full(100, OK)
    status[0] = BAD_INPUT
    assert choose_rows(status) == [1, 15, 29, 43, 57, 71, 85, 99]
    assert choose_rows(np.full(3, BAD_INPUT)) == []


def test_equal_stimuli_give_no_verdict():
    again = np.full((3, 2, 4), 0.1, dtype=np.float32)
    assert compare(again + 1, again)["of_differences"] == [None, None]
    again[0, 1] = 0.2
    assert compare(again, again) == {"relative_error": [0.0, 0.0], "of_differences": [None, 0.0]}
