"""One model: rows and layers that are not sound, identical rows, massive tokens."""

import numpy as np
import pytest
from helpers import oracles

from lit_extract.storage.features import Features


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
    assert found["warnings"] == ["vit: 2 rows are identical although their stimuli differ: 3 = 17"]
    code, out, _ = cli("report", tmp_path / "demo" / "all", "--out", tmp_path / "report", "--permutations", 2)
    assert code == 3
    assert "vit: 2 rows are identical although their stimuli differ: 3 = 17" in out
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
    pair = oracles.pair_of(found, "a_layer", "some_rows")
    assert pair["cka"]["layers"][1] == [None, None, None]
    chosen = found["sampled"]
    assert pair["cka"]["layers"][0][0] == pytest.approx(oracles.cka(layer[chosen, 0], feats[chosen, 0]), abs=1e-5)
    assert any("not compared, in blocks.1" in warning for warning in found["warnings"])


def test_a_constant_layer_is_not_compared(save, random_features, numbers):
    feats = random_features()
    feats[:, 0] = 0.5
    save("a", feats, layers=["embeddings", "blocks.0", "blocks.1"])
    save("b", feats)
    found = numbers()
    assert found["models"][0]["layers"][0]["constant"]
    pair = oracles.pair_of(found, "a", "b")
    assert pair["mutual_neighbours"]["layers"][0] == [None, None, None]
    assert pair["mutual_neighbours"]["layers"][1][1] == 1
    assert "a: identical for all stimuli in embeddings, so not compared there." in found["notes"]


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
    assert warnings[1].endswith("in blocks.1, blocks.2; exclude it with --model.exclude sinks")
    assert "--model.exclude" not in warnings[0]
    (sink,) = [model for model in found["models"] if model["label"] == "sink"]
    assert [layer["follows_length"] for layer in sink["layers"]] == [False, True, True]
