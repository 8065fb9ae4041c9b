"""Blocks whose weights come from disk give the bits of an ordinary pass, whatever the model."""

import os
import shutil

import pytest
import timm
import torch
import transformers
from helpers.language_models import (
    FAMILIES,
    GATED,
    VOCABULARY,
    save_captions,
    save_in_parts,
    save_model,
    save_tokenizer,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lit_extract.common.errors import InputError
from lit_extract.data import CaptionDataModule
from lit_extract.data.plan import passes
from lit_extract.modules.hooks import capture
from lit_extract.modules.language import LanguageExtractor
from lit_extract.modules.pretrained import find_backbone
from lit_extract.modules.room import free_memory
from lit_extract.modules.streaming import OnDisk, StreamedBlocks
from lit_extract.modules.vision import VisionExtractor
from lit_extract.modules.weights_on_disk import ScratchFile, read_headers

LENGTHS = (3, 9, 1, 14, 6, 2, 11, 5, 8, 4)
BUDGET = 24  # tokens a batch


class Trainer:
    """As much of a trainer as loading looks at."""

    precision = "bf16-true"
    num_devices = 1

    class strategy:  # noqa: N801
        root_device = torch.device("cpu")


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "captions.csv"
    save_captions(path, LENGTHS)
    return path


def rows_of(extractor, captions, at_once=1, bf16=False):
    """All rows in order, and the extras, when so many batches go through the model together."""
    if bf16:
        extractor._trainer = Trainer()
    extractor.configure_model()
    data = CaptionDataModule(str(captions), "test", preprocessing=extractor.preprocessing, token_budget=BUDGET)
    data.setup()
    batches = [*data.predict_dataloader()]
    found = {}
    with torch.inference_mode():
        for first in range(0, len(batches), at_once):
            group = batches[first : first + at_once]
            predictions = extractor.predict_step(group) if at_once > 1 else [extractor.predict_step(group[0])]
            for prediction in predictions:
                for place, row in enumerate(prediction["index"].tolist()):
                    extras = [prediction[name][place][None].float() for name in extractor.extras]
                    found[row] = torch.cat([*(feats[place] for feats in prediction["feats"].values()), *extras])
    return torch.stack([found[row] for row in range(len(found))])


def count_hooks(extractor):
    """Of all modules, those of Transformers included."""
    return [len(module._forward_hooks) for module in extractor.model.modules()]


def both(folder, captions, bf16=False, at_once=100, **settings):
    """The rows of an ordinary extractor, and of one that streams."""
    ordinary, streaming = (LanguageExtractor(str(folder), stream=stream, **settings) for stream in (False, True))
    return rows_of(ordinary, captions, bf16=bf16), rows_of(streaming, captions, at_once, bf16)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_rows_have_the_bits_of_an_ordinary_run(tmp_path, captions, family, bf16):
    expected, found = both(save_in_parts(tmp_path, family), captions, bf16, pool=["avg", "last"], loss=True)
    assert expected.isfinite().all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_weights_of_another_type_on_disk(tmp_path, captions, family, saved, bf16):
    expected, found = both(save_in_parts(tmp_path, family, saved), captions, bf16)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", [{"layers": "hidden_states"}, {"layers": [1]}, {"layers": [0], "loss": True}])
def test_layers(tmp_path, captions, settings):
    expected, found = both(save_in_parts(tmp_path, "llama", max_shard_size="1GB"), captions, **settings)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_number_of_batches_at_once_does_not_matter(tmp_path, captions, at_once):
    expected, found = both(save_in_parts(tmp_path, "gemma2"), captions, at_once=at_once)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_those_of_an_ordinary_run(tmp_path, captions, family):
    expected, found = both(save_in_parts(tmp_path, family), captions, untrained=True, seed=3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama"])
def test_what_models_compute_for_themselves_is_of_the_same_type(tmp_path, family):
    """As Gemma's scale of embeddings, which is rounded to bf16, and rotary frequencies, which are not."""
    save_in_parts(tmp_path, family)
    found = []
    for stream in (False, True):
        extractor = LanguageExtractor(str(tmp_path), stream=stream)
        extractor._trainer = Trainer()
        extractor.configure_model()
        found.append(dict(extractor.model.named_buffers()))
    assert found[0].keys() == found[1].keys()
    for name, buffer in found[0].items():
        assert buffer.dtype == found[1][name].dtype, name
        assert torch.equal(buffer, found[1][name]), name


def test_tied_embeddings(tmp_path, captions):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GATED, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    expected, found = both(tmp_path, captions, loss=True)
    assert torch.equal(found, expected)


def test_a_model_with_weights_that_are_missing_is_refused_as_without_streaming(tmp_path):
    save_in_parts(tmp_path, "llama", max_shard_size="1GB")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for stream in (False, True):
        with pytest.raises(InputError, match=r"no weights .*layers.1.mlp.up_proj.weight \(missing\)"):
            LanguageExtractor(str(tmp_path), stream=stream).configure_model()
    LanguageExtractor(str(tmp_path), stream=True, layers=[0]).configure_model()  # does not need it


def test_no_more_than_one_block_has_weights_between_passes(tmp_path, captions):
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama")), stream=True)
    rows_of(extractor, captions, 100)
    sizes = [sum(p.numel() for p in block.parameters()) for block in find_backbone(extractor.model)[1]]
    assert sorted(sizes)[:-1] == [0, 0]
    assert extractor.model.get_input_embeddings().weight.shape == (VOCABULARY, 32)


def test_hooks_are_gone_when_a_batch_fails_in_the_middle(tmp_path, captions, monkeypatch):
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama")), stream=True)
    expected = rows_of(extractor, captions, 100)
    before = count_hooks(extractor)
    block = find_backbone(extractor.model)[1][1]

    def fail(*args):
        raise RuntimeError("in block 1")

    handle = block.mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in block 1"):
        rows_of(extractor, captions, 100)
    handle.remove()
    assert count_hooks(extractor) == before
    assert torch.equal(rows_of(extractor, captions, 100), expected)


def test_fewer_batches_at_once_when_memory_is_short(tmp_path, captions, caplog):
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama")), stream=True)
    expected = rows_of(extractor, captions, 100)
    activations, held = extractor.activations, []

    def limited(inputs):
        held.append(inputs)
        if len(held) > 2:
            held.clear()
            raise torch.OutOfMemoryError
        try:
            return activations(inputs)
        finally:
            held[:] = [one for one in held if one is not inputs]

    extractor.activations = limited
    found = rows_of(extractor, captions, 100)
    assert "fewer at once" in caplog.text
    assert torch.equal(found, expected)


def test_a_vision_transformer(tmp_path):
    images = torch.randint(0, 256, (20, 3, 160, 160), dtype=torch.uint8)
    batches = [
        {"index": torch.arange(first, first + 5), "image": images[first : first + 5], "bad": torch.zeros(5).bool()}
        for first in range(0, 20, 5)
    ]
    torch.manual_seed(0)
    model = timm.create_model("test_vit.r160_in1k", pretrained=False)
    checkpoint = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), checkpoint)
    for settings in ({"untrained": True, "seed": 5}, {"checkpoint": str(checkpoint)}):
        for pool in (["cls", "avg"], "head"):
            layers = {} if pool == "head" else {"layers": ["blocks", "norm"]}
            found = []
            for stream in (False, True):
                if stream and pool == "head":
                    continue
                extractor = VisionExtractor("test_vit.r160_in1k", pool=pool, stream=stream, **layers, **settings)
                extractor.configure_model()
                with torch.inference_mode():
                    predictions = extractor.predict_step(batches)
                found.append(torch.cat([torch.cat([*one["feats"].values()], dim=1) for one in predictions]))
            assert all(torch.equal(one, found[0]) for one in found)


def test_a_checkpoint_without_safetensors_is_refused(tmp_path):
    save_in_parts(tmp_path, "llama", max_shard_size="1GB")
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    LanguageExtractor(str(tmp_path)).configure_model()
    with pytest.raises(InputError, match=r"model.stream: .* has no weights in safetensors format"):
        LanguageExtractor(str(tmp_path), stream=True).configure_model()


def test_a_file_that_loses_its_end_while_it_is_read_is_one_error(tmp_path, captions):
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama", max_shard_size="1GB")), stream=True)
    rows_of(extractor, captions, 100)
    before = count_hooks(extractor)
    os.truncate(tmp_path / "model.safetensors", 20_000)
    with pytest.raises(InputError, match=r"model.stream: weights can't be read from .*: the file ends too early"):
        rows_of(extractor, captions, 100)
    assert count_hooks(extractor) == before


def test_a_truncated_file_is_refused_before(tmp_path):
    save_in_parts(tmp_path, "llama", max_shard_size="1GB")
    os.truncate(tmp_path / "model.safetensors", 20_000)
    with pytest.raises(InputError, match=r"model.safetensors can't be read as safetensors"):
        LanguageExtractor(str(tmp_path), stream=True).configure_model()


def test_a_file_that_is_gone_is_one_error(tmp_path, captions):
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama", max_shard_size="1GB")), stream=True)
    extractor.configure_model()
    shutil.move(tmp_path / "model.safetensors", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model.stream: weights can't be read from .*No such file"):
        rows_of(extractor, captions, 100)


@pytest.mark.parametrize(
    ("free", "stream", "outcome"),
    [(10**9, None, False), (160_000, None, True), (160_000, False, False), (10**9, True, True), (10**4, None, None)],
)
def test_weights_are_streamed_when_they_do_not_fit(tmp_path, monkeypatch, free, stream, outcome):
    monkeypatch.setattr("lit_extract.modules.base.free_memory", lambda device: free)
    extractor = LanguageExtractor(str(save_in_parts(tmp_path, "llama")), stream=stream)
    if outcome is None:
        with pytest.raises(InputError, match=r"model.stream: .* needs .* even if its blocks are streamed"):
            extractor.is_streamed(None)
    else:
        assert extractor.is_streamed(None) is outcome


def test_models_without_a_list_of_blocks_are_refused():
    extractor = VisionExtractor("test_convnext.r160_in1k", pool="avg", untrained=True, stream=True)
    with pytest.raises(InputError, match=r"model.stream: .* can't be streamed, because its layers are not a list"):
        extractor.configure_model()


def test_calls_of_blocks_again_are_served_too():
    """As of a model whose forward pass goes through its blocks twice."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).requires_grad_(False)
    scratch = ScratchFile(1000, 1000)
    weights = []
    for block in blocks:
        tensors = list(block.parameters())
        weights.append([(tensor, scratch.place_of(scratch.keep(tensor.data), torch.float32)) for tensor in tensors])

    def twice(x):
        for block in (*blocks, *blocks):
            x = block(x)
        return x

    inputs = [torch.randn(2, 4) for _ in range(3)]
    expected = [twice(x) for x in inputs]
    streamed = StreamedBlocks(blocks, weights, torch.device("cpu"))
    for _ in range(2):
        found = streamed.run([lambda x=x: twice(x) for x in inputs])
        assert all(map(torch.equal, found, expected))


def test_passes_that_overlap_are_captured_apart():
    layer = nn.Identity()
    blocks = nn.ModuleList([layer])

    def call(x):
        with capture({"layer": layer}, torch.clone) as captured:
            layer(x)
        return captured["layer"]

    streamed = StreamedBlocks(blocks, [[]], torch.device("cpu"))
    assert [x.item() for x in streamed.run([lambda k=k: call(torch.tensor(k)) for k in range(4)])] == [0, 1, 2, 3]


def test_headers_say_where_tensors_are(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(6).to(torch.int32), "c": torch.randn(()).bfloat16()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    places = read_headers([str(tmp_path / "x.safetensors")])
    assert {name: at.read(torch.device("cpu")).tolist() for name, at in places.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_more_memory_than_there_is_is_one_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    at = OnDisk(str(tmp_path / "file"), 0, (2**50,), torch.float32, torch.float32)
    with pytest.raises(InputError, match=r"model.stream: weights can't be read"):
        at.read(torch.device("cpu"))


def test_a_scratch_file_has_no_name_and_needs_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    scratch = ScratchFile(4096, 8192)
    assert scratch.keep(torch.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InputError, match=r"model.stream: .* of weights can't be kept in .*TMPDIR"):
        ScratchFile(2**60, 0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("sizes", "n_rows", "expected"),
    [
        ([[4, 4], [4, 4], [3]], 8, [[0, 1], [2, 3], [4]]),
        ([[4, 4], [4, 4], [3]], 16, [[0, 1, 2, 3], [4]]),
        ([[4, 4], [4, 4], [3]], 19, [[0, 1, 2, 3, 4]]),
        ([[4, 4], [4, 4], [3]], 4, [[0], [1], [2], [3], [4]]),
        ([[4, 4], [4, 4], [3]], 1, [[0], [1], [2], [3], [4]]),
        ([[4, 4, 4], [3]], 10, [[0, 1], [2, 3]]),
        ([], 4, []),
    ],
)
def test_passes(sizes, n_rows, expected):
    batches = [
        range(100 * shard + 10 * k, 100 * shard + 10 * k + n)
        for shard, of in enumerate(sizes)
        for k, n in enumerate(of)
    ]
    assert passes(batches, 100, n_rows) == expected


def test_free_memory_of_the_host_is_no_more_than_there_is():
    assert 0 < free_memory(torch.device("cpu")) < 2**50


def test_a_token_that_is_left_out(tmp_path, captions):
    save_model(tmp_path, "llama")
    expected, found = both(tmp_path, captions, exclude_bos=True)
    assert torch.equal(found, expected)
