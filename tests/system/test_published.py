"""The commands on datasets as they are downloaded, and again after an index was written."""

import pytest
import torch
from helpers.published import (
    CONCEPTS,
    NSD_BUCKET,
    NSD_INFO,
    bold_rows,
    nsd_design,
    nsd_info,
    things_paths,
    write_bold,
    write_brick,
    write_things,
)
from helpers.runs import REPOSITORY


def publish_nsd(root):
    write_brick(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", 8, side=16)
    (root / NSD_BUCKET).mkdir(parents=True)
    nsd_info(*nsd_design()).iloc[:20].to_csv(root / NSD_BUCKET / NSD_INFO, index=False)


PUBLISH = {
    "things": lambda root: write_things(root, things_paths("object_images"), CONCEPTS),
    "bold5000": lambda root: write_bold(root, "BOLD5000_Stimuli/", missing=("zoo3.jpg",)),
    "nsd": publish_nsd,
}
IDS = {
    "things": list(range(12)),
    "bold5000": bold_rows(missing=("zoo3.jpg",))["bold_id"].tolist(),
    "nsd": list(range(8)),
}


@pytest.mark.parametrize("dataset", PUBLISH)
def test_an_index_changes_neither_features_nor_their_provenance(tmp_path, cli, dataset):
    root = tmp_path / dataset
    PUBLISH[dataset](root)
    config = REPOSITORY / "configs" / dataset / "vision.yaml"
    model = ("--model.name", "test_vit.r160_in1k", "--model.untrained", "true", "--trainer.accelerator", "cpu")
    predict = ("predict", "--config", config, *model, "--data.root", root, "--output_dir", tmp_path / "out")
    code, out, err = cli(*predict, "--data.num_workers", "0")
    assert code == 0, out + err
    (file,) = (tmp_path / "out" / dataset).glob("*/*.pt")
    assert torch.load(file, weights_only=True)["stimulus_ids"] == IDS[dataset]

    before = file.read_bytes()
    assert cli("index", dataset, "--root", root)[0] in (0, 3)
    code, out, err = cli(*predict, "--data.num_workers", "0")
    assert code == 0, out + err
    assert "already done" in out + err
    assert file.read_bytes() == before

    code, out, err = cli("report", file.parent, "--root", root, "--out", tmp_path / "report", "--permutations", "2")
    assert code in (0, 3), out + err
    assert "pictures" not in out, "which it would miss"
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
