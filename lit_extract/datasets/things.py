"""THINGS (Hebart et al., 2019, doi:10.1371/journal.pone.0223792): 26,107 images of 1,854 objects."""

from lit_extract.datasets.dataset import Dataset

DATASET = Dataset(
    name="things",
    title="THINGS",
    data_module="THINGSDataModule",
    root_variable="THINGS_DATASET",
    index=("preprocessed/images.csv",),
    columns=("things_id", "image_name", "category", "category_id", "image_category_index", "image_path"),
    image_column="image_path",
    id_column="things_id",
    id_meaning="things_id of preprocessed/images.csv",
)
