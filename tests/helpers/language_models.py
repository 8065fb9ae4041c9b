"""Tiny random language models and tokenizers, in the format of the hub."""

import json

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_extract.data import CaptionDataModule

VOCABULARY = 300
WORDS = "a man woman dog cat sits stands on near the red blue car street tree with and two people riding".split()

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_GATED = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}

CONFIGS = {
    "bloom": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, **_IDS),
    "llama": transformers.LlamaConfig(**_GATED, **_IDS),
    "gemma2": transformers.Gemma2Config(
        **_GATED,
        **_IDS,
        head_dim=8,
        sliding_window=4,
        attn_logit_softcapping=0.05,  # so small that leaving it out is seen
        final_logit_softcapping=0.3,
    ),
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, **_IDS),
    "opt": transformers.OPTConfig(
        **_SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128, bos_token_id=1, eos_token_id=2
    ),
    "qwen2": transformers.Qwen2Config(**_GATED, **_IDS),
    "mistral": transformers.MistralConfig(**_GATED, **_IDS),
    "phi": transformers.PhiConfig(
        **_SIZES, intermediate_size=64, max_position_embeddings=128, **_IDS, partial_rotary_factor=0.5
    ),
}

# Further ones, whose blocks are streamed.
GATED = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = CONFIGS | {
    "olmo2": transformers.Olmo2Config(**GATED, pad_token_id=None),
    "gemma3": transformers.Gemma3TextConfig(**GATED, head_dim=8, sliding_window=4, pad_token_id=0),
    "mixtral": transformers.MixtralConfig(**GATED, num_local_experts=4),
    "gpt_oss": transformers.GptOssConfig(**GATED, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "mamba": transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=4),
}


def save_tokenizer(folder, bos=True, pad=None):
    """A word tokenizer with or without BOS and pad token."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: 3 + place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    if pad:
        fast.add_special_tokens({"pad_token": pad})  # one past the vocabulary
    fast.save_pretrained(folder)


def save_model(folder, architecture, seed=0, bos=True, pad=None):
    """A random model with its tokenizer; its weights are large enough that layers differ."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture], attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder, bos, pad)
    return model


def save_in_parts(folder, family, dtype=torch.float32, max_shard_size="50KB"):
    """A random model of FAMILIES with its tokenizer, its weights in several files."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder)
    return folder


def save_captions(path, lengths, seed=0):
    """Captions of so many words, as a CSV with nsd_id."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        " ".join(WORDS[int(k)] for k in torch.randint(0, len(WORDS), (length,), generator=generator))
        for length in lengths
    ]
    path.write_text("nsd_id,caption\n" + "".join(f"{i},{json.dumps(text)}\n" for i, text in enumerate(texts)))
    return texts


@torch.no_grad()
def features(extractor, captions, **settings):
    """All rows in order, with the extras, as the predict loop would compute them."""
    data = CaptionDataModule(str(captions), "test", preprocessing=extractor.preprocessing, **settings)
    data.setup()
    rows = {}
    for batch in data.predict_dataloader():
        prediction = extractor.predict_step(batch)
        for place, row in enumerate(prediction["index"].tolist()):
            values = {name: prediction[name][place] for name in extractor.extras}
            rows[row] = {
                **{
                    pool: feats[place].unflatten(0, (len(extractor.layers), -1))
                    for pool, feats in prediction["feats"].items()
                },
                **values,
            }
    return {name: torch.stack([rows[row][name] for row in range(len(rows))]) for name in rows[0]}
