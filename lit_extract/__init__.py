"""lit-extract: activations of every transformer block, for the stimuli of brain datasets.

The names below, and the data module of each dataset, such as ``NSDDataModule``, are imported when first used, so that
``import lit_extract`` costs nothing and a stimulus table can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "load_dataset": "lit_extract.datasets",
    "load_trials": "lit_extract.datasets",
    "load_features": "lit_extract.storage.features",
    "extract": "lit_extract.jobs.extraction",
    "predict_trainer": "lit_extract.jobs.trainer",
    "caption": "lit_extract.captioning.job",
    "load_captions": "lit_extract.datasets",
    "VisionExtractor": "lit_extract.modules.vision",
    "TransformersVisionExtractor": "lit_extract.modules.transformers_vision",
    "LanguageExtractor": "lit_extract.modules.language",
    "TextEncoderExtractor": "lit_extract.modules.text_encoder",
    "VisionLanguageExtractor": "lit_extract.modules.vision_language",
    "Captioner": "lit_extract.captioning.captioner",
    "CaptionDataModule": "lit_extract.data",
    "ImageSourceDataModule": "lit_extract.data",
}

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from lit_extract.captioning.captioner import Captioner as Captioner
    from lit_extract.captioning.job import caption as caption
    from lit_extract.data import CaptionDataModule as CaptionDataModule
    from lit_extract.data import ImageDataModule as ImageDataModule
    from lit_extract.data import ImageSourceDataModule as ImageSourceDataModule
    from lit_extract.datasets import load_captions as load_captions
    from lit_extract.datasets import load_dataset as load_dataset
    from lit_extract.datasets import load_trials as load_trials
    from lit_extract.jobs.extraction import extract as extract
    from lit_extract.jobs.trainer import predict_trainer as predict_trainer
    from lit_extract.modules.language import LanguageExtractor as LanguageExtractor
    from lit_extract.modules.text_encoder import TextEncoderExtractor as TextEncoderExtractor
    from lit_extract.modules.transformers_vision import TransformersVisionExtractor as TransformersVisionExtractor
    from lit_extract.modules.vision import VisionExtractor as VisionExtractor
    from lit_extract.modules.vision_language import VisionLanguageExtractor as VisionLanguageExtractor
    from lit_extract.storage.features import load_features as load_features


def __dir__() -> list[str]:
    from lit_extract.datasets import DATASETS

    return ["__version__", *_HOMES, *(dataset.data_module for dataset in DATASETS.values())]


def __getattr__(name: str) -> "type[ImageDataModule]":  # type checkers know the others: it is one of a dataset
    if name == "__all__":
        return __dir__()  # type: ignore[return-value]
    if name in _HOMES or name.endswith("DataModule"):
        return getattr(import_module(_HOMES.get(name, "lit_extract.data")), name)  # type: ignore[no-any-return]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
