"""Try which vision-language models of Transformers give features, and write docs/vision-language-models.md.

Models are built from their default configurations on the meta device, without memory for weights. Run it from the root
of the repository: python scripts/vision_language_models.py
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.chat import image_token_of
from lit_extract.modules.pretrained import check_parts, create_skeleton, find_language_blocks
from lit_extract.modules.vision_language import VisionLanguageExtractor

PAGE = Path("docs/vision-language-models.md")
# Types whose numbers tests compare with Transformers' own hidden states, and remarks on them.
TESTED = {
    "gemma3": "Gemma-3; random weights are refused: its projection of images is 0 before training",
    "idefics3": "Idefics-3; tokens around tiles do not count as the image's",
    "internvl": "InternVL-2.5 and 3 in the format of Transformers (`…-hf`)",
    "llava": "LLaVA-1.5, and Pixtral in the format of Transformers; Pixtral's tokens at the ends of rows and of the "
    "image do not count as the image's",
    "llava_next": "LLaVA-1.6; row ends of its tiles have the image token and count as the image's",
    "llava_onevision": "LLaVA-OneVision; row ends of its tiles have the image token and count as the image's",
    "mistral3": "Mistral-Small-3.1; its tokens at the ends of rows and of the image do not count as the image's",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL; the outputs of the first few blocks are taken before features of the image are added to "
    "them",
    "smolvlm": "SmolVLM and SmolVLM2; its processor needs the package num2words",
}
REFUSED = {"mllama": "it uses cross-attention: images are not in the places of their tokens"}
BY_DEFAULT = "a model of its default configuration can't be built"


class Answer(NamedTuple):
    """The result for one model: the class of its language model, or the reason why it gives no features."""

    model_type: str
    language_model: str = ""
    reason: str = ""


def main() -> None:
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(map(ask, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)))


def ask(model_type: str) -> Answer:
    if model_type in REFUSED:
        return Answer(model_type, reason=REFUSED[model_type])
    try:
        config = transformers.AutoConfig.for_model(model_type)
        model = create_skeleton(config, {}, model_type, VisionLanguageExtractor.auto_class)
    except Exception:  # many need parts that the default does not have, or numbers that do not go together
        return Answer(model_type, reason=BY_DEFAULT)
    try:
        check_parts(config, model_type)
        find_language_blocks(model, model_type)
        image_token_of(config)
    except InputError as error:
        return Answer(model_type, reason=one_line(error))
    return Answer(model_type, type(model.get_decoder()).__name__)


def page(answers: Iterable[Answer]) -> str:
    known = sorted(answers)
    tested = [answer for answer in known if answer.model_type in TESTED]
    others = [answer for answer in known if answer not in tested]
    alike = [answer for answer in others if not answer.reason]
    unknown = [answer for answer in others if answer.reason == BY_DEFAULT]
    refused = [answer for answer in others if answer.reason and answer not in unknown]
    return "\n".join(
        [
            "# Vision-language models of Transformers",
            "",
            f"`AutoModelForImageTextToText` of Transformers {transformers.__version__} knows {len(known)} types of "
            "models. `python scripts/vision_language_models.py` tries each of them and writes this page. [Ask a "
            "language model about images](ask-about-images.md) explains `VisionLanguageExtractor`.",
            "",
            f"For these {len(tested)}, tests compare tiny models with Transformers' own `output_hidden_states`, pooled "
            "by hand, to 1e-5:",
            "",
            "| type | |",
            "| --- | --- |",
            *(f"| {answer.model_type} | {TESTED[answer.model_type]} |" for answer in tested),
            "",
            f"{len(alike)} more have the blocks of their language model and the token of their image in the same "
            "places. A check at loading, with two images, refuses them if they do not work, and `verify --parity` "
            "compares their numbers:",
            "",
            ", ".join(f"{answer.model_type}" for answer in alike) + ".",
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


def short(reason: str) -> str:
    """Return a reason without the setting and the name of the model."""
    for before in ("model.name: the configuration of ", "model.name: "):
        if reason.startswith(before):
            return reason.removeprefix(before).partition(") ")[2]
    return reason


if __name__ == "__main__":
    main()
