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

__all__ = [
    "BOLD5000DataModule",
    "CaptionDataModule",
    "DemoDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "NSDDataModule",
    "THINGSDataModule",
]
