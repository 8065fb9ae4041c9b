"""Seconds by phase, and what is said of them."""

import time

from lit_extract.common.timing import PHASES, Stopwatch, seconds_since_start


def test_phases_add_up_and_the_rest_is_named():
    watch = Stopwatch()
    with watch("weights"):
        time.sleep(0.02)
    for _ in range(2):
        with watch("forward"):
            time.sleep(0.03)
        time.sleep(0.02)
    with watch("into the shard"):
        pass
    assert 0.06 <= watch.seconds["forward"] < watch.ended - watch.started
    first, *lines = watch.report()
    assert first.startswith("time: 0.0 s before the first batch (imports 0.0, settings 0.0, stimuli 0.0, weights 0.0)")
    assert [line[:18].strip() for line in lines] == [*PHASES, "all else", "writing"]
    shares = [int(line.split()[-1].rstrip("%")) for line in lines[:-1]]
    assert abs(sum(shares) - 100) <= len(shares)


def test_a_run_without_batches_is_reported_too():
    assert "then 0.0 s" in Stopwatch().report()[0]


def test_this_process_was_started_before_now():
    assert 0 < seconds_since_start() < 3600 * 24


def test_predict_says_where_its_time_went(cli, image_folder, tmp_path):
    code, said, _ = cli(
        *("predict", "--config", "configs/folder/vision.yaml", "--data.root", image_folder, "--output_dir", tmp_path),
        *("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--trainer.accelerator", "cpu"),
        "--profile",
    )
    assert code == 0
    report = said[said.index("time: ") :].splitlines()
    seconds = {line[:18].strip(): float(line[18:].split()[0]) for line in report[1:]}
    assert list(seconds) == [*PHASES, "all else", "writing"]
    whole = float(report[0].split("then ")[1].split()[0])
    assert abs(sum(list(seconds.values())[:-1]) - whole) < 0.5
