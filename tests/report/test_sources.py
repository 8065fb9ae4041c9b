"""Which files a report is of, what they are called, and which stimuli they share."""

import shutil

import pytest

from lit_extract.report import sources
from lit_extract.storage.finalize import finalize


def test_a_kept_store_is_not_shown_next_to_its_file(save, random_features, numbers):
    store = save("vit", random_features(), shards=range(5))
    finalize(store, keep_store=True)
    assert store.exists()
    assert [model["file"] for model in numbers()["models"]] == ["vit_pool-cls.pt"]


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
