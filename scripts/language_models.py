"""Compute features of a tiny model of every family of language models of Transformers; write docs/language-models.md.

Run it from the root of the repository: python scripts/language_models.py. Types of models as arguments are compared
and printed, without writing the page.
"""

import inspect
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.language import LanguageExtractor

PAGE = Path("docs/language-models.md")
LENGTHS = (5, 17, 1, 9)  # tokens of captions
VOCABULARY = 300
MOST_PARAMETERS = 330_000_000
WRONG = "what it gives differs"
NOT_TINY = "no tiny model of it can be built"
TOLERANCE = 1e-5

# Fields of configurations, whichever family they are of.
SMALL = {
    **dict.fromkeys("vocab_size n_vocab vocab_size_per_layer_input".split(), VOCABULARY),
    **dict.fromkeys("hidden_size d_model n_embd dim emb_dim embed_dim embedding_size dim_model".split(), 32),
    **dict.fromkeys("num_hidden_layers num_layers n_layer n_layers decoder_layers num_decoder_layers".split(), 3),
    **dict.fromkeys("num_attention_heads n_head n_heads num_heads decoder_attention_heads".split(), 4),
    **dict.fromkeys("encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads".split(), 4),
    **dict.fromkeys("intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dff dim_ff n_inner".split(), 64),
    **dict.fromkeys("max_position_embeddings n_positions max_target_positions max_seq_len".split(), 128),
    **dict.fromkeys("n_routed_experts num_experts num_local_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok moe_k num_experts_per_token top_k_experts moe_topk".split(), 2),
    **dict.fromkeys("moe_intermediate_size expert_ffn_hidden_size expert_ffn_size".split(), 16),
    **dict.fromkeys("shared_expert_intermediate_size q_lora_rank kv_lora_rank".split(), 16),
    **dict.fromkeys("head_dim qk_nope_head_dim v_head_dim hidden_size_per_layer_input".split(), 8),
    **dict.fromkeys("qk_rope_head_dim rotary_dim sliding_window".split(), 4),
    **dict.fromkeys("encoder_layers num_encoder_layers n_group topk_group pad_to_multiple_of".split(), 1),
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = (  # causal only with is_decoder
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"
).split()
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
OF_TWO_KINDS = {"layer_types": ["conv", "full_attention", "conv"]}
# Further settings that a family needs.
OWN: Mapping[str, Mapping[str, Any]] = {
    **{model_type: {"is_decoder": True} for model_type in ENCODERS},
    **dict.fromkeys(
        "qwen2_vl_text qwen2_5_vl_text qwen2_5_omni_text paddleocr_vl_text glm4v_text glm_ocr_text".split(), MROPE
    ),
    "bamba": {**MAMBA_2, "attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "cohere": {"logit_scale": 3.0},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**MROPE["rope_parameters"]}}},
    "dots1": {"n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "emu3_text_model": {"vocabulary_map": {"<image>": 4}},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16], **MROPE},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0, "num_hidden_layers": 5, "intermediate_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "glm4v_moe_text": {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [0, 1, 1]}},
    "granite": {"logits_scaling": 4.0},
    "granitemoehybrid": {**MAMBA_2, "layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "lfm2": OF_TWO_KINDS,
    "lfm2_moe": {**OF_TWO_KINDS, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8, "n_groups": 1, "state_size": 8, "chunk_size": 4},
    "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},  # as in OPT-350m
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh", "local"],
        "is_decoder": True,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {"n_mamba_heads": 2, "attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 6},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "chunk_size": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


class Answer(NamedTuple):
    """The result for one family: the layers of its hidden states, or the reason why it gives no features."""

    model_type: str
    model_class: str = ""  # that is loaded for its text
    hidden_states: str = ""
    remark: str = ""
    reason: str = ""


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    families = sys.argv[1:]
    answers = []
    for model_type in families or all_families():
        answers.append(ask(model_type))
        print(*answers[-1], sep=" | ", flush=True)
    assert not any(answer.reason.startswith(WRONG) for answer in answers)
    if not families:
        PAGE.write_text(page(answers))


def all_families() -> list[str]:
    """Return the types of models that AutoModelForCausalLM or AutoModelForImageTextToText makes."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def ask(model_type: str) -> Answer:
    """Compare the features of a tiny model with those of Transformers for one caption alone."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = save_tiny(model_type, Path(folder))
        except Exception as error:  # settings that do not go together
            return Answer(model_type, reason=f"{NOT_TINY} ({one_line(error, 100)})")
        return compare(model_type, model, folder)


def save_tiny(model_type: str, folder: Path) -> Any:
    """Save a random model with all its parts, and return it."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    config = config_class(**tiny_settings(config_class, OWN.get(model_type, {})))
    is_composed = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    make = transformers.AutoModelForImageTextToText if is_composed else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in make.from_config(config).parameters())
    if n_parameters > MOST_PARAMETERS:
        raise ValueError(f"{n_parameters:,} parameters")
    torch.manual_seed(0)
    model = make.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return make.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def tiny_settings(config_class: Any, own: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the arguments of a small configuration and of its parts."""
    known = fields_of(config_class)
    settings = {name: value for name, value in SMALL.items() if name in known}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        settings["num_key_value_heads"] = 4
    if parts := getattr(config_class, "sub_configs", None):
        whole = config_class()
        for part in parts:
            part_config = getattr(whole, part, None)
            if part_type := getattr(part_config, "model_type", None):
                of_part = tiny_settings(type(part_config), OWN.get(part_type, {}))
                settings[part] = {"model_type": part_type, **of_part}
    return {**settings, **own}


def fields_of(config_class: Any) -> set[str]:
    names: set[str] = set()
    for parent in inspect.getmro(config_class):
        if parent.__name__.lower() == "pretrainedconfig":
            break
        names |= {*getattr(parent, "__annotations__", {}), *inspect.signature(parent.__init__).parameters}
    return names


def compare(model_type: str, model: Any, folder: str) -> Answer:
    remark = ""
    for layers, loss in (("hidden_states", True), ("hidden_states", False), ("blocks", True), ("blocks", False)):
        try:
            extractor = LanguageExtractor(folder, layers=layers, loss=loss, pool=["avg", "last"])
            extractor.configure_model()
            break
        except InputError as error:
            reason = short(one_line(error, 300), folder)
            remark = remark or reason
    else:
        return Answer(model_type, type(model).__name__, reason=reason)
    generator = torch.Generator().manual_seed(0)
    captions = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    with torch.no_grad():
        together = extractor.activations(padded(captions))
        for row, caption in enumerate(captions):
            try:
                expected = by_hand(model, caption, extractor.layers)
            except (TypeError, ValueError, NotImplementedError) as error:  # of models that want an image too
                return Answer(
                    model_type, reason=f"Transformers does not run it on a text alone ({one_line(error, 100)})"
                )
            alone = extractor.activations(padded([caption]))
            for rows, place in ((together, row), (alone, 0)):
                if wrong := difference({name: values[place] for name, values in rows.items()}, expected):
                    return Answer(model_type, type(model).__name__, reason=f"{WRONG}: {wrong} ({len(caption)} tokens)")
    names = ", ".join(extractor.layers) if layers == "hidden_states" else "refused"
    return Answer(model_type, type(extractor.model).__name__, names, remark)


def padded(captions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = pad_sequence([torch.ones_like(caption) for caption in captions], batch_first=True)
    return {
        "input_ids": pad_sequence(captions, batch_first=True),
        "attention_mask": mask,
        "pooled": mask.bool(),
        "n_bytes": 4 * mask.sum(dim=1),
    }


def by_hand(model: Any, caption: torch.Tensor, layers: list[str]) -> dict[str, torch.Tensor]:
    """Return the means and last tokens of Transformers' hidden states (2, L·D), and the loss from its logits."""
    ids = caption[None]
    try:
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    except (TypeError, ValueError):  # it wants an image: then its language model alone
        part = next(part for name in ("language_model", "text_model") if (part := getattr(model, name, None)))
        output = part(input_ids=ids, output_hidden_states=True, use_cache=False)
    states = [tokens_first(state, len(caption)) for state in output.hidden_states]
    if "embeddings" not in layers and "norm" not in layers:  # blocks alone; what the last gives is not returned
        states = states[1:-1]
    log_probability = output.logits[0, :-1].double().log_softmax(-1)[range(len(caption) - 1), caption[1:]]
    return {
        "feats": torch.stack([torch.cat([s.mean(0) for s in states]), torch.cat([s[-1] for s in states])]),
        "loss": -log_probability.mean().float(),
    }


def tokens_first(state: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Return the states of one caption as (T, D); Gemma-3n has four of them for each token, in front."""
    if state.shape[:2] != (1, n_tokens):
        state = state.permute(1, 2, 0, 3)
    return state[0].flatten(1)


def difference(values: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Return what is wrong with the features and the loss of one caption; "" if nothing is."""
    wanted = expected["feats"]
    found = values["feats"][:, : wanted.shape[1]]
    error = ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
    if not error < TOLERANCE:
        return f"features by {error:.2g} of their size"
    if "loss" not in values or torch.allclose(values["loss"], expected["loss"], rtol=TOLERANCE, equal_nan=True):
        return ""
    return f"the loss is {values['loss']} instead of {expected['loss']}"


def short(reason: str, folder: str) -> str:
    """Return a reason without the setting and the name of the folder."""
    name = Path(folder).name
    for quoted in (repr(folder), repr(name)):
        reason = reason.replace(quoted, "it")
    return reason.removeprefix("model.name: ")


def page(answers: Iterable[Answer]) -> str:
    known = list(answers)
    usual = [answer for answer in known if answer.hidden_states and is_usual(answer)]
    others = [answer for answer in known if answer.hidden_states and answer not in usual]
    unknown = [answer for answer in known if answer.reason.startswith(NOT_TINY)]
    refused = [answer for answer in known if answer.reason and answer not in unknown]
    return "\n".join(
        [
            "# Language models of Transformers",
            "",
            f"`AutoModelForCausalLM` and `AutoModelForImageTextToText` of Transformers {transformers.__version__} know "
            f"{len(known)} types of models. `python scripts/language_models.py` computes features of a tiny random "
            "model of each and writes this page. From a model that also takes images or sound, `LanguageExtractor` "
            "uses only the language model; its other weights are not needed.",
            "",
            f"## {len(usual) + len(others)} give features",
            "",
            "Their features equal Transformers' own `output_hidden_states` of one caption without padding, to 1e-5 of "
            "their size, whether the caption is alone or in a batch with shorter and longer ones. `loss` equals the "
            "loss from Transformers' logits to the same precision.",
            "",
            f"For {len(usual)}, the layers of `hidden_states` are `embeddings`, all blocks but the last, and `norm`:",
            "",
            ", ".join(answer.model_type for answer in usual) + ".",
            "",
            f"{len(others)} are exceptions:",
            "",
            "| type | layers of `hidden_states` in a tiny model | |",
            "| --- | --- | --- |",
            *(f"| {answer.model_type} | {answer.hidden_states} | {answer.remark} |" for answer in others),
            "",
            f"## {len(refused)} are refused before a run",
            "",
            "| type | reason |",
            "| --- | --- |",
            *(f"| {answer.model_type} | {answer.reason} |" for answer in refused),
            "",
            f"## {len(unknown)} were not tested",
            "",
            "No tiny model of them can be built from a few settings:",
            "",
            ", ".join(answer.model_type for answer in unknown) + ".",
            "",
        ]
    )


def is_usual(answer: Answer) -> bool:
    names = answer.hidden_states.split(", ")
    return not answer.remark and names == ["embeddings", *(f"blocks.{k}" for k in range(len(names) - 2)), "norm"]


if __name__ == "__main__":
    main()
