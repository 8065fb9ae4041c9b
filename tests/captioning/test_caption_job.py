"""A captioning job through the command line, with an engine that answers at once."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from helpers.fake_engine import DiedError
from PIL import Image

from lit_extract.captioning.engines import Reply
from lit_extract.datasets import load_captions

EXPECTED = [f"An image of colour {20 * number}." for number in range(10)]


def test_rows_are_in_the_order_of_the_dataset_and_asked_a_shard_at_a_time(caption, engine):
    output, code, printed, _ = caption()
    assert code == 0
    assert f"{output}\n  10 of 10 images have a caption\n" in printed
    table = pd.read_csv(output)
    assert table.columns.tolist() == ["path", "name", "caption", "model", "prompt"], "all is ok: no status"
    assert table["path"].tolist() == [f"{number:02d}.png" for number in range(10)]
    assert table["caption"].tolist() == EXPECTED
    assert set(table["model"]) == {"mistralai/Pixtral-12B-2409"}
    assert set(table["prompt"]) == {"caption"}
    assert [len(asked) for asked in engine.asked] == [4, 4, 2]
    assert not output.with_name("out.csv.parts").exists()


def test_captions_of_a_table_keep_its_ids(caption, images):
    table = images.parent / "table.csv"
    pd.DataFrame({"stimulus_id": [7, 3], "image": ["images/05.png", "images/01.png"]}).to_csv(table, index=False)
    output, code, *_ = caption("--data.dataset", "table", "--data.root", table)
    assert code == 0
    assert load_captions(output, dataset="table")["stimulus_id"].tolist() == [7, 3]


def test_parquet_by_suffix(caption, tmp_path):
    output, code, *_ = caption(output=tmp_path / "out.parquet")
    assert code == 0
    assert pd.read_parquet(output)["caption"].tolist() == EXPECTED


def test_a_finished_file_is_answered_at_once(caption, engine):
    caption()
    _, code, printed, _ = caption()
    assert (code, engine.started) == (0, 1)
    assert "already done: " in printed


def test_interrupted_and_resumed_asks_nothing_twice(caption, engine, tmp_path):
    reference, *_ = caption(output=tmp_path / "reference.csv")
    engine.asked.clear()
    engine.dies_after = 2
    with pytest.raises(DiedError):
        caption()
    engine.dies_after = None
    output, code, printed, _ = caption()
    assert code == 0
    assert f"resuming {output}: 8 images done, 2 left\n" in printed
    assert [name for asked in engine.asked for name in asked] == [f"{number:02d}.png" for number in range(10)]
    assert output.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize(("shard", "done"), [(0, 4), (1, 8)])
def test_asked_to_stop_it_finishes_the_shard_in_hand(caption, engine, monkeypatch, capsys, shard, done):
    ask = engine.ask

    def ask_and_be_asked(self, sources):
        if len(engine.asked) == shard:
            os.kill(os.getpid(), signal.SIGTERM)
        return ask(self, sources)

    monkeypatch.setattr(engine, "ask", ask_and_be_asked)
    with pytest.raises(SystemExit) as stop:
        caption()
    assert stop.value.code == 143
    message = f"stopped by SIGTERM: {done} of 10 images are done; run the same command again to resume\n"
    assert capsys.readouterr().err.endswith(message)
    monkeypatch.setattr(engine, "ask", ask)
    output, code, *_ = caption()
    assert code == 0
    assert [name for asked in engine.asked for name in asked] == [f"{number:02d}.png" for number in range(10)]
    assert pd.read_csv(output)["caption"].tolist() == EXPECTED
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_settings_are_refused_and_named(caption, engine):
    engine.dies_after = 1
    with pytest.raises(DiedError):
        caption()
    engine.dies_after = None
    _, code, _, error = caption("--model.temperature", "0.5", "--model.prompt", "What is to be seen?")
    assert code == 2
    assert "temperature was 0.0, now 0.5" in error
    assert "prompt_text was" in error
    output, code, *_ = caption("--model.temperature", "0.5", "--overwrite")
    assert code == 0
    assert pd.read_csv(output)["caption"].tolist() == EXPECTED


def test_a_run_that_did_nothing_binds_no_one(caption, engine):
    engine.dies_after = 0
    with pytest.raises(DiedError):
        caption()
    engine.dies_after = None
    output, code, *_ = caption("--model.prompt", "What is to be seen?")
    assert code == 0
    assert set(pd.read_csv(output)["prompt"]) == {"What is to be seen?"}


def test_a_file_of_someone_else_is_not_touched(caption, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    output, code, _, error = caption()
    assert (code, output.read_text()) == (2, "mine")
    assert "it is unknown how it was made" in error


def test_an_image_that_fails_now_and_then_is_tried_again(caption, engine):
    engine.failures = {"05.png": 2}
    output, code, *_ = caption()
    assert code == 0
    assert engine.asked[1:4] == [["04.png", "05.png", "06.png", "07.png"], ["05.png"], ["05.png"]]
    assert pd.read_csv(output)["caption"].tolist() == EXPECTED


def test_an_image_that_keeps_failing_is_recorded_and_the_next_run_does_only_it(caption, engine):
    engine.failures = {"05.png": 4}
    output, code, printed, _ = caption("--model.attempts", "2")
    assert code == 3
    assert "9 of 10 images have a caption\n  warning: 1 image failed" in printed
    assert "    05.png: it has a cold\n" in printed
    table = pd.read_csv(output, keep_default_na=False)
    assert table["status"].tolist() == [*["ok"] * 5, "failed: it has a cold", *["ok"] * 4]
    assert table["caption"][5] == ""

    engine.asked.clear()
    assert caption("--model.attempts", "2")[1] == 3
    assert engine.asked == [["05.png"], ["05.png"]]
    engine.asked.clear()
    assert caption("--model.attempts", "2")[1] == 0
    assert engine.asked == [["05.png"]]
    table = pd.read_csv(output)
    assert "status" not in table
    assert table["caption"].tolist() == EXPECTED


def test_broken_and_missing_images(caption, images, engine):
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[:40])
    output, code, printed, _ = caption()
    assert code == 3
    assert f"{images}/03.png" in printed.partition("    03.png: ")[2]
    (images / "03.png").write_bytes(whole)
    engine.asked.clear()
    assert caption()[1] == 0
    assert engine.asked == [["03.png"]]
    assert pd.read_csv(output)["caption"].tolist() == EXPECTED


def test_an_image_that_changed_after_it_was_captioned_is_named(caption, images, engine):
    engine.dies_after = 1
    with pytest.raises(DiedError):
        caption()
    engine.dies_after = None
    Image.effect_noise((80, 60), 50).save(images / "02.png")
    output, code, _, error = caption()
    assert code == 2
    assert f"stimuli have changed since '{output}' was written: 02.png" in error


def test_edits_are_not_written_over(caption, engine):
    engine.failures = {"05.png": 3}
    output, code, *_ = caption()
    assert code == 3
    edited = output.read_text(encoding="utf-8").replace("An image", "A picture")
    output.write_text(edited, encoding="utf-8")
    _, code, _, error = caption()
    assert (code, output.read_text(encoding="utf-8")) == (2, edited)
    assert "was edited since it was written" in error


def test_a_caption_that_was_cut_off_is_kept_and_counted(caption, engine):
    engine.reply = staticmethod(lambda source, pixels: Reply("An image of", None, source.stimulus == "01.png"))
    output, code, printed, _ = caption()
    assert code == 0
    assert "1 caption is cut off" in printed
    assert pd.read_csv(output)["status"].value_counts().to_dict() == {"ok": 9, "cut off": 1}


def test_a_reply_that_is_no_label_is_a_failure(caption, engine):
    engine.reply = staticmethod(lambda source, pixels: " static\n" if source.stimulus < "05" else "It is static.")
    output, code, *_ = caption("--model.prompt", "motion")
    assert code == 3
    table = pd.read_csv(output, keep_default_na=False)
    assert table["caption"].tolist() == ["static"] * 5 + [""] * 5
    assert "the reply 'It is static.' is not one of motion, static" in table["status"][5]


def test_the_sidecar_says_how_it_was_made(caption):
    output, *_ = caption()
    made = json.loads(output.with_name("out.csv.json").read_text(encoding="utf-8"))
    provenance = made["provenance"]
    assert provenance["prompt_text"].startswith("Describe this image in one plain English sentence")
    for key, value in {"temperature": 0.0, "seed": 0, "dataset": "folder", "n_stimuli": 10, "max_tokens": 128}.items():
        assert provenance[key] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "x.txt"), "output: 'x.txt' must end in .csv or .parquet"),
        (("--keep_store", "true"), "--keep_store: for features only"),
        (("--trainer.devices", "2"), "trainer.devices: captioning needs one process, not 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(caption, engine, options, message):
    *_, code, _, error = caption(*options)
    assert code == 2
    assert message in error
    assert engine.started == 0


def test_output_is_needed_for_captions_and_refused_for_features(cli, engine, images):
    code, _, error = cli("predict", "--config", "configs/folder/captions.yaml", "--data.root", images)
    assert code == 2
    assert "give --output FILE.csv or FILE.parquet" in error
    vision = ("predict", "--config", "configs/folder/vision.yaml", "--data.root", images, "--model.untrained", "true")
    code, _, error = cli(*vision, "--model.name", "test_vit.r160_in1k", "--output", "x.csv")
    assert code == 2
    assert "--output: for captions only" in error


def _another(path):
    """Another image of the same size, at another time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_that_changed_since_it_was_captioned_is_named_though_its_size_is_the_same(
    caption, engine, images, finished
):
    engine.failures = {} if finished else {"09.png": 99}
    output, *_ = caption()
    before = output.read_bytes()
    _another(images / "02.png")
    _, code, _, error = caption()
    assert code == 2
    assert f"stimuli have changed since '{output}' was written: 02.png. Restore the files" in error
    assert output.read_bytes() == before


def test_images_that_were_only_copied_are_the_same_and_a_finished_file_is_answered(caption, engine, images):
    caption()
    for path in images.iterdir():
        os.utime(path, ns=(1, 1))
    _, code, printed, _ = caption()
    assert (code, engine.started) == (0, 1)
    assert "comparing the content of 10 stimuli" in printed
    assert "already done: " in printed


def test_a_sidecar_of_an_earlier_version_still_answers(caption, engine, images):
    output, *_ = caption()
    sidecar = output.with_name("out.csv.json")
    content = json.loads(sidecar.read_text())
    del content["inputs"], content["exif_rotations"]
    sidecar.write_text(json.dumps(content))
    _another(images / "02.png")
    _, code, printed, _ = caption()
    assert (code, engine.started) == (0, 1)
    assert "already done: " in printed


def test_exif_rotations_are_counted(caption, images):
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("01.png", "04.png"):
        Image.new("RGB", (8, 6), (20 * int(name[:2]),) * 3).save(images / name, exif=exif)
    for _ in range(2):
        output, code, printed, _ = caption()
        assert code == 0
        assert printed.count("  2 images have an EXIF rotation, which is not applied\n") == 1
    assert json.loads(output.with_name("out.csv.json").read_text())["exif_rotations"] == 2


def test_damaged_parts_and_sidecars_are_one_error(caption, engine):
    engine.dies_after = 1
    with pytest.raises(DiedError):
        caption()
    engine.dies_after = None
    output = Path(caption("--model.prompt", "no-such-prompt")[0])
    part = output.with_name("out.csv.parts") / "00000.jsonl"
    sidecar = output.with_name("out.csv.json")
    for file in (part, sidecar):
        content = file.read_bytes()
        for damaged in (content.replace(b'"', b"", 1), b"[" * 10**5, b"\xff", content[: len(content) // 2]):
            file.write_bytes(damaged)
            _, code, _, error = caption()
            assert code == 2
            assert f"{file.name}' is damaged" in error
            assert error.count("\n") == 1
        file.write_bytes(content)
    assert caption()[1] == 0
