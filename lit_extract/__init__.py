"""lit-extract: activations of every transformer block, for the stimuli of brain datasets.

The names below are imported when first used, so that ``import lit_extract`` costs nothing and a
stimulus table can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load_dataset": "lit_extract.datasets",
    "load_features": "lit_extract.storage.features",
    "extract": "lit_extract.jobs.extraction",
    "predict_trainer": "lit_extract.jobs.trainer",
    "caption": "lit_extract.captioning.job",
    "load_captions": "lit_extract.datasets",
    "VisionExtractor": "lit_extract.modules.vision",
    "LanguageExtractor": "lit_extract.modules.language",
    "Captioner": "lit_extract.captioning.captioner",
    "CaptionDataModule": "lit_extract.data",
    "ImageSourceDataModule": "lit_extract.data",
    "NSDDataModule": "lit_extract.data",
    "BOLD5000DataModule": "lit_extract.data",
    "THINGSDataModule": "lit_extract.data",
    "ImageFolderDataModule": "lit_extract.data",
    "DemoDataModule": "lit_extract.data",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from lit_extract.captioning.captioner import Captioner as Captioner
    from lit_extract.captioning.job import caption as caption
    from lit_extract.data import BOLD5000DataModule as BOLD5000DataModule
    from lit_extract.data import CaptionDataModule as CaptionDataModule
    from lit_extract.data import DemoDataModule as DemoDataModule
    from lit_extract.data import ImageFolderDataModule as ImageFolderDataModule
    from lit_extract.data import ImageSourceDataModule as ImageSourceDataModule
    from lit_extract.data import NSDDataModule as NSDDataModule
    from lit_extract.data import THINGSDataModule as THINGSDataModule
    from lit_extract.datasets import load_captions as load_captions
    from lit_extract.datasets import load_dataset as load_dataset
    from lit_extract.jobs.extraction import extract as extract
    from lit_extract.jobs.trainer import predict_trainer as predict_trainer
    from lit_extract.modules.language import LanguageExtractor as LanguageExtractor
    from lit_extract.modules.vision import VisionExtractor as VisionExtractor
    from lit_extract.storage.features import load_features as load_features


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lit_extract' has no attribute {name!r}")
