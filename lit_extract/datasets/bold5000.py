"""BOLD5000 (Chang et al., 2019, doi:10.1038/s41597-019-0052-3): scenes, COCO and ImageNet."""

from lit_extract.datasets.dataset import Dataset

DATASET = Dataset(
    name="bold5000",
    title="BOLD5000",
    data_module="BOLD5000DataModule",
    root_variable="BOLD_DATASET",
    index=("preprocessed/images.parquet", "preprocessed/images.csv"),
    columns=("bold_id", "image_name", "stim_source", "image_path"),
    image_column="image_path",
    id_column="bold_id",
    id_meaning="bold_id of preprocessed/images",
)
