"""Whole runs whose blocks come from disk: the bytes of ordinary ones, also killed and resumed, and of two ranks."""

import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from helpers import runs
from helpers.language_models import save_captions, save_in_parts

from lit_extract.storage.rounding import NOTE

pytestmark = pytest.mark.slow

N_CAPTIONS, SHARD_ROWS, N_SHARDS = 240, 20, 12
POOLS = ("avg", "last")
TOKENS_A_PASS = "700"  # of four shards, so that there are three passes
STREAM = ("--model.stream", "true")
TWO_RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
# Of each family: precision, and further settings.
FAMILIES = {
    "llama": ("32-true", ()),
    "bloom": ("32-true", ("--model.layers", "hidden_states")),
    "gemma2": ("bf16-true", ("--model.layers", "hidden_states")),
    "gpt2": ("bf16-true", ("--model.exclude_bos", "first")),
    "mixtral": ("bf16-true", ()),
    "olmo2": ("32-true", ("--model.layers", "[0, 1]")),
}


def predict(folder, output, *options, family="llama", script=None):
    precision, settings = FAMILIES[family]
    config = runs.REPOSITORY / "configs" / "nsd" / "language.yaml"
    model = ("--model.name", "tiny", "--model.checkpoint", str(folder / family), "--model.loss", "true")
    model = (*model, "--model.pool", f"[{', '.join(POOLS)}]", *settings)
    captions = ("--data.captions", str(folder / "captions.csv"), "--data.prompt_name", "test", "--data.subset", "first")
    plan = ("--data.shard_rows", str(SHARD_ROWS), "--data.token_budget", "160")
    trainer = ("--trainer.accelerator", "cpu", "--trainer.precision", precision)
    command = ("predict", "--config", str(config), *model, *captions, *plan, *trainer, "--output_dir", str(output))
    if script is None:
        return [*command, *options]
    log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
    return runs.slow(log, *command, *options, **{"TOKENS_A_PASS": TOKENS_A_PASS, **script})


def complete(folder, output, *options, family="llama", **script):
    with predict(folder, output, *options, family=family, script=script) as run:
        assert run.wait() == 0, run.output
        return run.output


def file_of(output, pool="avg"):
    return output / "nsd" / "first" / f"tiny_pool-{pool}_prompt-test.pt"


def done_shards(output):
    return {int(file.parts[-3]) for file in output.glob("nsd/first/*.zarr/last/c/*/0/0")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Models and captions, and a function that gives the features of an ordinary run."""
    folder = tmp_path_factory.mktemp("reference")
    save_captions(folder / "captions.csv", [1 + (7 * k) % 19 for k in range(N_CAPTIONS)])

    def features(family):
        output = folder / f"features-{family}"
        if not output.exists():
            save_in_parts(folder / family, family)
            assert "stay on disk" not in complete(folder, output, "--model.stream", "false", family=family)
        return output

    features("llama")
    return folder, features


def assert_same(output, expected_in):
    for pool in POOLS:
        file, undisturbed = file_of(output, pool), file_of(expected_in, pool)
        runs.assert_same_features(file, undisturbed)
        found, expected = (torch.load(path, weights_only=True) for path in (file, undisturbed))
        for name in ("mask", "row_loss", "row_bpb"):
            assert found[name].numpy().tobytes() == expected[name].numpy().tobytes(), name
        assert (found["loss"], found["bpb"]) == (expected["loss"], expected["bpb"])
        checks = [content["metadata"]["notes"][NOTE] for content in (found, expected)]
        assert checks[0] == checks[1]
        assert "failed" not in checks[0]
        assert len(checks[0]["rows"]) == 8


@pytest.mark.parametrize(
    "family", ["mixtral", *(pytest.param(name, marks=pytest.mark.long) for name in FAMILIES if name != "mixtral")]
)
def test_every_family_gives_the_bytes_of_an_ordinary_run(reference, tmp_path, family):
    folder, features = reference
    expected = features(family)
    assert "stay on disk" in complete(folder, tmp_path / "features", *STREAM, family=family)
    assert_same(tmp_path / "features", expected)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(STREAM, STREAM, id="streamed", marks=pytest.mark.long),
        pytest.param(STREAM, (), id="then not"),
        pytest.param((), STREAM, id="not at first", marks=pytest.mark.long),
    ],
)
def test_killed_in_the_middle_of_a_pass_and_resumed(reference, tmp_path, first, then):
    folder, features = reference
    output = tmp_path / "features"
    slow = {"SLOW_BLOCK": "0.2"} if first else {"SLOW_BLOCK": "0"}
    with predict(folder, output, *first, script=slow) as run:
        assert run.wait_until(lambda: len(done_shards(output)) >= 3), run.output
        if first:
            printed = run.output.count("block 1\n")
            assert run.wait_until(lambda: run.output.count("block 1\n") > printed), run.output
        run.signal_all(signal.SIGKILL)
        run.wait()
    done = done_shards(output)
    assert 3 <= len(done) < N_SHARDS
    said = complete(folder, output, *then)
    assert f"{len(done)} of {N_SHARDS} shards done, {N_SHARDS - len(done)} left" in said
    assert_same(output, features("llama"))


@pytest.mark.long
def test_asked_to_stop_it_gives_up_a_long_pass(reference, tmp_path):
    folder, features = reference
    output = tmp_path / "features"
    with predict(folder, output, *STREAM, script={"SLOW_BLOCK": "0.7"}) as run:
        assert run.wait_until(lambda: len(done_shards(output)) >= 4), run.output
        printed = run.output.count("block 0\n")
        assert run.wait_until(lambda: run.output.count("block 0\n") > printed), run.output
        before, since = done_shards(output), time.monotonic()  # the pass before may still be written
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - since < 40
    assert "Traceback" not in run.output
    done = done_shards(output)
    assert len(before) <= len(done) < N_SHARDS
    assert f"{len(done)} of {N_SHARDS} shards are done; run the same command again to resume" in run.output
    complete(folder, output, *STREAM)
    assert_same(output, features("llama"))


def test_two_ranks(reference, tmp_path):
    folder, features = reference
    said = complete(folder, tmp_path / "features", *STREAM, *TWO_RANKS)
    assert "(2 ranks): 240 of 240 captions" in said
    assert_same(tmp_path / "features", features("llama"))


def test_weights_that_lose_their_end_are_one_error_and_the_run_is_resumed(reference, tmp_path):
    folder, features = reference
    features("llama")
    copy, output = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "features"
    (file,) = [path for path in (copy / "llama").glob("*.safetensors") if b"layers.2.mlp.up_proj" in path.read_bytes()]
    whole = file.read_bytes()
    with predict(copy, output, *STREAM, script={"SLOW_BLOCK": "0.2"}) as run:
        assert run.wait_until(lambda: len(done_shards(output)) >= 4), run.output
        os.truncate(file, 5_000)
        assert run.wait() == 2
    (error,) = [line for line in run.output.splitlines() if "model.stream" in line]
    assert f"weights can't be read from {file}: the file ends too early" in error
    assert "Traceback" not in run.output
    done = done_shards(output)
    assert 4 <= len(done) < N_SHARDS
    file.write_bytes(whole)
    assert f"{len(done)} of {N_SHARDS} shards done" in complete(copy, output, *STREAM)
    assert_same(output, features("llama"))


@pytest.mark.long
def test_images(tmp_path):
    images = runs.write_images(tmp_path / "images", 150)
    settings = ("--model.pool", "[cls, avg]", "--model.layers", "[blocks, norm]", *runs.ONE_RANK)
    runs.complete(images, tmp_path / "ordinary", *settings)
    with runs.slow_predict(images, tmp_path / "streamed", *settings, *STREAM, TOKENS_A_PASS="7000") as run:
        assert run.wait() == 0, run.output
    for pool in ("cls", "avg"):
        runs.assert_same_features(*(runs.features_file(tmp_path / name, pool) for name in ("streamed", "ordinary")))


@pytest.mark.long
def test_a_terminal_shows_the_blocks_of_a_pass(reference, tmp_path):
    folder, _ = reference
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # else it is as wide as nothing
    command = predict(folder, tmp_path / "features", *STREAM)
    script = str(runs.REPOSITORY / "tests" / "helpers" / "slow_predict.py")
    environment = {"PYTHONPATH": str(runs.REPOSITORY), "TOKENS_A_PASS": TOKENS_A_PASS, "SLOW_BLOCK": "0.1"}
    environment = {**os.environ, **runs.ENVIRONMENT, **environment}
    with subprocess.Popen(
        [sys.executable, script, *command], stdout=subprocess.DEVNULL, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(main_end, 4096):
                shown += part
        except OSError:  # how Linux tells that the other end is closed
            pass
        assert process.wait() == 0
    os.close(main_end)
    bars = [bar for bar in shown.decode().split("\r") if "block 2 of 3" in bar]
    assert bars, shown.decode()
    assert all("captions/s" in bar for bar in bars), bars
    assert "written" in bars[-1], bars  # by the pass before
    print("\n".join(bars))
