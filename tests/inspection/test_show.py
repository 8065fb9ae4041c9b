"""What a features file or store holds, in words and as a picture."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lit_extract.commands.show import show
from lit_extract.common.errors import InputError
from lit_extract.inspection.show import describe
from lit_extract.storage.features import load_features
from lit_extract.storage.features_picture import dissimilarity
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import BAD_INPUT, OK


def test_it_says_what_the_file_holds(make_store, capsys):
    store, _ = make_store()
    (file,) = finalize(store.path)
    show(str(file))
    out = capsys.readouterr().out
    for text in (
        str(file),
        "10 stimuli × 3 layers × 4 dimensions, pooling cls",
        "10 rows done",
        "blocks.0, blocks.1, blocks.2",
        "seed: 0",
    ):
        assert text in out
    assert "bad_input_rows" not in out


def test_each_fact_is_printed_once_and_counted_right(make_store, capsys):
    store, _ = make_store(n=1, layers=1)
    show(str(finalize(store.path)[0]))
    out = capsys.readouterr().out
    assert "1 stimulus × 1 layer × 4 dimensions, pooling cls" in out
    assert "1 row done; layers blocks.0" in out
    assert (out.count("blocks.0"), out.count("cls\n"), out.count("layers")) == (1, 1, 1)


def test_it_has_the_mean_loss_and_bits_a_byte_of_captions(make_store):
    store, _ = make_store()
    features = load_features(finalize(store.path)[0])
    features.extras.update(loss=2.34567, bpb=torch.tensor(0.5))
    lines = describe(features, "x")
    assert "  mean loss: 2.346 nats per token" in lines
    assert "  mean bpb: 0.5 bits per byte" in lines


def test_it_says_how_far_a_run_is_and_which_rows_are_bad(make_store, capsys):
    store, feats = make_store(shards=[0])
    store.write_shard(0, {"cls": feats["cls"][:4]}, np.array([OK, OK, BAD_INPUT, OK], dtype=np.uint8))
    show(str(store.path))
    out = capsys.readouterr().out
    assert "4 rows done" in out
    assert "bad_input_rows: [2]" in out


def test_of_several_poolings_one_is_shown(make_store, capsys):
    store, _ = make_store(pools=("cls", "avg"))
    with pytest.raises(InputError, match="cls, avg"):
        show(str(store.path))
    show(str(store.path), pool="avg")
    assert "pooling avg" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n": 300, "shard_rows": 64},  # more than are drawn
        {"layers": 1},
        {"n": 1},
        {"n": 2},
        {"shards": [1]},  # unfinished
    ],
    ids=str,
)
def test_it_draws(make_store, tmp_path, settings):
    store, _ = make_store(**settings)
    picture = tmp_path / "below" / "x.png"
    show(str(store.path), picture=str(picture))
    with Image.open(picture) as image:
        assert image.format == "PNG"
        spread = np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2)
    assert (spread > 40).mean() > 0.05, "colours, not only axes"


def test_a_run_that_has_done_nothing_is_not_drawn(make_store, tmp_path):
    store, _ = make_store(shards=[])
    with pytest.raises(InputError, match="picture: nothing to draw"):
        show(str(store.path), picture=str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["x.docx", "x"])
def test_a_picture_of_an_unknown_kind_is_refused(make_store, tmp_path, name):
    store, _ = make_store()
    with pytest.raises(InputError, match=rf"picture: .*/{name}' must end in one of .*\.png"):
        show(str(store.path), picture=str(tmp_path / name))


def test_without_matplotlib_it_says_what_to_install(make_store, tmp_path, monkeypatch):
    store, _ = make_store()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    show(str(store.path))
    with pytest.raises(InputError, match=r"pip install 'lit-extract\[plot\]'"):
        show(str(store.path), picture=str(tmp_path / "x.png"))


def test_dissimilarity_is_one_minus_pearsons_r():
    rows = np.array([[1, 2, 3, 4], [10, 20, 30, 40], [4, 3, 2, 1], [1, -1, -1, 1], [5, 1, 0, 2]], dtype=np.float32)

    def one_minus_r(a, b):
        a, b = a - sum(a) / len(a), b - sum(b) / len(b)
        return 1 - sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5

    expected = [[one_minus_r(a, b) for b in rows.astype(float)] for a in rows.astype(float)]
    np.testing.assert_allclose(dissimilarity(rows), expected, atol=1e-12)
    np.testing.assert_allclose(dissimilarity(rows)[0, :4], [0, 0, 2, 1], atol=1e-12)


def test_rows_that_are_missing_are_missing_in_the_dissimilarity():
    rows = np.array([[1, 2, 3], [np.nan] * 3, [3, 2, 2]], dtype=np.float32)
    found = dissimilarity(rows)
    assert np.isnan(found).tolist() == [[False, True, False], [True, True, True], [False, True, False]]
