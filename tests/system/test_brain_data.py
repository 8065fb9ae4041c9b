"""docs/brain-data.md runs from beginning to end, and finds what its simulation has put in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.markdown import blocks_of, run_page
from PIL import Image
from scipy.spatial.distance import pdist

PAGE = Path(__file__).parents[2] / "docs" / "brain-data.md"
FIGURE = PAGE.parent / "images" / "brain-data.png"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page defines, run in a folder of its own, in which its files are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        yield run_page(PAGE)


def test_all_but_nsd_is_run():
    (not_run,) = [block for block in blocks_of(PAGE) if block.marks != "python"]
    assert not_run.marks == "python notest"
    assert 'load_trials("nsd", 1' in not_run.code
    compile(not_run.code, PAGE, "exec")


def test_trials_are_those_of_an_experiment(page):
    trials = page["trials"]
    assert trials["trial"].tolist() == list(range(864))
    assert trials[["session", "run"]].drop_duplicates().to_numpy().tolist() == [
        [session, run] for session in range(1, 5) for run in range(1, 5)
    ]
    assert (trials.groupby("stimulus_id")["repetition"].apply(list).map(tuple) == (0, 1, 2, 3)).all()


def test_the_known_layer_wins_below_the_ceiling(page):
    (lower, upper), rsa, encoding = page["rsa_ceiling"], page["rsa_scores"], page["encoding_scores"]
    assert rsa.idxmax() == encoding.idxmax() == page["known"] == "blocks.3"
    assert lower - 0.05 < rsa.max() < upper
    assert page["ceiling"] - 0.1 < encoding.max() < page["ceiling"]


def test_it_wins_with_other_voxels_too(page):
    trials, wins = page["trials"], []
    for seed in range(1, 6):
        voxels = page["simulate_voxels"](trials, seed)
        wins.append({page["rsa"](trials, voxels)[0].idxmax(), page["encode"](trials, voxels).idxmax()})
    assert wins.count({page["known"]}) >= 4


def test_the_ceiling_is_that_of_the_simulation(page):
    """Signal and noise have the same variance, and four repetitions are averaged."""
    assert page["ceiling"] == pytest.approx(1 / (1 + 1 / 4), abs=0.01)


def test_shifted_by_one_nothing_wins(page):
    assert page["shifted_rsa_scores"].abs().max() < 0.1
    assert page["shifted_encoding_scores"].max() < 0.02
    assert page["shifted_ceiling"] < 0.1
    assert page["shifted_rsa_ceiling"][0] < 0.1


def test_scores_are_of_rows_matched_by_id(page):
    """RSA again, from the features file by torch and SciPy, with a dictionary of ids."""
    content = torch.load(page["files"][0], weights_only=True)
    row = {stimulus: number for number, stimulus in enumerate(content["stimulus_ids"])}
    trials, voxels = page["trials"], page["voxels"]
    for number, layer in enumerate(content["layers"]):
        correlations = []
        for repetition in range(4):
            chosen = np.flatnonzero(trials["repetition"] == repetition)
            rows = [row[stimulus] for stimulus in trials["stimulus_id"].iloc[chosen]]
            of_layer = pdist(content["feats"][rows, number].numpy(), "sqeuclidean")
            correlations.append(np.corrcoef(of_layer, pdist(voxels[chosen], "sqeuclidean"))[0, 1])
        assert page["rsa_scores"][layer] == pytest.approx(np.mean(correlations), abs=1e-4)


def test_the_figure_is_the_committed_one(page):
    made, committed = (np.asarray(Image.open(path).convert("L"), float) for path in ("brain-data.png", FIGURE))
    assert made.shape == committed.shape
    assert abs(made - committed).mean() < 0.5  # without the shift it is 1.2
    assert FIGURE.stat().st_size < 150_000
