"""The photographs that ship with the package; their licences are in ``demo_images/LICENSES.md``."""

from pathlib import Path

from lit_extract.datasets.dataset import Dataset

DATASET = Dataset(
    name="demo",
    title="The photographs that ship with the package",
    data_module="DemoDataModule",
    ships_at=Path(__file__).parent / "demo_images",
    index=("photographs.csv",),
    columns=("demo_id", "name", "path"),
    image_column="path",
    id_column="demo_id",
    id_meaning="demo_id of demo_images/photographs.csv",
)
