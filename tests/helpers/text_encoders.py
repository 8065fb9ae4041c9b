"""Tiny random text encoders with their tokenizers, in the format of the hub and of sentence-transformers."""

import json

import torch
import transformers
from helpers.language_models import WORDS
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

VOCABULARY = 64
DEPTH = 3

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
_BERT = {**_SIZES, "intermediate_size": 64, "max_position_embeddings": 64}
_GATED = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": DEPTH, "num_heads": 4}
_VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_IMAGE = {**_VISION, "image_size": 16, "patch_size": 8}
_EUROBERT = {**_SIZES, "intermediate_size": 64, "max_position_embeddings": 64}

# A family: its configuration, and special tokens before and after a caption. Positions of RoBERTa and MPNet begin after
# the padding token, which is 1 as in the published models.
FAMILIES = {
    "bert": (transformers.BertConfig(**_BERT), "[CLS]", "[SEP]"),
    "distilbert": (
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=DEPTH, n_heads=4, hidden_dim=64, max_position_embeddings=64
        ),
        "[CLS]",
        "[SEP]",
    ),
    "electra": (transformers.ElectraConfig(**_BERT, embedding_size=16), "[CLS]", "[SEP]"),
    "roberta": (transformers.RobertaConfig(**{**_BERT, "max_position_embeddings": 66}), "[CLS]", "[SEP]"),
    "xlm-roberta": (transformers.XLMRobertaConfig(**{**_BERT, "max_position_embeddings": 66}), "[CLS]", "[SEP]"),
    "mpnet": (transformers.MPNetConfig(**{**_BERT, "max_position_embeddings": 66}), "[CLS]", "[SEP]"),
    "deberta-v2": (
        transformers.DebertaV2Config(
            **_BERT, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True
        ),
        "[CLS]",
        "[SEP]",
    ),
    "modernbert": (
        transformers.ModernBertConfig(
            **_BERT, local_attention=4, global_attn_every_n_layers=2, bos_token_id=2, eos_token_id=3,
            cls_token_id=2, sep_token_id=3,
        ),
        "[CLS]",
        "[SEP]",
    ),
    "rembert": (
        transformers.RemBertConfig(**_BERT, input_embedding_size=16, output_embedding_size=16), "[CLS]", "[SEP]"
    ),
    "megatron-bert": (transformers.MegatronBertConfig(**_BERT), "[CLS]", "[SEP]"),
    "roformer": (transformers.RoFormerConfig(**_BERT), "[CLS]", "[SEP]"),
    "siglip2": (
        transformers.Siglip2Config(
            text_config={**_BERT, "projection_size": 32}, vision_config={**_VISION, "patch_size": 8}
        ),
        "",
        "<eos>",
    ),
    "ibert": (transformers.IBertConfig(**{**_BERT, "max_position_embeddings": 66}), "[CLS]", "[SEP]"),
    "umt5": (transformers.UMT5Config(**_T5), "", "<eos>"),
    "big_bird": (transformers.BigBirdConfig(**_BERT), "[CLS]", "[SEP]"),
    "xlm-roberta-xl": (
        transformers.XLMRobertaXLConfig(**{**_BERT, "max_position_embeddings": 66}), "[CLS]", "[SEP]"
    ),
    "jina_embeddings_v3": (transformers.JinaEmbeddingsV3Config(**_BERT), "[CLS]", "[SEP]"),
    "nomic_bert": (transformers.NomicBertConfig(**_BERT), "[CLS]", "[SEP]"),
    "eurobert": (transformers.EuroBertConfig(**_EUROBERT), "[CLS]", "[SEP]"),
    "gemma3": (
        transformers.Gemma3TextConfig(
            **_GATED, use_bidirectional_attention=True, sliding_window=8, layer_types=["sliding_attention"] * 2
            + ["full_attention"], query_pre_attn_scalar=8,
        ),
        "<bos>",
        "<eos>",
    ),
    "qwen3": (transformers.Qwen3Config(**_GATED), "", "<eos>"),
    "t5": (transformers.T5Config(**_T5, feed_forward_proj="gated-gelu"), "", "<eos>"),
    "mt5": (transformers.MT5Config(**_T5), "", "<eos>"),
    "bart": (
        transformers.BartConfig(
            vocab_size=VOCABULARY, d_model=32, encoder_layers=DEPTH, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        ),
        "[CLS]",
        "[SEP]",
    ),
    "clip": (
        transformers.CLIPConfig(
            text_config={**_BERT, "eos_token_id": 3, "bos_token_id": 2}, vision_config=_IMAGE,
            projection_dim=24,
        ),
        "<bos>",
        "<eos>",
    ),
    "siglip": (
        transformers.SiglipConfig(
            text_config={**_BERT, "projection_size": 32}, vision_config=_IMAGE
        ),
        "",
        "<eos>",
    ),
}  # fmt: skip

# Whose tokens depend on padding, mask or not: convolutions, a Fourier transform and averages run over all of it.
DEPENDING_ON_PADDING = {
    "convbert": (transformers.ConvBertConfig(**_BERT), "[CLS]", "[SEP]"),
    "nystromformer": (transformers.NystromformerConfig(**_BERT), "[CLS]", "[SEP]"),
    "mobilebert": (transformers.MobileBertConfig(**_BERT), "[CLS]", "[SEP]"),
    "fnet": (transformers.FNetConfig(**_BERT), "[CLS]", "[SEP]"),
}
if hasattr(transformers, "GteConfig"):  # which not every version has
    FAMILIES["gte"] = (transformers.GteConfig(**_BERT), "[CLS]", "[SEP]")


def save_tokenizer(folder, before, after, longest=64):
    """A word tokenizer with its special tokens; tokens are those of RoBERTa in number: 1 pads, 2 begins, 3 ends."""
    named = ["<unk>", "<pad>", before or "<unused>", after]
    vocabulary = {token: place for place, token in enumerate([*named, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [token for token in (before, after) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([before, "$A", after]).strip(), special_tokens=[(token, vocabulary[token]) for token in ends]
    )
    has_class = before == "[CLS]"
    names = {"cls_token": before, "sep_token": after} if has_class else {"eos_token": after}
    names |= {"bos_token": before} if before == "<bos>" else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=longest, **names
    ).save_pretrained(folder)


def save_encoder(folder, family, seed=0):
    """A random model with its tokenizer; its weights are large enough that layers differ."""
    config, before, after = {**FAMILIES, **DEPENDING_ON_PADDING}[family]
    config = type(config).from_dict(config.to_dict())
    text = getattr(config, "text_config", config)
    text.pad_token_id = 1
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder, before, after)
    return model


def save_head(folder, pooling="mean", dense=(), normalize=True, prompts=None, default=None, width=32, **sentence):
    """What sentence-transformers writes next to a model: ``dense`` are (out, activation), in their order."""
    names = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    paths = ["", *(f"{place}_{name}" for place, name in enumerate(names) if place)]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (path, name) in enumerate(zip(paths, names, strict=True))
    ]
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False, **sentence})
    if prompts is not None:
        write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": default})
    modes = [pooling] if isinstance(pooling, str) else pooling
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, "pooling_mode": modes})
    into = width * len(modes)
    for place, (out, activation) in enumerate(dense, start=2):
        torch.manual_seed(place)
        layer = torch.nn.Linear(into, out, bias=activation.endswith("Tanh"))
        settings = {"in_features": into, "out_features": out, "bias": layer.bias is not None}
        write(folder / paths[place] / "config.json", {**settings, "activation_function": activation})
        save_file(
            {f"linear.{name}": tensor.data for name, tensor in layer.named_parameters()},
            folder / paths[place] / "model.safetensors",
        )
        into = out


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
