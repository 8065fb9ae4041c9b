"""Compiled blocks: compiled once, for blank inputs, with hooks outside; the same numbers, or a clear refusal.

Most tests put a backend in the place of inductor that counts and runs what was traced as it is.
"""

from contextlib import nullcontext

import pytest
import torch
from language_models import CONFIGS, save_model
from torch import nn

from lit_extract import ImageFolderDataModule, LanguageExtractor, VisionExtractor, extract
from lit_extract.errors import InputError
from lit_extract.memory import forward_bytes
from lit_extract.modules import compilation
from lit_extract.predict import predict_trainer

TINY = "test_vit.r160_in1k"
N_BLOCKS = 6


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that notes the sizes it compiles for, and how often what it made runs."""

    def __init__(self):
        self.compiled, self.runs = [], 0

    def __call__(self, graph, examples, **_options):
        sizes = (tuple(example.shape) for example in examples if isinstance(example, torch.Tensor))
        hidden = max((size for size in sizes if len(size) == 3), key=lambda size: size[2])  # BLOOM's alibi is one, too
        self.compiled.append(tuple(map(int, hidden[:2])))

        def run(*inputs):
            self.runs += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def backend(monkeypatch):
    backend = Counting()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    monkeypatch.setattr("lit_extract.modules.base.check_compiler", lambda device: None)
    return backend


@pytest.fixture
def compiler():
    try:
        compilation.check_compiler(torch.device("cpu"))
    except InputError as error:
        pytest.skip(str(error))


def vision(**settings):
    extractor = VisionExtractor(TINY, untrained=True, **settings).eval()
    extractor.configure_model()
    return extractor


@torch.inference_mode()
def features(extractor, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 160, 160), dtype=torch.uint8, generator=generator)
    batch = {"index": torch.arange(n), "image": images, "bad": torch.zeros(n, dtype=torch.bool)}
    return extractor.predict_step(batch)["feats"][extractor.pools[0]]


def language(folder, **settings):
    extractor = LanguageExtractor(str(folder), **settings).eval()
    extractor.configure_model()
    return extractor


@torch.inference_mode()
def activations(extractor, size):
    """Of random tokens (B, T), which are the same whenever they are asked for."""
    inputs = extractor.blank_inputs(*size)
    inputs["input_ids"] = torch.randint(3, 20, size, generator=torch.Generator().manual_seed(sum(size)))
    return extractor.one_pass(inputs)["feats"]


def test_images_one_compilation_a_number_of_rows_however_many_batches_and_hooks_come(backend):
    extractor, plain = vision(compile=True), vision()
    rows = [16, 16, 16, 5, 16, 40, 5]  # 40 go through in slices of 16, 16 and 8
    for seed, n in enumerate(rows):
        assert torch.equal(features(extractor, n, seed), features(plain, n, seed))
    assert backend.compiled == [(16, 101), (5, 101), (8, 101)]
    n_passes, n_blank = 9, 3 * 2
    assert backend.runs == N_BLOCKS * (n_passes + n_blank), "a block ran without its compiled code"


def test_the_pass_ends_in_the_hook_of_the_last_wanted_layer(backend):
    extractor = vision(compile=True, layers=[1, 0])
    assert torch.equal(features(extractor, 2), features(vision(layers=[1, 0]), 2))
    assert backend.runs == 2 * 3


SIZES = [(6, 20), (3, 40), (1, 33), (7, 7), (1, 20), (9, 1), (2, 100), (1, 1), (64, 16)]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of BLOOM's GELU, by torch
@pytest.mark.parametrize("architecture", CONFIGS)
def test_captions_what_is_compiled_does_not_depend_on_what_comes_first(architecture, tmp_path, backend):
    """Kernels are made for the sizes that are seen; were these the captions' own, last bits would be, too."""
    save_model(tmp_path, architecture)
    plain = language(tmp_path)
    for sizes in (SIZES, SIZES[::-1]):
        torch.compiler.reset()
        backend.compiled, backend.runs = [], 0
        extractor = language(tmp_path, compile=True)
        for size in sizes:
            assert torch.equal(activations(extractor, size), activations(plain, size))
        assert sorted(backend.compiled) == [(1, 1), (1, 20), (48, 1), (48, 20)]
        assert backend.runs == 3 * (len(SIZES) + 4 * 2), "a block ran without its compiled code"


def test_with_loss_and_all_hidden_states(tmp_path, backend):
    save_model(tmp_path, "llama")
    settings = {"layers": "hidden_states", "loss": True, "pool": ["avg", "last"], "exclude_bos": True}
    sizes = [(4, 9), (1, 5)]
    compiled, plain = language(tmp_path, compile=True, **settings), language(tmp_path, **settings)
    for size in sizes:
        assert torch.equal(activations(compiled, size), activations(plain, size))


def test_a_batch_that_nothing_compiled_serves_is_computed_without(tmp_path, backend):
    """From 4096 tokens on Mistral's blocks get a mask, here from 40 on."""
    config = CONFIGS["mistral"]
    config.sliding_window, before = 40, config.sliding_window
    try:
        save_model(tmp_path, "mistral")
    finally:
        config.sliding_window = before
    extractor, plain = language(tmp_path, compile=True), language(tmp_path)
    for size in [(3, 50), (3, 30), (3, 50)]:
        assert torch.equal(activations(extractor, size), activations(plain, size))
    assert backend.compiled == [(48, 20)]
    assert backend.runs == 3 * (2 + 1), "the batch that is served is not served any more"


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_run_and_another_of_the_same_extractor_in_other_settings(precision, tmp_path, image_folder, backend):
    extractor = VisionExtractor(TINY, untrained=True, compile=True)
    for run, first in enumerate(("32-true", precision)):
        before = backend.runs
        data = ImageFolderDataModule(root=str(image_folder), batch_size=4, num_workers=0)
        done = extract(extractor, data, predict_trainer("cpu", devices=1, precision=first), str(tmp_path / str(run)))
        assert done.bad_input_rows == []
        assert backend.runs - before == N_BLOCKS * (2 + 2 * 2)  # 4 and 3 images, and blank ones twice for each


def test_planning_compiles_nothing(tmp_path, backend):
    save_model(tmp_path, "llama")
    for extractor in (
        VisionExtractor(TINY, untrained=True, compile=True),
        LanguageExtractor(str(tmp_path), compile=True),
    ):
        assert forward_bytes(extractor, 4, 20, "bf16-true", on_gpu=False).peak > 0
    assert backend.compiled == []


def test_a_model_that_does_not_fit_the_memory_goes_on_in_parts(backend, monkeypatch):
    extractor = vision(compile=True)
    whole = extractor.activations

    def cramped(inputs):
        if len(inputs["image"]) > 2:
            raise torch.OutOfMemoryError
        return whole(inputs)

    monkeypatch.setattr(extractor, "activations", cramped)
    with pytest.warns(UserWarning, match="going on with smaller batches"):
        found = features(extractor, 4)
    assert torch.equal(found, features(vision(), 4))
    assert backend.compiled == [(2, 101)]


class WithGraphBreak(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


class OfOneSize(nn.Module):
    """Compiled for one number of tokens, it does not serve another."""

    def forward(self, x, *_args, **_kwargs):
        return x + int(x.shape[1]) if x.shape[1] == 20 else x


def test_blocks_that_can_not_be_compiled_are_refused(backend):
    extractor = VisionExtractor(TINY, untrained=True, compile=True).eval()
    blocks = extractor._create_backbone()
    blocks.blocks[2] = WithGraphBreak()
    extractor._create_backbone = lambda: blocks
    extractor.configure_model()
    with pytest.raises(InputError, match=rf"model\.compile: the blocks of '{TINY}' can't be compiled here: .*[Gg]raph"):
        features(extractor, 2)


def test_compiled_code_that_serves_one_length_only_is_refused(tmp_path, backend):
    save_model(tmp_path, "llama")
    extractor = language(tmp_path)
    blocks = extractor.model.model.layers
    blocks[1] = OfOneSize()
    extractor.compiles = True
    compilation.compile_blocks(blocks, dynamic=True)
    with pytest.raises(InputError, match=r"model\.compile: the blocks of .* can't be compiled here: .*recompile"):
        activations(extractor, (4, 9))


def test_a_compiler_that_fails_is_refused(monkeypatch):
    def failing(graph, examples, **_options):
        raise OSError("no room for what is compiled")

    monkeypatch.setattr(compilation, "BACKEND", failing)
    with pytest.raises(InputError, match=r"model\.compile: the blocks .*no room for what is compiled"):
        features(vision(compile=True), 2)


def test_what_a_c_compiler_says_is_passed_on_without_its_command():
    said = "CppCompileError: C++ compile error\n\nCommand:\ng++ -O3 " + "-fsomething " * 99 + "\n\nOutput:\nno Python.h"

    def fail():
        raise RuntimeError(said)

    with pytest.raises(InputError, match=r"can't be compiled here: no Python\.h; leave it out"):
        compilation.compile_for(fail, fail, "m")


def test_without_a_compiler_nothing_is_begun(cli, tmp_path, image_folder):
    settings = ["--config", "configs/folder/vision.yaml", "--data.root", image_folder, "--output_dir", tmp_path / "out"]
    settings += ["--model.name", TINY, "--model.untrained", "true", "--model.compile", "true"]
    settings += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        code, _, said = cli("predict", *settings)
    assert code == 2
    assert "model.compile: for a CPU it needs a C++ compiler" in said
    assert not list(tmp_path.glob("out/*/*/*")), "a store that a run without model.compile would be refused"


def test_switched_off_by_the_environment_is_not_silently_obeyed():
    with torch._dynamo.config.patch(disable=True), pytest.raises(InputError, match="TORCH_COMPILE_DISABLE"):
        compilation.check_compiler(torch.device("cpu"))


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(InputError, match=r"model\.compile: for cuda it needs Triton"):
        compilation.check_compiler(torch.device("cuda"))


def test_provenance_tells_of_it_only_when_it_is_on(tmp_path):
    save_model(tmp_path, "llama")
    for make in (
        lambda **on: VisionExtractor(TINY, untrained=True, **on),
        lambda **on: LanguageExtractor(str(tmp_path), **on),
    ):
        off, on = make().provenance(), make(compile=True).provenance()
        assert "compile" not in off
        assert on == {**off, "compile": True}


def test_inductor_agrees_with_eager_to_rounding(compiler):
    for precision, tolerance in (("float32", 1e-5), ("bf16", 2e-2)):
        context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with context:
            compiled, plain = features(vision(compile=True), 3), features(vision(), 3)
        torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=tolerance)
        assert not torch.equal(compiled, plain), "it was not compiled after all"


@pytest.mark.slow
def test_bits_of_captions_do_not_depend_on_the_captions_before(compiler, tmp_path, monkeypatch):
    save_model(tmp_path / "model", "llama")
    found = []
    for cache, sizes in (("one", [(40, 30), (5, 3), (2, 100)]), ("other", [(2, 100), (5, 3), (40, 30)])):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / cache))
        torch.compiler.reset()
        extractor = language(tmp_path / "model", compile=True)
        found.append({size: activations(extractor, size) for size in sizes})
    for size, values in found[0].items():
        assert torch.equal(values, found[1][size])
