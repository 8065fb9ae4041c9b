"""Try which models of Transformers that take images give features, and write docs/transformers-vision.md.

Models are built from their default configurations on the meta device, without memory for weights. Run it from the root
of the repository: python scripts/transformers_vision_models.py
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from lit_extract.common.errors import InputError, one_line
from lit_extract.modules.pretrained import create_skeleton
from lit_extract.modules.transformers_vision import TransformersVisionExtractor
from lit_extract.modules.vision_tower import MASK, dissect, find_tower, output_width, vision_config

PAGE = Path("docs/transformers-vision.md")
# Types whose numbers tests compare with Transformers' own hidden states, and remarks on them.
TESTED = {
    "aimv2": "AIMv2 with text; the class token of its head is not among its tokens",
    "aimv2_vision_model": "AIMv2",
    "beit": "BEiT; its norm comes after pooling",
    "blip": "BLIP",
    "clip": "CLIP; its norm is for the class token only; `head` is the projected embedding",
    "clip_vision_model": "CLIP's vision model alone; `head` is its class token after the norm, before the projection",
    "data2vec-vision": "data2vec-vision",
    "deit": "DeiT; the distillation token comes before the patches too",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3; its registers come before the patches",
    "ijepa": "I-JEPA",
    "llava": "LLaVA's vision tower, loaded with the whole model",
    "metaclip_2": "MetaCLIP 2; `head` is the projected embedding",
    "mlcd_vision_model": "MLCD",
    "pixio": "Pixio; its 8 class tokens count as tokens before the patches; `head` is their mean",
    "siglip": "SigLIP, and SigLIP 2 of fixed resolution; `head` is pooled by attention",
    "siglip2": "SigLIP 2 NaFlex; padding patches are left out of the means",
    "tipsv2_vision_model": "TIPSv2",
    "vit": "ViT; `head` needs weights of its pooler, which are missing from many checkpoints",
    "vit_msn": "ViT-MSN",
    "vjepa2": "V-JEPA 2; an image is one frame, which the model itself repeats; its predictor is not used",
}
BY_DEFAULT = "a model of its default configuration can't be built"
ASK_THE_HUB = ("edgetam", "edgetam_video", "edgetam_vision_model")  # for a model of timm, to know their configuration


class Answer(NamedTuple):
    """The result for one model, or the reason why it gives no features; its class is empty if it takes no images."""

    model_type: str
    tower: str = ""
    n_prefix: int = 0
    pools: str = ""
    has_norm: bool = False
    reason: str = ""


def main() -> None:
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(map(ask, MODEL_MAPPING_NAMES)))


def ask(model_type: str) -> Answer:
    if model_type in ASK_THE_HUB:
        return Answer(model_type, "unknown", reason=BY_DEFAULT)
    try:
        config = transformers.AutoConfig.for_model(model_type)
        of_images = vision_part(config)
    except Exception:  # many need parts that the default does not have, or numbers that do not go together
        return Answer(model_type, reason=BY_DEFAULT)
    if not of_images:
        return Answer(model_type)
    try:
        part = vision_config(config, model_type)
    except InputError as error:
        return Answer(model_type, of_images, reason=one_line(error))
    try:
        model = create_skeleton(config, {}, model_type, TransformersVisionExtractor.auto_class)
    except Exception:
        return Answer(model_type, of_images, reason=BY_DEFAULT)
    try:
        tower = find_tower(model, model_type)
        inputs = example(tower, part)
        anatomy = dissect(model_type, tower, part, inputs)
    except InputError as error:
        return Answer(model_type, of_images, reason=one_line(error))
    pools = (["cls"] if anatomy.has_class_token else []) + ["avg", "avg_all"]
    try:
        output_width(model_type, model, tower, inputs)
        pools.append("head")
    except InputError:
        pass
    tokens = anatomy.form.n_prefix
    return Answer(model_type, type(tower).__name__, tokens, ", ".join(pools), anatomy.norm is not None)


def vision_part(config: Any) -> str:
    """Return the class of model if it takes images, also among others; else ""."""
    if getattr(config, "vision_config", None) is not None:
        return "composed"
    names = MODEL_MAPPING_NAMES[config.model_type]
    model = getattr(transformers, names if isinstance(names, str) else names[0])
    return model.__name__ if str(getattr(model, "main_input_name", "")).startswith("pixel_values") else ""


def example(tower: Any, config: Any) -> dict[str, Any]:
    """Return the inputs of one image for a skeleton."""
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if "Siglip2" in type(tower).__name__:
        pixels = torch.empty(1, 256, 3 * config.patch_size**2, device="meta")
        return {"pixel_values": pixels, MASK: None, "spatial_shapes": torch.tensor([[16, 16]])}
    frames = (1,) if tower.main_input_name == "pixel_values_videos" else ()
    return {tower.main_input_name: torch.empty(1, *frames, 3, height, width, device="meta")}


def page(answers: Iterable[Answer]) -> str:
    known = sorted(answer for answer in answers if answer.tower or answer.model_type in TESTED)
    giving = [answer for answer in known if not answer.reason]
    unknown = [answer.model_type for answer in known if answer.reason == BY_DEFAULT]
    refused = [answer for answer in known if answer.reason and answer.reason != BY_DEFAULT]
    of_stages, entwined, of_more = (
        [answer.model_type for answer in refused if reason in answer.reason]
        for reason in ("no sequence of blocks", "no part that takes images alone", "can't compute the features")
    )
    others = [answer for answer in refused if answer.model_type not in (*of_stages, *entwined, *of_more)]
    return "\n".join(
        [
            "# Vision models of Transformers",
            "",
            f"`AutoModel` of Transformers {transformers.__version__} knows {len(known)} types of models that take "
            "images. `python scripts/transformers_vision_models.py` tries each of them in its default configuration "
            "and writes this page. [Features of images](image-features.md#vision-models-of-transformers) explains "
            "`TransformersVisionExtractor`. If timm has the model too, prefer `VisionExtractor`: it decodes images "
            "once for all models.",
            "",
            f"## {len(giving)} give features",
            "",
            f"For the {len(TESTED)} types with a remark, tests compare tiny models with Transformers' own "
            "`output_hidden_states`, pooled by hand, to 1e-5. For the others, `verify --parity` makes this comparison "
            "for your file. A model of images and text gives the features of its vision model.",
            "",
            "| type | vision model | tokens before the patches | poolings | `norm` | |",
            "| --- | --- | --: | --- | --- | --- |",
            *(row(answer) for answer in giving),
            "",
            "Poolings `tokens` and `gridK` work with all of them except SigLIP 2 NaFlex, whose patches have no grid of "
            "fixed size. The numbers of tokens are those of the default configuration; they change with the number of "
            "registers. A model of images of different sizes (Pixtral) gives features only if its processor makes all "
            "images the same size.",
            "",
            f"## {len(refused)} are refused before a run",
            "",
            f"{len(of_stages)} have stages of different widths, or configurations without the number of blocks; timm "
            "has the stages of many of them:",
            "",
            ", ".join(of_stages) + ".",
            "",
            f"{len(entwined)} have no part that takes only images, and {len(of_more)} can't run on the pixels of one "
            "image, because they need videos, texts, masks, queries or the sizes of tiles:",
            "",
            ", ".join(entwined) + "; " + ", ".join(of_more) + ".",
            "",
            "| type | reason |",
            "| --- | --- |",
            *(f"| {answer.model_type} | {short(answer.reason)} |" for answer in others),
            "",
            f"{len(unknown)} were not tested, because no model can be built from the default configuration:",
            "",
            ", ".join(unknown) + ".",
            "",
        ]
    )


def row(answer: Answer) -> str:
    pools = ", ".join(f"`{pool}`" for pool in answer.pools.split(", "))
    norm = "yes" if answer.has_norm else ""
    remark = TESTED.get(answer.model_type, "")
    return f"| {answer.model_type} | {answer.tower} | {answer.n_prefix} | {pools} | {norm} | {remark} |"


def short(reason: str) -> str:
    """Return a reason without the setting, the name of the model and what to use instead."""
    return reason.removeprefix("model.name: ").partition("; if timm has")[0]


if __name__ == "__main__":
    main()
