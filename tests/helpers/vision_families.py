"""Tiny models of Transformers with random weights, one of each family, saved as folders that the extractor opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

SIDES = {"height": 32, "width": 32}
SQUASHED = {"size": SIDES}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": SIDES}

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
GATED = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
}
NAFLEX = {name: value for name, value in VIT.items() if name != "image_size"} | {"num_patches": 16}
VIDEO = {name: value for name, value in GATED.items() if name != "image_size"} | {
    "crop_size": 32,
    "frames_per_clip": 4,
    "pred_hidden_size": 16,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2,
}


def _config(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**settings)


def _processor(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**settings)


# By family: configuration, processor, and how many tokens come before its 16 patches.
FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
    "DINOv2": (_config("Dinov2Config", **GATED), _processor("BitImageProcessor", **CROPPED), 1),
    "DINOv2 with registers": (
        _config("Dinov2WithRegistersConfig", **GATED, num_register_tokens=4),
        _processor("BitImageProcessor", **CROPPED),
        5,
    ),
    "DINOv3": (
        _config("DINOv3ViTConfig", **VIT, num_register_tokens=4),
        _processor("DINOv3ViTImageProcessor", **SQUASHED),
        5,
    ),
    "CLIP": (
        _config("CLIPConfig", vision_config=VIT, text_config=TEXT, projection_dim=24),
        _processor("CLIPImageProcessor", **CROPPED),
        1,
    ),
    "CLIP, vision alone": (_config("CLIPVisionConfig", **VIT), _processor("CLIPImageProcessor", **CROPPED), 1),
    "MetaCLIP 2": (
        _config("MetaClip2Config", vision_config=VIT, text_config=TEXT, projection_dim=24),
        _processor("CLIPImageProcessor", **CROPPED),
        1,
    ),
    "LLaVA, its vision tower": (
        lambda: transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VIT), text_config=transformers.LlamaConfig(**TEXT)
        ),
        _processor("CLIPImageProcessor", **CROPPED),
        1,
    ),
    "BLIP": (
        _config("BlipConfig", vision_config={**VIT, "initializer_range": 0.02}, text_config=TEXT, projection_dim=24),
        _processor("BlipImageProcessor", **SQUASHED),
        1,
    ),
    "TIPSv2, vision alone": (
        _config("Tipsv2VisionConfig", **VIT),
        _processor("Tipsv2ImageProcessor", **SQUASHED),
        2,
    ),
    "SigLIP": (
        _config("SiglipConfig", vision_config=VIT, text_config=TEXT),
        _processor("SiglipImageProcessor", **SQUASHED),
        0,
    ),
    "SigLIP 2 NaFlex": (
        _config("Siglip2Config", vision_config=NAFLEX, text_config=TEXT),
        _processor("Siglip2ImageProcessor", patch_size=8, max_num_patches=16),
        0,
    ),
    "ViT": (_config("ViTConfig", **VIT), _processor("ViTImageProcessor", **SQUASHED), 1),
    "DeiT": (_config("DeiTConfig", **VIT), _processor("DeiTImageProcessor", **CROPPED), 2),
    "BEiT": (_config("BeitConfig", **VIT), _processor("BeitImageProcessor", **SQUASHED), 1),
    "data2vec-vision": (_config("Data2VecVisionConfig", **VIT), _processor("BeitImageProcessor", **SQUASHED), 1),
    "ViT-MSN": (_config("ViTMSNConfig", **VIT), _processor("ViTImageProcessor", **SQUASHED), 1),
    "MLCD": (_config("MLCDVisionConfig", **VIT), _processor("CLIPImageProcessor", **CROPPED), 1),
    "AIMv2": (_config("Aimv2VisionConfig", **VIT), _processor("CLIPImageProcessor", **CROPPED), 0),
    "AIMv2, with text": (
        _config("Aimv2Config", vision_config=VIT, text_config=TEXT, projection_dim=24),
        _processor("CLIPImageProcessor", **CROPPED),
        0,
    ),
    "I-JEPA": (_config("IJepaConfig", **VIT), _processor("ViTImageProcessor", **SQUASHED), 0),
    "V-JEPA 2": (_config("VJEPA2Config", **VIDEO), _processor("VJEPA2VideoProcessor", crop_size=32), 0),
    "Pixio": (_config("PixioConfig", **GATED), _processor("ViTImageProcessor", **SQUASHED), 8),
}

# By family: configuration, processor, and what the error names.
REFUSED: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "ViT-MAE": (
        _config(
            "ViTMAEConfig", **VIT, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2
        ),
        _processor("ViTImageProcessor", **SQUASHED),
        "5 tokens for 16 patches",
    ),
    "Swin": (
        _config(
            "SwinConfig", image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4
        ),
        _processor("ViTImageProcessor", **SQUASHED),
        "VisionExtractor",
    ),
    "DINOv3 ConvNeXt": (
        _config("DINOv3ConvNextConfig", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1]),
        _processor("DINOv3ViTImageProcessor", **SQUASHED),
        "VisionExtractor",
    ),
    "ResNet": (
        _config("ResNetConfig", embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4),
        _processor("ConvNextImageProcessor"),
        "num_hidden_layers",
    ),
    "YOLOS": (
        _config("YolosConfig", **{**VIT, "image_size": [32, 32]}, num_detection_tokens=3),
        _processor("ViTImageProcessor", **SQUASHED),
        "20 tokens for 16 patches",
    ),
    "Pixtral": (
        _config("PixtralVisionConfig", **VIT),
        _processor("PixtralImageProcessor", patch_size=8, size={"longest_edge": 32}),
        "PixtralImageProcessor",
    ),
    "ViTDet": (_config("VitDetConfig", **GATED), _processor("ViTImageProcessor", **SQUASHED), "VisionExtractor"),
    "GPT-2": (
        _config("GPT2Config", n_layer=1, n_embd=8, n_head=2, vocab_size=9),
        _processor("ViTImageProcessor"),
        "images",
    ),
}


def save(folder: Path, config: Callable[[], Any], processor: Callable[[], Any], seed: int = 0) -> Any:
    """Write a model and its processor to a folder; return the model."""
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "token" in name or "position" in name:  # zeros and ones, which hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(5)  # so that images tell
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return model
