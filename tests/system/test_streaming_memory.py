"""A model in a quarter of its memory: a kernel's limit, the bytes of an ordinary run, and no more for more blocks."""

import json
import os
import time

import pytest
import torch
import transformers
from helpers import runs
from helpers.language_models import VOCABULARY, save_captions, save_tokenizer
from helpers.memory_limit import memory_limit
from safetensors.torch import save_file

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MB = 2**20
N_BLOCKS, WIDTH, BETWEEN = 80, 1024, 3072  # 55 MB a block, 4.4 GB in all: a process without a model takes 0.6
BLOCKS_A_FILE = 8
MATRICES = {f"self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
MATRICES |= {f"mlp.{name}_proj.weight": (BETWEEN, WIDTH) for name in ("gate", "up")}
MATRICES |= {"mlp.down_proj.weight": (WIDTH, BETWEEN)}
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def write_model(folder):
    """Random weights in float32, a few blocks at a time; each matrix is another part of the same numbers."""
    folder.mkdir()
    numbers = torch.randn(WIDTH * BETWEEN + N_BLOCKS * len(MATRICES), generator=torch.Generator().manual_seed(0))
    index = {}

    def write(name, tensors):
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    outside = {"model.embed_tokens.weight": 1.0, "lm_head.weight": 0.02}
    outside = {name: numbers[: VOCABULARY * WIDTH].view(VOCABULARY, WIDTH) * by for name, by in outside.items()}
    write("outside.safetensors", {**outside, "model.norm.weight": torch.ones(WIDTH)})
    for first in range(0, N_BLOCKS, BLOCKS_A_FILE):
        tensors = {}
        for k in range(first, first + BLOCKS_A_FILE):
            for place, (name, shape) in enumerate(MATRICES.items(), k * len(MATRICES)):
                part = numbers[place : place + shape[0] * shape[1]]
                tensors[f"model.layers.{k}.{name}"] = part.view(shape) * 0.02
            tensors |= {f"model.layers.{k}.{name}": torch.ones(WIDTH) for name in NORMS}
        write(f"blocks-{first:03}.safetensors", tensors)
    write_rest(folder, N_BLOCKS, index)


def write_rest(folder, n_blocks, index):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=BETWEEN,
        num_hidden_layers=n_blocks,
        num_attention_heads=16,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    save_tokenizer(folder)
    weights = {name: file for name, file in index.items() if "layers" not in name or int(name.split(".")[2]) < n_blocks}
    for file in {*index.values()} - {*weights.values()}:
        (folder / file).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def halve(model, folder):
    """The same model with the first half of the blocks; its weights are those files."""
    folder.mkdir()
    for file in model.glob("*.safetensors"):
        os.link(file, folder / file.name)
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    write_rest(folder, N_BLOCKS // 2, index)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "model"
    write_model(folder)
    yield folder
    for file in folder.glob("*.safetensors"):
        file.unlink()


def forget(folder):
    """Have the system drop what it caches of the files: a limited process would read it without being charged."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def predict(folder, model, output, *options, prefix=()):
    """A run to its end; what it printed, and the most memory of its own that it had."""
    config = runs.REPOSITORY / "configs" / "nsd" / "language.yaml"
    forget(model)
    command = (
        *("-m", "lit_extract", "predict", "--config", str(config), "--model.name", "large"),
        *("--model.checkpoint", str(model), "--data.captions", str(folder / "captions.csv")),
        *("--data.prompt_name", "test", "--data.subset", "few", "--data.shard_rows", "6", "--data.token_budget", "64"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true"),
        *("--output_dir", str(output), *options),
    )
    peak = 0
    with runs.python(folder / f"{time.monotonic_ns()}.log", *command, prefix=prefix) as run:
        while not run.has_ended:
            peak = max(peak, runs.anonymous_memory(run.process.pid))
            time.sleep(0.02)
        assert run.wait() == 0, run.output
        return run.output, peak


def test_a_quarter_of_the_memory_is_enough_and_depth_takes_none(model, tmp_path):
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert size > 4e9
    save_captions(tmp_path / "captions.csv", [2 + k % 5 for k in range(24)])
    half = tmp_path / "half"
    halve(model, half)
    peaks = {}
    with memory_limit(size // 4) as prefix:
        for name, folder in (("half", half), ("whole", model)):
            said, peaks[name] = predict(tmp_path, folder, tmp_path / name, prefix=prefix)
            assert "stay on disk" in said
    said, peaks["ordinary"] = predict(tmp_path, model, tmp_path / "ordinary", "--model.stream", "false")
    assert "stay on disk" not in said
    print({name: f"{peak / MB:.0f} MB" for name, peak in peaks.items()})
    files = [tmp_path / name / "nsd" / "few" / "large_pool-avg_prompt-test.pt" for name in ("whole", "ordinary")]
    runs.assert_same_features(*files)
    assert peaks["whole"] < size / 4
    assert abs(peaks["whole"] / peaks["half"] - 1) < 0.15
    assert peaks["ordinary"] > size
