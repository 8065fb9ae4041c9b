"""What a run will need, in closed form, against what it then holds."""

import json
import os

import pytest
import torch
from helpers import runs
from helpers.language_models import CONFIGS, save_model
from torch.profiler import ProfilerActivity, profile

from lit_extract import LanguageExtractor, VisionExtractor
from lit_extract.modules.weights import default_float32
from lit_extract.planning.memory import device_bytes, estimate_forward, host_bytes

MB = 2**20


def allocated(run, file):
    """The most bytes at once that PyTorch's CPU allocator gave out during ``run``, by its own profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace, torch.inference_mode():
        run()
    trace.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event["name"] == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    assert peak > 0
    return peak


def compare(model, inputs, estimate, file):
    """See that weights are as estimated, and that activations are neither more nor half as many."""
    model.configure_model()
    weights = sum(tensor.nbytes for tensor in model.loaded.parameters())
    with default_float32():
        activations = allocated(lambda: model.activations(inputs), file)
    assert weights == pytest.approx(4 * model.num_params, rel=0.01)
    estimated = estimate - 4 * model.num_params
    print(f"{model.model_name}: estimated {estimated / MB:.1f} MB, allocated {activations / MB:.1f} MB")
    assert 0.5 * estimated < activations < 1.1 * estimated


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", 16),
        ("vit_base_patch16_224.mae", 8),
        ("beit_base_patch16_224.in22k_ft_in22k", 4),
        ("eva02_tiny_patch14_224.mim_in22k", 8),
        ("resnet50", 8),
        ("convnext_tiny", 8),
        ("swin_tiny_patch4_window7_224", 8),
        ("hiera_tiny_224", 8),
        ("efficientnet_b0", 8),
        ("regnety_016", 8),
    ],
)
def test_images_need_what_is_estimated(tmp_path, name, rows):
    model = VisionExtractor(name, untrained=True, pool="avg")
    images = torch.zeros(rows, *model.preprocessing["input_size"], dtype=torch.uint8)
    estimate = estimate_forward(model, rows, 0, "32-true", on_gpu=False)
    compare(model, {"image": images}, estimate, tmp_path / "trace.json")


def test_captions_need_what_is_estimated(tmp_path, monkeypatch):
    llama = type(CONFIGS["llama"])(
        **{"vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
        **{"intermediate_size": 1376, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2},
    )
    monkeypatch.setitem(CONFIGS, "larger", llama)
    save_model(tmp_path / "model", "larger")
    model = LanguageExtractor("x", checkpoint=str(tmp_path / "model"))
    tokens = torch.zeros(16, 64, dtype=torch.int64)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "n_bytes": tokens[:, 0]}
    inputs["pooled"] = inputs["attention_mask"].bool()
    compare(model, inputs, estimate_forward(model, 16, 64, "32-true", on_gpu=False), tmp_path / "trace.json")


def test_eager_attention_holds_the_scores_of_all_tokens(tmp_path):
    """The same number of tokens in longer captions."""
    for architecture, holds_scores in (("llama", False), ("gemma2", True)):
        save_model(tmp_path / architecture, architecture)
        model = LanguageExtractor("x", checkpoint=str(tmp_path / architecture))
        short, long = (estimate_forward(model, 6400 // n, n, "bf16-true", True) for n in (100, 1600))
        assert (long - short > 4 * 4 * 1600**2 * 2) == holds_scores  # rows, heads


def test_half_of_the_precision_is_half_of_the_activations_and_of_weights_that_have_it():
    model = VisionExtractor("test_vit.r160_in1k")
    full, mixed, half = (estimate_forward(model, 2, 0, name, True) for name in ("32-true", "bf16-mixed", "bf16-true"))
    assert full - mixed == 2 * 2 * model.numbers_a_row(0)
    assert mixed - half == 2 * model.num_params


def test_on_a_cpu_images_go_through_in_slices():
    model = VisionExtractor("test_vit.r160_in1k")
    on_cpu, on_gpu = (estimate_forward(model, 64, 0, "32-true", gpu) for gpu in (False, True))
    assert on_gpu - on_cpu == 48 * 4 * model.numbers_a_row(0)


def test_memory_of_the_device_has_room_for_the_context_and_the_allocator():
    assert device_bytes(10 * 10**9) == 11.6 * 10**9


@pytest.mark.parametrize(
    ("untrained", "on_gpu", "expected"),
    [(True, True, 4), (False, True, 8), (True, False, 100), (False, False, 100)],
)
def test_the_host_holds_weights_while_they_are_loaded_or_the_run(untrained, on_gpu, expected):
    """Of a model of 10⁹ parameters: expected in GB beside the process."""
    model = VisionExtractor("test_vit.r160_in1k", untrained=untrained)
    model.num_params = 10**9
    process = 0.7 * 10**9 + on_gpu * 10**9 + 2 * 0.15 * 10**9
    assert host_bytes(model, 100 * 10**9, on_gpu, 0, 0, 2) == pytest.approx(process + expected * 10**9)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_whole_run_on_a_cpu_holds_about_what_is_estimated(tmp_path, cli, precision):
    settings = (
        *("--config", "configs/demo/vision.yaml", "--model.name", "vit_base_patch16_224.mae"),
        *("--model.untrained", "true", "--trainer.accelerator", "cpu", "--trainer.precision", precision),
        *("--output_dir", str(tmp_path / "out")),
    )
    code, out, _ = cli("plan", *settings, "--json")
    assert code == 0
    estimate = json.loads(out)["models"][0]["host"]
    peak = 0
    with runs.command(tmp_path / "log", "predict", *settings) as run:
        while not run.has_ended:
            peak = max(peak, runs.anonymous_memory(run.process.pid))
            os.sched_yield()
        assert run.wait() == 0, run.output
    print(f"{precision}: estimated {estimate / MB:.0f} MB, measured {peak / MB:.0f} MB")
    assert estimate == pytest.approx(peak, rel=0.25)
