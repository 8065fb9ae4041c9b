"""LightningDataModules: captions, images to caption, and the images of each dataset, such as ``NSDDataModule``."""

from lit_extract.data.captions import CaptionDataModule
from lit_extract.data.images import DATA_MODULES, ImageDataModule
from lit_extract.data.sources import ImageSourceDataModule

__all__ = ["CaptionDataModule", "ImageDataModule", "ImageSourceDataModule"]
globals().update(DATA_MODULES)
