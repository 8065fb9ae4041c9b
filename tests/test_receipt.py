"""A job that is done says so without its packages; after any change that matters, predict looks itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from language_models import save_model

from lit_extract import hub, receipt
from lit_extract.cli import main
from lit_extract.errors import InputError
from lit_extract.receipt import Answer, Basis, HubRevision, files_below

MODEL = ("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--trainer.accelerator", "cpu")
ANSWER = Answer(["already done: x.pt", "  10 stimuli"], 3)
ARGS = ["--config", "settings.yaml", "--model.name", "x"]


@pytest.fixture
def receipts(tmp_path, monkeypatch):
    """Receipts are kept in a folder of this test, which begins now; the working directory is another."""
    for name in ("cache", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(receipt.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(receipt, "seconds_since_start", lambda: 1e-6)
    monkeypatch.setattr(receipt, "SECONDS_APART", 0.0)
    return tmp_path / "cache" / "lit-extract" / "finished"


@pytest.fixture
def done(receipts, tmp_path, monkeypatch):
    """A job that is done and has its receipt: settings that name others, weights, stimuli, a file, a commit."""
    work = tmp_path / "work"
    (work / "settings.yaml").write_text("model: model.yaml\ndata: {root: photographs}\n")
    (work / "model.yaml").write_text("name: x\n")
    for folder in ("weights/part", "photographs"):
        (work / folder).mkdir(parents=True)
    for file in ("weights/config.json", "weights/part/model.safetensors", "photographs/0.png", "x.pt"):
        (work / file).write_text(file)
    monkeypatch.setattr(hub, "hub_commit", lambda repository, revision, files: "a" * 40)
    time.sleep(0.02)  # a tick of the clock of the file system
    basis = Basis(
        ["models.yml", *files_below("weights")],
        ["photographs", "photographs/0.png"],
        [HubRevision("who/what", None, ["config.json"], "a" * 40)],
    )
    outputs = {file: receipt.state(file) for file in ("x.pt", "x.zarr")}
    receipt.leave(receipt.name_of(ARGS), ARGS, basis, outputs, ANSWER)
    assert receipt.find(receipt.name_of(ARGS)) == ANSWER
    return work


def rewrite_at_the_same_time(path):
    before = path.stat()
    path.write_text("?" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "settings": lambda work: (work / "settings.yaml").write_text("model: model.yaml"),
    "settings named in settings": lambda work: (work / "model.yaml").write_text("name: y\n"),
    "a models.yml that was not there": lambda work: (work / "models.yml").write_text("vision: []"),
    "weights": lambda work: (work / "weights/part/model.safetensors").write_text("other"),
    "one more file of weights": lambda work: (work / "weights/part/more.json").write_text("{}"),
    "a stimulus of the same size and time": lambda work: rewrite_at_the_same_time(work / "photographs/0.png"),
    "one more stimulus": lambda work: (work / "photographs/1.png").write_text("1"),
    "a stimulus that is gone": lambda work: (work / "photographs/0.png").unlink(),
    "stimuli exchanged as a whole": lambda work: (
        (work / "photographs").rename(work / "old"),
        (work / "photographs").mkdir(),
        (work / "photographs/0.png").write_text("photographs/0.png"),
    ),
    "features of the same size and time": lambda work: rewrite_at_the_same_time(work / "x.pt"),
    "features that are gone": lambda work: (work / "x.pt").unlink(),
    "a store": lambda work: (work / "x.zarr").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_predict_looks_itself_when_something_has_changed(done, change):
    change(done)
    assert receipt.find(receipt.name_of(ARGS)) is None


def test_what_has_nothing_to_do_with_it_may_change(done, monkeypatch):
    (done / "notes.txt").write_text("done")
    (done / "photographs/0.png").read_text()
    monkeypatch.setenv("EDITOR", "ed")
    assert receipt.find(receipt.name_of(ARGS)) == ANSWER


def test_another_command_folder_machine_package_code_or_environment_has_another_receipt(done, monkeypatch, tmp_path):
    names = {receipt.name_of(ARGS), receipt.name_of([*ARGS, "--model.pool", "avg"])}
    for variable in ("NSD_DATASET", "CUDA_VISIBLE_DEVICES", "HF_HUB_CACHE", "PYTHONPATH"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "/elsewhere")
            names.add(receipt.name_of(ARGS))
    with monkeypatch.context() as patch:
        patch.setattr(receipt, "_version", lambda package: "9.9" if package == "timm" else "1.0")
        names.add(receipt.name_of(ARGS))
    with monkeypatch.context() as patch:
        patch.setattr(receipt.platform, "node", lambda: "another")
        names.add(receipt.name_of(ARGS))
    with monkeypatch.context() as patch:
        patch.setattr(receipt, "__file__", str(tmp_path / "work" / "receipt.py"))
        names.add(receipt.name_of(ARGS))
    monkeypatch.chdir(tmp_path)
    names.add(receipt.name_of(ARGS))
    assert len(names) == 10
    assert None not in names


def test_a_branch_that_has_moved_on_is_asked_for(done, monkeypatch):
    monkeypatch.setattr(hub, "hub_commit", lambda repository, revision, files: "b" * 40)
    assert receipt.find(receipt.name_of(ARGS)) is None


def test_a_hub_that_knows_nothing_leaves_the_error_to_predict(done, monkeypatch):
    def refuse(repository, revision, files):
        raise InputError("no network")

    monkeypatch.setattr(hub, "hub_commit", refuse)
    assert receipt.find(receipt.name_of(ARGS)) is None


def test_a_pinned_commit_is_not_asked_for(receipts, monkeypatch):
    monkeypatch.setattr(hub, "hub_commit", lambda *_: pytest.fail("asked"))
    name, commit = receipt.name_of(ARGS), "c" * 40
    receipt.leave(name, ARGS, Basis([], hub=[HubRevision("who/what", commit, [], commit)]), {}, ANSWER)
    assert receipt.find(name) == ANSWER


@pytest.mark.parametrize("kept", ["*.json", "*.paths"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"states": 3}', "\0"])
def test_a_damaged_receipt_is_none(done, receipts, kept, text):
    [path] = receipts.glob(kept)
    path.write_text(text)
    assert receipt.find(receipt.name_of(ARGS)) is None


def test_what_changed_after_the_start_leaves_no_receipt(receipts, tmp_path, monkeypatch):
    monkeypatch.setattr(receipt, "seconds_since_start", lambda: 60.0)
    changed = tmp_path / "changed.csv"
    changed.write_text("a minute has not passed")
    for basis in (Basis([changed]), Basis([], [changed])):
        receipt.leave(receipt.name_of(ARGS), ARGS, basis, {}, ANSWER)
        assert receipt.find(receipt.name_of(ARGS)) is None
    receipt.leave(receipt.name_of(ARGS), ARGS, Basis([sys.executable]), {}, ANSWER)
    assert receipt.find(receipt.name_of(ARGS)) == ANSWER


def test_without_a_clock_of_the_process_there_is_no_receipt(receipts, monkeypatch):
    monkeypatch.setattr(receipt, "seconds_since_start", lambda: 0.0)
    receipt.leave(receipt.name_of(ARGS), ARGS, Basis([]), {}, ANSWER)
    assert receipt.find(receipt.name_of(ARGS)) is None


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        ([*ARGS, "--overwrite"], {}),
        ([*ARGS, "--overwrite=true"], {}),
        ([*ARGS, "--profile"], {}),
        (ARGS, {"WORLD_SIZE": "2"}),
        (ARGS, {"SLURM_NTASKS": "4"}),
        (ARGS, {"LIT_EXTRACT_RECEIPTS": "off"}),
    ],
)
def test_no_receipt_for(receipts, monkeypatch, args, environment):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert receipt.name_of(args) is None
    assert receipt.find(None) is None


def test_a_cache_that_can_not_be_written_is_no_error(receipts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    receipt.leave(receipt.name_of(ARGS), ARGS, Basis([]), {}, ANSWER)
    assert receipt.find(receipt.name_of(ARGS)) is None


def test_old_receipts_go(done, receipts):
    old = receipts / "old.json"
    old.write_text("{}")
    os.utime(old, (0, 0))
    receipt.leave(receipt.name_of(["y"]), ["y"], Basis([]), {}, ANSWER)
    assert not old.exists()
    assert receipt.find(receipt.name_of(ARGS)) == ANSWER


@pytest.fixture
def command(receipts, image_folder, tmp_path):
    """A predict command on seven images."""
    time.sleep(0.02)
    features = ("--output_dir", str(tmp_path / "features"), "--data.batch_size", "4")
    config = Path(__file__).parents[1] / "configs" / "folder" / "vision.yaml"
    return ["predict", "--config", str(config), *MODEL, "--data.root", str(image_folder), *features]


def test_a_finished_job_answers_without_torch(command, tmp_path, capsys):
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()[-3:]  # behind those of progress
    program = "import sys; from lit_extract.cli import main; code = main(sys.argv[1:]); print(*sorted(sys.modules)); "
    again = subprocess.run(
        [sys.executable, "-c", f"{program} sys.exit(code)", *command], capture_output=True, text=True, check=True
    )
    *lines, modules = again.stdout.splitlines()
    assert lines == [f"already done: {first[0]}", *first[1:]]
    assert not {"torch", "lightning", "numpy", "pandas", "yaml", "jsonargparse"} & set(modules.split())


def test_the_answer_is_that_of_predict(command, capsys, image_folder, monkeypatch):
    (image_folder / "3.png").write_bytes(b"no image")
    time.sleep(0.02)
    command += ["--data.on_bad_image", "skip"]
    assert main(command) == 3
    capsys.readouterr()
    answers = []
    for switch in ("on", "off"):
        monkeypatch.setenv(receipt.VARIABLE, switch)
        answers.append((main(command), capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0][0] == 3
    assert "1 rows could not be decoded" in answers[0][1]


def test_a_changed_image_is_refused_as_ever(command, capsys, image_folder):
    assert main(command) == 0
    assert main(command) == 0
    (image_folder / "3.png").write_bytes((image_folder / "3.png").read_bytes() + b"more")
    assert main(command) == 2
    assert "stimuli have changed" in capsys.readouterr().err


def test_an_unfinished_job_leaves_no_receipt(command, receipts):
    assert main([*command, "--finalize", "false"]) == 0
    assert not list(receipts.glob("*.json"))


def test_language_models_have_receipts_too(receipts, tmp_path, capsys, monkeypatch):
    model = tmp_path / "model"
    save_model(model, "llama")
    captions = tmp_path / "captions.csv"
    captions.write_text("nsd_id,caption\n0,a dog\n1,a cat on a mat\n")
    time.sleep(0.02)
    command = [
        *("predict", "--model", "LanguageExtractor", "--model.name", "tiny", "--model.checkpoint", str(model)),
        *("--data", "CaptionDataModule", "--data.captions", str(captions), "--data.prompt_name", "test"),
        *("--trainer.accelerator", "cpu", "--output_dir", str(tmp_path / "features")),
    ]
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()
    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.predict.main", lambda *_: pytest.fail("looked"))
        assert main(command) == 0
    assert f"already done: {first[-3]}" in capsys.readouterr().out
    captions.write_text("nsd_id,caption\n0,a dog\n1,a dog on a cat\n")
    assert main(command) == 2
    assert "tokens_sha256" in capsys.readouterr().err
