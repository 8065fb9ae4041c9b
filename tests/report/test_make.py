"""The report as a whole: its numbers against oracles, rows matched by id, and wrong settings."""

import numpy as np
import pytest
from helpers import oracles
from PIL import Image

from lit_extract.common.errors import InputError
from lit_extract.report.make import report


def check_pair(pair, a, b, k):
    """All layers of two models against the oracles; (n, L, D) each, rows matched."""
    for i, j in np.ndindex(a.shape[1], b.shape[1]):
        one, two = a[:, i], b[:, j]
        assert pair["cka"]["layers"][i][j] == pytest.approx(oracles.cka(one, two), abs=1e-5)
        assert pair["mutual_neighbours"]["layers"][i][j] == pytest.approx(
            oracles.mutual_neighbours(one, two, k), abs=1e-6
        )
        assert pair["rsa"]["layers"][i][j] == pytest.approx(oracles.rsa(one, two), abs=1e-5)
    for measure in ("cka", "mutual_neighbours", "rsa"):
        layers = np.array(pair[measure]["layers"])
        assert pair[measure]["best"] == pytest.approx(layers.max(), abs=1e-6)
        assert pair[measure]["last"] == pytest.approx(layers[-1, -1], abs=1e-6)
        place = np.unravel_index(layers.argmax(), layers.shape)
        assert pair[measure]["best_layers"] == [f"blocks.{k}" for k in place]


def test_numbers_of_a_real_run_are_those_of_the_oracles(run_job, image_folder, numbers, stored):
    files = {pool: run_job(pool=pool).files[0] for pool in ("cls", "avg")}
    found = numbers(files["cls"].parent, root=str(image_folder))
    assert found["warnings"] == []
    assert (found["n_sampled"], found["k"]) == (7, 1)
    labels = {model["pool"]: model["label"] for model in found["models"]}
    assert labels == {pool: f"test_vit.r160_in1k {pool} (untrained)" for pool in files}
    feats = {pool: stored(file) for pool, file in files.items()}
    check_pair(oracles.pair_of(found, labels["avg"], labels["cls"]), feats["avg"], feats["cls"], k=1)
    for model in found["models"]:
        values = feats[model["pool"]]
        for k, layer in enumerate(model["layers"]):
            lengths = np.linalg.norm(values[:, k].astype(np.float64), axis=1)
            norms = [layer["norms"][name] for name in ("p5", "median", "p95")]
            assert norms == pytest.approx(np.percentile(lengths, [5, 50, 95]), rel=1e-6)
            assert layer["effective_rank"] == pytest.approx(oracles.effective_rank(values[:, k]), rel=1e-5)
            assert model["cka"][k][0] == pytest.approx(oracles.cka(values[:, k], values[:, 0]), abs=1e-5)
        last = [entry for entry in model["neighbours"] if entry["layer"] == "blocks.5"]
        assert len(last) == 4
        for entry in last:
            row = int(entry["stimulus"].removesuffix(".png"))
            assert entry["nearest"] == [f"{near}.png" for near in oracles.nearest(values[:, 5], 5)[row]]


def test_features_of_other_images_are_a_warning(run_job, image_folder, numbers, tmp_path):
    (file,) = run_job(pool="cls").files
    Image.effect_noise((50, 50), 90).convert("RGB").save(image_folder / "2.png")
    (other,) = run_job(pool="avg", output_dir=tmp_path / "later").files
    other.rename(file.with_name(other.name))
    (warning,) = numbers(file.parent, root=str(image_folder))["warnings"]
    assert warning == f"{file.name} was made from other images than the files before it: 1 of 7 differ: 2.png"


def test_rows_are_matched_by_id_not_by_place(save, random_features, numbers):
    vision, language = random_features(seed=1), random_features(seed=2, layers=2, dim=9)
    order = np.random.default_rng(5).permutation(24)
    save("vit", vision)
    extra = random_features(n=3, seed=3, layers=2, dim=9)
    save("llm", np.concatenate([extra, language[order]]), ids=[90, 91, 92, *order.tolist()], kind="language")
    found = numbers()
    assert [model["kind"] for model in found["models"]] == ["vision", "language"]
    assert found["sampled"] == list(range(24))
    check_pair(oracles.pair_of(found, "vit", "llm"), vision, language, k=4)
    (note,) = [note for note in found["notes"] if "in all compared files" in note]
    assert note.startswith("24 stimuli ")
    assert "llm (27)" in note


def test_the_sample_is_seeded_and_the_same_for_all_models(save, random_features, numbers):
    save("a", random_features(n=60, seed=1))
    save("b", random_features(n=60, seed=2))
    first, again, other = (numbers(rows=20, seed=seed) for seed in (1, 1, 2))
    assert len(set(first["sampled"])) == 20
    assert first["sampled"] == sorted(first["sampled"])
    first.pop("created"), again.pop("created")
    assert first == again
    assert first["sampled"] != other["sampled"]
    feats = random_features(n=60, seed=1)[first["sampled"]], random_features(n=60, seed=2)[first["sampled"]]
    check_pair(oracles.pair_of(first, "a", "b"), *feats, k=4)


def test_an_unfinished_run_counts_with_what_is_done(save, random_features, numbers):
    feats = random_features()
    save("done", feats)
    save("going_on", feats, shards=[0, 2, 3])
    found = numbers()
    assert found["sampled"] == [*range(5), *range(10, 20)]
    assert oracles.pair_of(found, "done", "going_on")["cka"]["layers"][0][0] == pytest.approx(1, abs=1e-6)
    assert "going_on: 15 of 24 rows are done; the run is not finished." in found["notes"]


def test_files_of_other_ids_are_not_compared(save, random_features, numbers):
    save("a", random_features(seed=1))
    save("b", random_features(seed=2))
    save("other", random_features(seed=3), ids=[f"image_{k}.jpg" for k in range(24)])
    found = numbers()
    assert [pair["models"] for pair in found["pairs"]] == [["a", "b"]]
    assert "Not compared with the others, because they share too few stimuli: other." in found["notes"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 3}, "rows: 3; must be 4 or more"),
        ({"permutations": 0}, "permutations: 0; must be 1 or more"),
        ({"folder": "nowhere"}, "folder: .*nowhere' is not a folder"),
        ({"folder": "."}, "folder: .* has no features, neither .pt nor .zarr"),
        ({"root": "nowhere"}, "data.root: .*nowhere' is not a folder"),
        ({"captions": "nowhere.csv"}, "data.captions: no file 'nowhere.csv'"),
        ({"out": "full"}, "out: 'full' contains something other than a report"),
        ({"out": "full/file"}, "out: 'full/file' is a file"),
    ],
)
def test_wrong_settings_are_one_clear_error(save, random_features, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    save("vit", random_features())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("someone's work")
    with pytest.raises(InputError, match=message):
        report(**{"folder": "demo/all", "out": "report", **settings})
    assert (tmp_path / "full" / "file").read_text() == "someone's work"


def test_too_few_stimuli_are_one_clear_error(save, random_features, numbers):
    save("vit", random_features(n=3))
    with pytest.raises(InputError, match=r"too few stimuli for a report; left out: .*vit: 3 rows; 4 are needed"):
        numbers()


def test_a_missing_package_is_one_clear_error(save, random_features, page, monkeypatch):
    save("vit", random_features())
    monkeypatch.setattr("lit_extract.report.make.find_spec", lambda name: None if name == "rsatoolbox" else True)
    with pytest.raises(InputError, match=r"report needs rsatoolbox: pip install 'lit-extract\[report\]'"):
        page()
