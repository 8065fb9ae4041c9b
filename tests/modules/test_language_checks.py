"""What is refused after loading: random weights, models that look ahead, forward passes that fail."""

import json

import pytest
import torch
import transformers
from helpers.language_models import CONFIGS, VOCABULARY, save_captions, save_model, save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_extract.common.errors import InputError
from lit_extract.data import CaptionDataModule
from lit_extract.modules.language import LanguageExtractor

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
BIDIRECTIONAL = {
    "bert": transformers.BertConfig(**SIZES, intermediate_size=64, is_decoder=False),
    "roberta": transformers.RobertaConfig(**SIZES, intermediate_size=64),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, intermediate_size=64),
    "electra": transformers.ElectraConfig(**SIZES, intermediate_size=64, embedding_size=32),
    "embeddinggemma": transformers.Gemma3TextConfig(**GATED, use_bidirectional_attention=True),
}
CAUSAL = CONFIGS | {
    "gemma3": transformers.Gemma3TextConfig(**GATED, sliding_window=4),
    "mixtral": transformers.MixtralConfig(**GATED, num_local_experts=4),
}


class Trainer:
    """As much of a trainer as loading looks at."""

    precision = "bf16-true"
    num_devices = 1

    class strategy:  # noqa: N801
        root_device = torch.device("cpu")


def configured(folder, bf16=False, **settings):
    extractor = LanguageExtractor(str(folder), **settings)
    if not bf16:
        extractor.configure_model()
        return extractor
    extractor._trainer = Trainer()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does
    try:
        extractor.configure_model()
    finally:
        torch.set_default_dtype(torch.float32)
    return extractor


def save(folder, config, std=0.02):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    model.save_pretrained(folder)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
@pytest.mark.parametrize("std", [0.02, 0.2])
def test_models_that_look_ahead_are_refused(tmp_path, name, bf16, std):
    save(tmp_path, BIDIRECTIONAL[name], std)
    with pytest.raises(InputError, match="is not a causal language model"):
        configured(tmp_path, bf16, layers=[-1])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("std", [0.02, 0.2])
def test_causal_models_pass(tmp_path, name, bf16, std):
    save(tmp_path, CAUSAL[name], std)
    assert configured(tmp_path, bf16).model is not None


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def without(*names):
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(names)}


def narrower(weights):
    name = "model.layers.1.mlp.up_proj.weight"
    return {**weights, name: weights[name][:-1].contiguous()}


def wrapped(weights):
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (without("model.layers.1.mlp.up_proj"), {}, r"layers\.1\.mlp\.up_proj\.weight \(missing\)"),
        (narrower, {}, r"up_proj\.weight \(\[63, 32\] in the checkpoint, \[64, 32\] in the model\)"),
        (narrower, {"options": {"ignore_mismatched_sizes": True}}, r"up_proj\.weight \(\[63, 32\]"),
        (wrapped, {}, r"embed_tokens.*\(\d+ in all\)"),
        (without("lm_head"), {"loss": True}, r"lm_head\.weight \(missing\)"),
        (without("model.norm"), {"layers": "hidden_states"}, r"model\.norm\.weight"),
        (without("model.norm"), {"loss": True}, r"model\.norm\.weight"),
        (without("model.layers.0.input_layernorm"), {"layers": [0]}, r"input_layernorm"),
    ],
)
def test_weights_that_would_be_random_are_named(tmp_path, change, settings, named):
    save_model(tmp_path, "llama")
    change_weights(tmp_path, change)
    with pytest.raises(InputError, match=rf"has no weights .*{named}"):
        configured(tmp_path, **settings)


@pytest.mark.parametrize(
    ("names", "settings"),
    [(("lm_head", "model.norm"), {}), (("lm_head", "model.norm", "model.layers.2", "model.layers.1"), {"layers": [0]})],
)
def test_weights_that_no_layer_depends_on_may_be_missing(tmp_path, names, settings):
    save_model(tmp_path / "whole", "llama")
    save_model(tmp_path / "part", "llama")
    change_weights(tmp_path / "part", without(*names))
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "n_bytes": torch.tensor([3])}
    inputs["pooled"] = inputs["attention_mask"].bool()
    whole, part = (configured(tmp_path / name, **settings) for name in ("whole", "part"))
    assert torch.equal(part.activations(inputs)["feats"], whole.activations(inputs)["feats"])


def test_a_norm_before_the_blocks_is_needed(tmp_path):
    save_model(tmp_path, "bloom")
    change_weights(tmp_path, without("transformer.word_embeddings_layernorm"))
    with pytest.raises(InputError, match="word_embeddings_layernorm"):
        configured(tmp_path, layers=[0])


def test_tied_heads_are_not_missing(tmp_path):
    save_model(tmp_path, "gpt2")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert configured(tmp_path, loss=True).loss


def test_a_forward_pass_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    save_model(tmp_path, "llama")

    def fail(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    with pytest.raises(InputError, match=r"forward pass of .* fails: RuntimeError: no such kernel"):
        configured(tmp_path)


@pytest.mark.parametrize("setting", ["name", "checkpoint"])
@pytest.mark.parametrize(
    ("file", "ending"),
    [("weights.gguf", " and --model.options '{gguf_file: weights.gguf}'"), ("config.json", "")],
)
def test_a_file_in_place_of_its_folder_is_refused(tmp_path, setting, file, ending):
    (tmp_path / file).write_text("{}")
    settings = {"name": "org/model", setting: str(tmp_path / file)}
    with pytest.raises(InputError) as refused:
        LanguageExtractor(**settings)
    place = f"model.{setting}: '{tmp_path / file}' is a file"
    assert str(refused.value) == f"{place}; give its folder, --model.{setting} {tmp_path}{ending}"


@pytest.mark.parametrize("model_type", ["clip", "t5", "vit", "xlnet", "whisper"])
@pytest.mark.parametrize("loss", [False, True])
def test_other_models_run_or_are_refused(tmp_path, model_type, loss):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES}))
    with pytest.raises(InputError, match=r"model\.name: "):
        configured(tmp_path, untrained=True, loss=loss)


def set_up(extractor, path, lengths=(3, 5)):
    save_captions(path, lengths)
    data = CaptionDataModule(str(path), "test", preprocessing=extractor.preprocessing)
    data.setup()
    return data


def test_options_of_the_tokenizer_reach_it_and_change_the_provenance(tmp_path):
    save_model(tmp_path, "llama", bos=False)
    plain = configured(tmp_path)
    with_bos = configured(tmp_path, options={"add_bos_token": True})
    first, other = (set_up(extractor, tmp_path / "captions.csv") for extractor in (plain, with_bos))
    assert (first.lengths, other.lengths) == ([3, 5], [4, 6])
    assert first.provenance()["tokens_sha256"] != other.provenance()["tokens_sha256"]
    assert with_bos.provenance()["options"] == {"add_bos_token": True}


@pytest.mark.parametrize("backend", ["huggingface", "sentencepiece"])
def test_an_option_that_nobody_takes_is_refused(tmp_path, backend):
    save_model(tmp_path, "llama")
    extractor = LanguageExtractor(str(tmp_path), options={"ad_bos_token": True}, tokenizer=backend)
    with pytest.raises(InputError, match=r"model\.options: ad_bos_token: "):
        set_up(extractor, tmp_path / "captions.csv")


@pytest.mark.parametrize(("bos", "ends", "warned"), [(False, 2, True), (True, 2, False), (False, 1, False)])
def test_a_bos_token_that_is_left_out_is_said_once(tmp_path, caplog, bos, ends, warned):
    save_tokenizer(tmp_path, bos)
    config = {**SIZES, "model_type": "llama", "bos_token_id": 1, "eos_token_id": ends}
    (tmp_path / "config.json").write_text(json.dumps(config))
    set_up(LanguageExtractor(str(tmp_path), untrained=True), tmp_path / "captions.csv")
    assert caplog.text.count("the model's configuration names a BOS token (1)") == warned


def test_the_first_token_is_left_out_whatever_it_is(tmp_path):
    save_model(tmp_path, "gpt2", bos=False)
    extractor = configured(tmp_path, exclude_bos="first", layers="hidden_states")
    data = set_up(extractor, tmp_path / "captions.csv", (6,))
    (batch,) = data.predict_dataloader()
    with torch.no_grad():
        actual = extractor.predict_step(batch)["feats"]["avg"][0].unflatten(0, (len(extractor.layers), -1))
        states = extractor.model(batch["input_ids"], output_hidden_states=True).hidden_states
    expected = torch.stack([state[0, 1:].mean(0) for state in states])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert extractor.provenance()["exclude_bos"] == "first"
    assert LanguageExtractor(str(tmp_path)).provenance()["exclude_bos"] is False


def test_captions_of_one_token_have_nothing_but_the_first(tmp_path):
    save_model(tmp_path, "gpt2", bos=False)
    extractor = LanguageExtractor(str(tmp_path), exclude_bos="first")
    with pytest.raises(InputError, match=r"captions with a single token: 1, 2; leave them out with data\.query"):
        set_up(extractor, tmp_path / "captions.csv", (6, 1, 1))
    with pytest.raises(InputError, match=r"model\.exclude_bos: 'last' must be true, false or 'first'"):
        LanguageExtractor(str(tmp_path), exclude_bos="last")


def test_mxfp4_is_dequantized_and_says_so(tmp_path):
    """The oracle: numbers of four bits, two a byte, the lower half first, times a power of two for each 32 of them."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    config = transformers.GptOssConfig(**GATED, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0)
    save(tmp_path, config, 0.2)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)

    def quantized(weights):
        kept = {}
        for name, values in weights.items():
            if name.endswith(("gate_up_proj", "down_proj")):
                n_experts, n_in, n_out = values.shape
                blocks = torch.randint(
                    0, 256, (n_experts, n_out, n_in // 32, 16), dtype=torch.uint8, generator=generator
                )
                scales = torch.randint(122, 126, blocks.shape[:3], dtype=torch.uint8, generator=generator)
                kept |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
                numbers = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], dim=-1).flatten(3)
                numbers = (numbers * 2.0 ** (scales[..., None].float() - 127)).flatten(2).mT
                plain.get_parameter(name).data.copy_(numbers)
            else:
                kept[name] = values
        return kept

    change_weights(tmp_path, quantized)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = configured(tmp_path, layers="hidden_states")
    ids = torch.arange(20, 30)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "n_bytes": torch.tensor([3])}
    inputs["pooled"] = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = torch.cat([state[0].mean(0) for state in plain(ids, output_hidden_states=True).hidden_states])
        actual = extractor.activations(inputs)["feats"][0, 0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert {parameter.dtype for parameter in extractor.model.parameters()} == {torch.float32}
    assert extractor.notes == {"quantization": "mxfp4, dequantized"}
    assert extractor.num_params == sum(parameter.numel() for parameter in plain.parameters())
    assert LanguageExtractor(str(tmp_path), untrained=True).notes == {}
