"""Features to certify, faults in them, and how far a certificate's limits are exceeded."""

import timm
import torch
from helpers.language_models import save_captions, save_model

from lit_extract import CaptionDataModule, LanguageExtractor, extract
from lit_extract.jobs.trainer import predict_trainer

TINY = "test_vit.r160_in1k"
PRECISIONS = ("32-true", "bf16-true")


def run(extractor, data, output, precision="32-true"):
    trainer = predict_trainer("cpu", devices=1, precision=precision)
    return extract(extractor, data, trainer, output_dir=str(output), finalize=True).files


def captions_run(folder, architecture, output, precision="32-true", lengths=(3, 17, 2, 40, 8, 8, 1, 25), **settings):
    if not folder.exists():
        save_model(folder, architecture)
        save_captions(folder / "captions.csv", lengths)
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), **{"pool": ["avg", "last"], "loss": True, **settings})
    return run(extractor, CaptionDataModule(str(folder / "captions.csv"), "test"), output, precision)


def given(folder):
    return "--checkpoint", folder, "--captions", folder / "captions.csv"


def rewrite(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def model_of(seed=3):
    torch.manual_seed(seed)
    return timm.create_model(TINY).eval()


def roll(content):
    content["feats"] = content["feats"].roll(1, dims=0)


def exceeds(certificate):
    """How many times the limit of the worst layer's error is exceeded."""
    limits = certificate["limits"]
    return max(
        max(layer["relative_error"] / limits["relative_error"], (layer["times_rounding"] or 0) / 3)
        for layer in certificate["layers"]
    )
