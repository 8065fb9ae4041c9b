"""What a forward pass will need, against what PyTorch's profiler sees it allocate; and how a GPU differs."""

import json
import os

import pytest
import runs
import torch
from language_models import CONFIGS, save_model
from test_memory import anonymous_memory
from torch.profiler import ProfilerActivity, profile

from lit_extract import LanguageExtractor, VisionExtractor
from lit_extract.memory import Forward, _has_fused_kernel, device_bytes, forward_bytes, host_bytes
from lit_extract.modules.weights import default_float32

MB = 2**20


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory):
    """A function that saves a model of an architecture, once; it returns the folder."""
    root = tmp_path_factory.mktemp("models")

    def save(architecture):
        if not (root / architecture).exists():
            save_model(root / architecture, architecture)
        return str(root / architecture)

    return save


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


def measured(model, batch, precision, file):
    """Weights and peak of a real forward pass of a loaded extractor."""
    inputs = {name: tensor.clone() for name, tensor in model.blank_inputs(*batch).items()}
    network = model.backbone if model.kind == "vision" else model.model
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    with default_float32(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        peak = allocated(lambda: model.activations(inputs), file)
    return weights, sum(tensor.nbytes for tensor in inputs.values()) + peak


@pytest.mark.parametrize(
    ("name", "rows", "precision"),
    [
        ("test_vit.r160_in1k", 64, "32-true"),
        ("vit_base_patch16_224.mae", 4, "32-true"),
        ("vit_base_patch16_224.mae", 4, "bf16-true"),
        ("vit_base_patch16_224.mae", 16, "bf16-mixed"),
        ("beit_base_patch16_224.in22k_ft_in22k", 2, "32-true"),
        ("eva02_tiny_patch14_224.mim_in22k", 4, "32-true"),
    ],
)
def test_images_need_what_is_estimated(tmp_path, name, rows, precision):
    """In bf16 a CPU's library also packs the factors of a product, a few MB, which is not counted."""
    model = VisionExtractor(name, untrained=True, pool=["cls", "avg"])
    model.configure_model()
    if precision == "bf16-true":
        model.backbone.to(torch.bfloat16)
    weights, activations = measured(model, (rows, 0), precision, tmp_path / "trace.json")
    del model
    estimate = forward_bytes(
        VisionExtractor(name, untrained=True, pool=["cls", "avg"]), rows, 0, precision, on_gpu=False
    )
    assert weights == pytest.approx(estimate.weights, rel=0.01)
    tolerance = 0.01 if precision == "32-true" else 0.1
    assert activations == pytest.approx(estimate.peak - estimate.weights, rel=tolerance)
    print(f"{name} {precision}: {(estimate.peak - estimate.weights) / activations - 1:+.2%}")


@pytest.mark.parametrize("settings", [{}, {"loss": True, "layers": "hidden_states"}], ids=["blocks", "loss"])
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_captions_need_what_is_estimated(tmp_path, language_folder, architecture, settings):
    def extractor():
        return LanguageExtractor("x", checkpoint=language_folder(architecture), pool=["avg", "last"], **settings)

    model = extractor()
    model.configure_model()
    _, activations = measured(model, (16, 100), "32-true", tmp_path / "trace.json")
    estimate = forward_bytes(extractor(), 16, 100, "32-true", on_gpu=False)
    assert activations == pytest.approx(estimate.peak - estimate.weights, rel=0.01)


def test_a_larger_llama_needs_what_is_estimated(tmp_path, monkeypatch):
    monkeypatch.setitem(
        CONFIGS,
        "larger",
        type(CONFIGS["llama"])(
            **{"vocab_size": 2000, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
            **{"intermediate_size": 1376, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2},
        ),
    )
    save_model(tmp_path / "model", "larger")
    model = LanguageExtractor("x", checkpoint=str(tmp_path / "model"), loss=True)
    model.configure_model()
    weights, activations = measured(model, (8, 64), "32-true", tmp_path / "trace.json")
    estimate = forward_bytes(
        LanguageExtractor("x", checkpoint=str(tmp_path / "model"), loss=True), 8, 64, "32-true", on_gpu=False
    )
    assert weights == pytest.approx(estimate.weights, rel=0.01)
    assert activations == pytest.approx(estimate.peak - estimate.weights, rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "precision", "holds_scores"),
    [
        ("llama", "bf16-true", False),
        ("llama", "32-true", True),
        ("phi", "32-true", False),
        ("gemma2", "bf16-true", True),
    ],
)
def test_on_a_gpu_scores_of_all_tokens_are_held_only_where_no_fused_kernel_runs(
    language_folder, architecture, precision, holds_scores
):
    """The same number of tokens in longer captions: only scores grow."""
    folder = language_folder(architecture)
    peaks = {
        tokens: forward_bytes(LanguageExtractor("x", checkpoint=folder), 6400 // tokens, tokens, precision, True).peak
        for tokens in (100, 1600)
    }
    scores = 4 * 4 * 1600**2 * (2 if precision == "bf16-true" else 4)  # rows, heads
    assert (peaks[1600] - peaks[100] > scores) == holds_scores
    assert (peaks[1600] < 1.1 * peaks[100]) == (not holds_scores)


@pytest.mark.parametrize(
    ("dtype", "width", "masked", "gqa", "fused"),
    [
        (torch.bfloat16, 64, False, False, True),
        (torch.bfloat16, 64, False, True, True),
        (torch.bfloat16, 64, True, False, True),
        (torch.bfloat16, 64, True, True, False),
        (torch.bfloat16, 260, True, False, False),
        (torch.float32, 64, False, False, True),
        (torch.float32, 64, False, True, False),
        (torch.float32, 66, False, False, False),
    ],
)
def test_fused_kernels(dtype, width, masked, gqa, fused):
    query = torch.empty(1, 2, 3, width, dtype=dtype, device="meta")
    mask = torch.empty(3, 3, device="meta") if masked else None
    assert _has_fused_kernel(query, query, query, mask, enable_gqa=gqa) == fused


def test_half_of_the_precision_is_half_of_the_weights():
    weights = {
        precision: forward_bytes(VisionExtractor("test_vit.r160_in1k"), 2, 0, precision, True).weights
        for precision in ("32-true", "bf16-true", "bf16-mixed")
    }
    n_bytes = 4 * VisionExtractor("test_vit.r160_in1k").num_params
    assert weights["32-true"] == weights["bf16-mixed"] == pytest.approx(n_bytes, rel=0.02)
    assert weights["bf16-true"] == pytest.approx(n_bytes / 2, rel=0.03)


def test_memory_of_the_device_has_room_for_the_context_and_the_allocator():
    assert device_bytes(Forward(weights=1, peak=10 * 10**9)) == 11.6 * 10**9


@pytest.mark.parametrize(
    ("untrained", "on_gpu", "expected"),
    [(True, True, 4), (False, True, 8), (True, False, 100), (False, False, 100)],
)
def test_the_host_holds_weights_while_they_are_loaded_or_the_run(untrained, on_gpu, expected):
    """Of a model of 10⁹ parameters: expected in GB beside the process."""
    model = VisionExtractor("test_vit.r160_in1k", untrained=untrained)
    model.num_params = 10**9
    process = 0.7 * 10**9 + on_gpu * 10**9 + 2 * 0.15 * 10**9
    forward = Forward(weights=4 * 10**9, peak=100 * 10**9)
    assert host_bytes(model, forward, on_gpu, 0, 0, 2) == pytest.approx(process + expected * 10**9)


@pytest.mark.slow
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
            peak = max(peak, anonymous_memory(run.process.pid))
            os.sched_yield()
        assert run.wait() == 0, run.output
    print(f"{precision}: estimated {estimate / MB:.0f} MB, measured {peak / MB:.0f} MB")
    assert estimate == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_an_estimate_leaves_a_language_model_as_it_was(language_folder, architecture):
    """Before its weights are loaded, and after."""
    make = lambda: LanguageExtractor("x", checkpoint=language_folder(architecture), loss=True)  # noqa: E731
    tokens = torch.arange(24).reshape(3, 8) + 3
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "n_bytes": tokens[:, 0]}
    untouched, model = make(), make()
    before = forward_bytes(model, 3, 8, "32-true", on_gpu=True)
    untouched.configure_model()
    model.configure_model()
    loaded = model.model
    for _ in range(2):
        expected, found = untouched.activations(inputs), model.activations(inputs)
        assert {name: values.tolist() for name, values in found.items()} == {
            name: values.tolist() for name, values in expected.items()
        }
        assert forward_bytes(model, 3, 8, "32-true", on_gpu=True) == before
        assert model.model is loaded


def test_an_estimate_leaves_a_vision_model_as_it_was():
    model = VisionExtractor("test_vit.r160_in1k", untrained=True)
    model.configure_model()
    before = model.backbone
    inputs = model.blank_inputs(2, 0)
    expected = model.activations(inputs)["feats"]
    forward_bytes(model, 4, 0, "bf16-true", on_gpu=True)
    assert model.backbone is before
    assert torch.equal(model.activations(inputs)["feats"], expected)


def test_weights_that_no_layer_needs_are_counted_as_they_are_loaded(language_folder):
    model = LanguageExtractor("x", checkpoint=language_folder("llama"), layers=[0])
    assert forward_bytes(model, 1, 3, "32-true", on_gpu=False).weights >= 4 * model.num_params
