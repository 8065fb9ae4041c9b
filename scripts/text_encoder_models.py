"""Try which text encoders of Transformers give features, and write docs/text-encoders.md.

Models are built from their default configurations on the meta device, without memory for weights. Run it from the root
of the repository: python scripts/text_encoder_models.py
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.selection import NORM
from lit_extract.modules.text_tower import find_example, find_tower, hidden_states, make_skeleton, text_config

PAGE = Path("docs/text-encoders.md")
# Types whose numbers tests compare with Transformers' own hidden states, and models of that type.
TESTED = {
    "bart": "BART's encoder",
    "bert": "BERT, MiniLM, E5, BGE, GTE (`thenlper/gte-*`)",
    "big_bird": "BigBird",
    "clip": "CLIP's text model",
    "deberta-v2": "DeBERTa-v2 and v3",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "eurobert": "EuroBERT",
    "gemma3_text": "EmbeddingGemma",
    "gte": "GTE in the format of Transformers",
    "ibert": "I-BERT",
    "jina_embeddings_v3": "Jina's embeddings v3, if the repository is in the format of Transformers",
    "megatron-bert": "Megatron-BERT",
    "modernbert": "ModernBERT, GTE (`Alibaba-NLP/gte-modernbert-base`)",
    "mpnet": "MPNet: all-mpnet-base-v2",
    "mt5": "mT5's encoder",
    "nomic_bert": "Nomic, if the repository is in the format of Transformers; code in the repository is not run",
    "qwen3": "Qwen3-Embedding",
    "rembert": "RemBERT",
    "roberta": "RoBERTa, DistilRoBERTa",
    "roformer": "RoFormer",
    "siglip": "SigLIP's text model; all texts are padded to its training length, and it sees the padding",
    "siglip2": "SigLIP-2's text model, likewise",
    "t5": "T5's encoder: sentence-t5, GTR, Flan-T5",
    "umt5": "UMT5's encoder",
    "xlm-roberta": "XLM-RoBERTa, multilingual E5, BGE-M3",
    "xlm-roberta-xl": "XLM-RoBERTa-XL",
}
REFUSED = {
    "convbert": "it convolves padding into its tokens, mask or not",
    "fnet": "its Fourier transform runs over padding, and it takes no mask",
    "mobilebert": "its embeddings of three tokens include padding, mask or not",
    "nystromformer": "its attention averages over padding, mask or not",
}
BY_DEFAULT = "a model of its default configuration can't be built"


class Answer(NamedTuple):
    """The result for one model: the class that reads text and its last hidden state, or why it gives no features."""

    model_type: str
    tower: str = ""
    last: str = ""
    reason: str = ""


def main() -> None:
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(map(ask, types())))


def types() -> list[str]:
    known = {
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        *MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *TESTED,
    }
    return sorted(known)


def ask(model_type: str) -> Answer:
    if model_type in REFUSED:
        return Answer(model_type, reason=REFUSED[model_type])
    try:
        config = transformers.AutoConfig.for_model(model_type)
        model = make_skeleton(config, {}, model_type)
    except Exception:  # some need parts that the default does not have
        return Answer(model_type, reason=BY_DEFAULT)
    try:
        of_text = text_config(config, model_type)
        tower = find_tower(model, model_type)
        last = hidden_states(model_type, tower, of_text, find_example(model_type, tower))[-1]
    except InputError as error:
        return Answer(model_type, reason=one_line(error))
    return Answer(model_type, type(tower).__name__, last)


def page(answers: Iterable[Answer]) -> str:
    known = sorted(answers)
    tested = [answer for answer in known if answer.model_type in TESTED]
    alike = [answer for answer in known if answer not in tested and not answer.reason]
    unknown = [answer for answer in known if answer.reason == BY_DEFAULT]
    refused = [answer for answer in known if answer.reason and answer not in unknown]
    return "\n".join(
        [
            "# Text encoders of Transformers",
            "",
            f"Transformers {transformers.__version__} has {len(known)} types of models that fill gaps in text, encode "
            "text, or match it with images. `python scripts/text_encoder_models.py` tries each of them and writes this "
            "page. [Sentence encoders](sentence-encoders.md) explains `TextEncoderExtractor`.",
            "",
            f"For these {len(tested)}, tests compare tiny models with Transformers' own `output_hidden_states` of each "
            "caption alone, to 1e-5, for a caption alone and in a batch. With `layers: hidden_states` the last layer "
            "is the output of the last block or of a final norm:",
            "",
            "| type | | last of the hidden states |",
            "| --- | --- | --- |",
            *(f"| {one.model_type} | {TESTED[one.model_type]} | {last_in_words(one)} |" for one in tested),
            "",
            f"{len(alike)} more have the same structure. A check at loading refuses them if a caption's features "
            "depend on padding, and `verify --parity` compares their numbers:",
            "",
            ", ".join(answer.model_type for answer in alike) + ".",
            "",
            f"{len(unknown)} were not tested, because no model can be built from the default configuration:",
            "",
            ", ".join(answer.model_type for answer in unknown) + ".",
            "",
            f"{len(refused)} are refused before a run:",
            "",
            "| type | reason |",
            "| --- | --- |",
            *(f"| {answer.model_type} | {short(answer.reason)} |" for answer in refused),
            "",
        ]
    )


def last_in_words(answer: Answer) -> str:
    return "final norm" if answer.last == NORM else "last block"


def short(reason: str) -> str:
    """Return a reason without the setting and the name of the model."""
    reason = reason.removeprefix("model.name: ").removesuffix("; choose another model")
    for before in ("the configuration of ", "the forward pass of ", "the blocks of "):
        if reason.startswith(before):
            return f"{before.removesuffix(' of ')} {reason.removeprefix(before).partition(' ')[2]}"
    return reason


if __name__ == "__main__":
    main()
