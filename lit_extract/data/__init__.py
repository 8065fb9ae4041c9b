"""LightningDataModules: one a dataset, thin, on a shared base."""

from lit_extract.data.captions import CaptionDataModule
from lit_extract.data.images import (
    BOLD5000DataModule,
    DemoDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    NSDDataModule,
    THINGSDataModule,
)
from lit_extract.data.sources import ImageSourceDataModule

__all__ = [
    "BOLD5000DataModule",
    "CaptionDataModule",
    "DemoDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageSourceDataModule",
    "NSDDataModule",
    "THINGSDataModule",
]
