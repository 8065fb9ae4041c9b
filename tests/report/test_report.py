"""The report as a whole: its numbers against oracles, its page, and what it says of features that are not sound."""

import re
import shutil

import numpy as np
import pytest
from helpers import oracles

from lit_extract.common.errors import InputError
from lit_extract.report import sources, stimuli
from lit_extract.report.make import report
from lit_extract.storage.features import Features
from lit_extract.storage.finalize import finalize


def pair_of(numbers, first, second):
    return next(pair for pair in numbers["pairs"] if pair["models"] == [first, second])


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
    check_pair(pair_of(found, labels["avg"], labels["cls"]), feats["avg"], feats["cls"], k=1)
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


def test_rows_are_matched_by_id_not_by_place(save, random_features, numbers):
    vision, language = random_features(seed=1), random_features(seed=2, layers=2, dim=9)
    order = np.random.default_rng(5).permutation(24)
    save("vit", vision)
    extra = random_features(n=3, seed=3, layers=2, dim=9)
    save("llm", np.concatenate([extra, language[order]]), ids=[90, 91, 92, *order.tolist()], kind="language")
    found = numbers()
    assert [model["kind"] for model in found["models"]] == ["vision", "language"]
    assert found["sampled"] == list(range(24))
    check_pair(pair_of(found, "vit", "llm"), vision, language, k=4)
    (note,) = [note for note in found["notes"] if "in all compared files" in note]
    assert note.startswith("24 stimuli ")
    assert "llm (27)" in note


def test_shuffled_is_far_below_measured_where_models_agree(save, random_features, numbers):
    save("a", random_features(n=60, seed=1))
    save("b", random_features(n=60, seed=2))
    pair = pair_of(numbers(permutations=50), "a", "b")
    for measure in ("cka", "mutual_neighbours"):
        assert pair[measure]["best"] > 1.5 * pair[measure]["best_shuffled"]["p95"]
        assert pair[measure]["best_shuffled"]["mean"] >= pair[measure]["last_shuffled"]["mean"]
    assert pair["cka"]["last_shuffled"]["mean"] == pytest.approx(0, abs=0.05)
    assert pair["mutual_neighbours"]["last_shuffled"]["mean"] == pytest.approx(10 / 59, rel=0.1)


def test_shuffled_is_the_measure_of_shuffled_rows_with_the_best_layers_chosen_anew(save, random_features, numbers):
    a, b = random_features(seed=1, layers=2), random_features(seed=2, layers=2)
    save("a", a)
    save("a", b, untrained=True)
    pair = pair_of(numbers(permutations=4, seed=8), "a", "a (untrained)")
    generator = np.random.default_rng(8)
    values = []
    for _ in range(4):
        shuffled = b[generator.permutation(24)]
        values.append([[oracles.cka(a[:, i], shuffled[:, j]) for j in range(2)] for i in range(2)])
    values = np.array(values)
    best, last = values.max(axis=(1, 2)), values[:, 1, 1]
    assert not np.allclose(best, last)
    same = [values[:, k, k] for k in range(2)]
    found = pair["cka"]
    summaries = [found["best_shuffled"], found["last_shuffled"], *found["same_layer_shuffled"]]
    for summary, expected in zip(summaries, [best, last, *same], strict=True):
        expected = np.mean(expected), np.percentile(expected, 95)
        assert (summary["mean"], summary["p95"]) == pytest.approx(expected, abs=1e-5)


def test_trained_meets_its_untrained_twin_and_no_other(save, random_features, numbers):
    save("vit", random_features(seed=1))
    save("vit", random_features(seed=2), untrained=True)
    save("deit", random_features(seed=3), untrained=True)
    found = numbers()
    twins = [pair["models"] for pair in found["pairs"] if pair["trained_and_untrained"]]
    assert twins == [["vit", "vit (untrained)"]]
    pair = pair_of(found, "vit", "vit (untrained)")
    assert len(pair["cka"]["same_layer_shuffled"]) == 3


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
    check_pair(pair_of(first, "a", "b"), *feats, k=4)


def test_no_more_is_read_than_the_last_layer_and_a_sample(save, random_features, numbers, monkeypatch):
    """Counted number by number: a file of many rows is not read whole."""
    n, depth, dim, rows = 3000, 6, 8, 50
    save("big", random_features(n=n, layers=depth, dim=dim))
    pieces = []

    class Counted:
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def __getitem__(self, chosen):
            pieces.append(self.values[chosen].numel())
            return self.values[chosen]

    whole = Features.layer
    monkeypatch.setattr(Features, "layer", lambda self, layer: Counted(whole(self, layer)))
    monkeypatch.setattr(Features, "feats", property(lambda self: pytest.fail("the whole tensor is asked for")))
    numbers(rows=rows)
    assert max(pieces) <= 1024 * dim
    # the last layer of all rows; of each layer the sample
    assert sum(pieces) == n * dim + depth * rows * dim


def test_identical_rows_are_reported_when_their_stimuli_differ(save, random_features, numbers, cli, tmp_path):
    feats = random_features()
    feats[17] = feats[3]
    save("vit", feats)
    found = numbers()
    rows = found["models"][0]["rows"]
    assert (rows["identical"], rows["identical_though_different"], rows["examples"]) == (2, 2, [[3, 17]])
    assert found["warnings"] == ["vit: 2 rows are identical though their stimuli are not: 3 = 17"]
    code, out, _ = cli("report", tmp_path / "demo" / "all", "--out", tmp_path / "report", "--permutations", 2)
    assert code == 3
    assert "beware: vit: 2 rows are identical though their stimuli are not: 3 = 17" in out
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Look into this" in page
    assert found["warnings"][0] in page


def test_identical_rows_of_identical_captions_are_in_order(save, random_features, numbers, tmp_path):
    feats = random_features()
    feats[17] = feats[3]
    save("llm", feats, kind="language")
    captions = tmp_path / "captions.csv"
    texts = [f"caption {k}" for k in range(24)]
    texts[17] = texts[3]
    captions.write_text("demo_id,caption\n" + "".join(f"{k},{text}\n" for k, text in enumerate(texts)))
    found = numbers(captions=str(captions))
    assert (found["models"][0]["rows"]["identical"], found["warnings"]) == (2, [])
    (warning,) = numbers()["warnings"]
    assert "without --captions" in warning


def test_rows_and_layers_that_are_not_finite(save, random_features, numbers, stored):
    feats = random_features()
    feats[5] = np.nan
    feats[8, 1, 2] = np.inf
    save("some_rows", feats)
    layer = random_features(seed=2)
    layer[:, 1] = np.nan
    save("a_layer", layer)
    found = numbers()
    a_layer, some_rows = found["models"]
    assert 5 not in found["sampled"]
    assert 8 not in found["sampled"]
    assert len(found["sampled"]) == 22
    assert (some_rows["rows"]["bad_input"], some_rows["rows"]["not_finite"]) == (1, 1)
    assert [layer["not_finite"] for layer in a_layer["layers"]] == [0, 22, 0]
    assert a_layer["layers"][1]["effective_rank"] is None
    pair = pair_of(found, "a_layer", "some_rows")
    assert pair["cka"]["layers"][1] == [None, None, None]
    chosen = found["sampled"]
    assert pair["cka"]["layers"][0][0] == pytest.approx(oracles.cka(layer[chosen, 0], feats[chosen, 0]), abs=1e-5)
    assert any("not compared, in blocks.1" in warning for warning in found["warnings"])


def test_a_model_without_any_number_is_no_crash(save, numbers, page, random_features):
    save("nothing", np.full((24, 3, 6), np.nan))
    save("vit", random_features())
    found = numbers()
    assert any("nothing: 24 rows are NaN" in warning for warning in found["warnings"])
    assert pair_of(found, "nothing", "vit")["cka"]["best"] is None
    assert 'id="model-1-nothing"' in page()


def test_a_constant_layer_is_not_compared(save, random_features, numbers):
    feats = random_features()
    feats[:, 0] = 0.5
    save("a", feats, layers=["embeddings", "blocks.0", "blocks.1"])
    save("b", feats)
    found = numbers()
    assert found["models"][0]["layers"][0]["constant"]
    pair = pair_of(found, "a", "b")
    assert pair["mutual_neighbours"]["layers"][0] == [None, None, None]
    assert pair["mutual_neighbours"]["layers"][1][1] == 1
    assert "a: the same for all stimuli in embeddings, so not compared there." in found["notes"]


def test_one_model_of_one_layer(save, random_features, page):
    save("vit", random_features(layers=1))
    html = page()
    assert "Between models" not in html
    assert "Dissimilarity of stimuli" in html
    assert "Look into this" not in html


def test_an_unfinished_run_counts_with_what_is_done(save, random_features, numbers):
    feats = random_features()
    save("done", feats)
    save("going_on", feats, shards=[0, 2, 3])
    found = numbers()
    assert found["sampled"] == [*range(5), *range(10, 20)]
    assert pair_of(found, "done", "going_on")["cka"]["layers"][0][0] == pytest.approx(1, abs=1e-6)
    assert "going_on: 15 of 24 rows are done; the run is not finished." in found["notes"]


def test_a_kept_store_is_not_shown_beside_its_file(save, random_features, numbers):
    store = save("vit", random_features(), shards=range(5))
    finalize(store, keep_store=True)
    assert store.exists()
    assert [model["file"] for model in numbers()["models"]] == ["vit_pool-cls.pt"]


def test_files_of_other_ids_are_not_compared(save, random_features, numbers):
    save("a", random_features(seed=1))
    save("b", random_features(seed=2))
    save("other", random_features(seed=3), ids=[f"image_{k}.jpg" for k in range(24)])
    found = numbers()
    assert [pair["models"] for pair in found["pairs"]] == [["a", "b"]]
    assert "Not compared with the others, as they have few stimuli in common with them: other." in found["notes"]


def test_a_file_that_is_none_is_left_out_with_its_reason(save, random_features, numbers, tmp_path):
    save("vit", random_features())
    (tmp_path / "demo" / "all" / "broken.pt").write_bytes(b"no features")
    (warning,) = numbers()["warnings"]
    assert warning.startswith("left out: broken.pt: ")


def test_two_files_that_would_be_called_the_same_are_told_apart(save, random_features, numbers, tmp_path):
    file = save("vit", random_features())
    shutil.copy(file, file.with_name("copy.pt"))
    assert [model["label"] for model in numbers()["models"]] == ["vit [copy.pt]", "vit [vit_pool-cls.pt]"]


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
    with pytest.raises(InputError, match=r"too few stimuli for a report: .*vit: 3 rows; 4 are needed"):
        numbers()


def test_a_missing_package_is_one_clear_error(save, random_features, page, monkeypatch):
    save("vit", random_features())
    monkeypatch.setattr("lit_extract.report.make.find_spec", lambda name: None if name == "rsatoolbox" else True)
    with pytest.raises(InputError, match=r"report needs rsatoolbox: pip install 'lit-extract\[report\]'"):
        page()


def test_without_pictures_ids_are_shown_and_it_is_said(save, random_features, page, monkeypatch):
    def elsewhere(*_):
        raise InputError("data.root: where is it?")

    monkeypatch.setattr(stimuli, "load_dataset", elsewhere)
    save("vit", random_features(), ids=[f"image <{k}>" for k in range(24)])
    html = page()
    assert "No pictures: where is it?" in html
    assert '<span class="id">image &lt;' in html


def test_the_page_stands_alone(save, random_features, page, tmp_path):
    save("vit", random_features(seed=1))
    save("vit", random_features(seed=2), untrained=True)
    save("llm", random_features(seed=3), kind="language")
    captions = tmp_path / "captions.csv"
    captions.write_text("demo_id,caption\n" + "".join(f"{k},<script>alert({k})</script>\n" for k in range(24)))
    html = page(captions=str(captions))
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert all(source.startswith("data:image/") for source in re.findall(r'<img[^>]* src="([^"]*)"', html))
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))
    assert not re.search(r"@import|<link|<script|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    inner = re.findall(r'<a href="#([^"]+)"', html)
    assert set(inner) <= set(ids)
    assert set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html))
    for one, two in re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html):
        assert (one or two) in ids
    pictures = set(re.findall(r'<a href="(figures/[^"]+)"', html))
    assert pictures == {f"figures/{path.name}" for path in (tmp_path / "report" / "figures").iterdir()}
    assert len(pictures) == 3 * 3 + 3 + 2 + 1
    assert html.count('src="data:image/jpeg') == 3 * 4 * (1 + 3 * 5)
    for section in ("overview", "vision-language", "trained-untrained", "measures"):
        assert section in ids


def test_a_new_report_leaves_nothing_of_the_old_one(save, random_features, page, tmp_path):
    other = save("deit", random_features(seed=2))
    save("vit", random_features(seed=1))
    page()
    other.unlink()
    page()
    assert not [path for path in (tmp_path / "report" / "figures").iterdir() if "deit" in path.name]


@pytest.mark.parametrize(
    ("ids", "common", "compared"),
    [
        ([[1, 2, 3, 4], [4, 3, 2, 1]], [1, 2, 3, 4], [True, True]),
        ([list(range(30)), list(range(10, 60)), list(range(10, 60))], list(range(10, 30)), [True, True, True]),
        ([list(range(30)), list(range(30)), list(range(27, 90))], list(range(30)), [True, True, False]),
        ([list(range(6)), ["a", "b", "c", "d"]], list(range(6)), [True, False]),
        ([list("abcdefgh"), list("fghabxyz")], list("abfgh"), [True, True]),
    ],
)
def test_shared_stimuli(ids, common, compared):
    found, is_compared = sources.shared_stimuli(ids)
    assert sorted(found) == sorted(common)
    assert is_compared == compared


def test_sampling_keeps_the_order_of_the_dataset():
    items = [f"s{k}" for k in range(100)]
    chosen = sources.sample(items, 10, seed=0)
    assert chosen == sorted(chosen, key=items.index)
    assert len(set(chosen)) == 10
    assert sources.sample(items, 100, seed=0) == items


def test_a_massive_first_token_in_the_average_is_warned_of_with_the_way_out(save, numbers):
    generator = np.random.default_rng(0)
    lengths = generator.integers(6, 30, size=60)
    sums = np.stack([generator.normal(size=(length, 3, 16)).sum(axis=0) for length in lengths])
    massive = np.zeros((3, 16))
    massive[1:, 3] = 500  # the first layer has none
    save("plain", sums / lengths[:, None, None], kind="language", pool="avg", lengths=lengths)
    save("last", (sums + massive) / lengths[:, None, None], kind="language", pool="last", lengths=lengths)
    save("sink", (sums + massive) / lengths[:, None, None], kind="language", pool="avg", lengths=lengths)
    shorter = (sums + massive) / (lengths - 1)[:, None, None]
    save("left", shorter, kind="language", pool="avg", lengths=lengths, exclude_bos="first")
    found = numbers()
    warnings = [warning for warning in found["warnings"] if "1 / number of tokens" in warning]
    assert [warning.partition(":")[0] for warning in warnings] == ["left", "sink"]
    assert warnings[1].endswith(
        "in blocks.1, blocks.2; leave it out with --model.exclude_bos true, or first for a tokenizer without BOS"
    )
    assert "--model.exclude_bos" not in warnings[0]
    (sink,) = [model for model in found["models"] if model["label"] == "sink"]
    assert [layer["follows_length"] for layer in sink["layers"]] == [False, True, True]
