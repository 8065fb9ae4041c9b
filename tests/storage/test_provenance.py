"""A refusal is one readable sentence, however long the values are."""

import pytest

from lit_extract.storage.provenance import differing, to_keep_both

BLOCKS = [f"blocks.{k}" for k in range(61)]


def test_long_lists_are_told_by_where_they_differ():
    said = differing({"layers": BLOCKS}, {"layers": [*BLOCKS[:30], "norm"]})
    assert said == "layers had 61 entries, now 31 (at 30: 'blocks.30', now 'norm')"
    assert differing({"layers": BLOCKS}, {"layers": BLOCKS[:60]}) == "layers had 61 entries, now 60"
    assert differing({"pool": ["cls"]}, {"pool": ["avg"]}) == "pool was ['cls'], now ['avg']"


def test_long_text_is_cut_in_the_middle_and_ends_where_it_differs():
    old, new = (f"{'/folder' * 30}/{name}" for name in ("a.pth", "b.pth"))
    said = differing({"weights": old}, {"weights": new})
    assert len(said) < 200
    assert "a.pth'" in said
    assert "b.pth'" in said


def test_stimuli_are_not_told_by_their_hashes():
    old, new = {"stimuli_sha256": "0" * 64, "rows": 3}, {"stimuli_sha256": "1" * 64, "rows": 4}
    assert differing(old, new).startswith("the stimuli are different, or in another order, rows was 3")
    said = differing(old, new, "/a", "/b")
    assert said == "the stimuli were those of '/a', now those of '/b', which are different"
    assert differing(old, old, "/a", "/b") == "", "data that were moved are the same"


def test_settings_within_a_setting_are_told_one_by_one():
    old = {"preprocessing": {"crop_pct": 0.9, "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3}}
    new = {"preprocessing": {**old["preprocessing"], "crop_pct": 1.0, "mean": [0.1] * 3}}
    told = "preprocessing.crop_pct was 0.9, now 1.0, preprocessing.mean was [0.5, 0.5, 0.5], now [0.1, 0.1, 0.1]"
    assert differing(old, new) == told
    assert differing({"options": {}}, {"options": {"depth": None}}), "another setting, though nothing differs in value"
    assert differing({"options": None}, {"options": {"depth": 3}}) == "options was None, now {'depth': 3}"


@pytest.mark.parametrize("key", ["stimuli_sha256", "n_stimuli", "query", "limit"])
def test_a_tag_is_advised_only_if_the_stimuli_are_the_same(key):
    """Files of other stimuli can't be in one folder, whatever their names."""
    assert to_keep_both({"seed": 0, key: 1}, {"seed": 1, key: 1}) == "name this run with --tag NAME"
    assert to_keep_both({"seed": 0}, {"seed": 1, key: 1}) == "name these stimuli with --data.subset NAME"
