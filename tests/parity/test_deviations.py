"""From numbers to verdicts, with literal tables."""

import pytest
import torch

from lit_extract.parity.deviations import BF16, FLOAT32, misplaced, place_rows


@pytest.mark.parametrize(
    ("distances", "spread", "expected"),
    [
        ([[0.1, 9.0, 8.0]], [9.0], []),  # its own
        ([[8.0, 0.1, 9.0]], [8.5], ["stimulus a (row 0) is in row 1, which should be b"]),
        ([[5.0, 6.0, 4.0]], [6.0], ["row 0 is as far from its stimulus a as from others (0.83)"]),
        ([[0.1, 0.01, 9.0]], [9.0], []),  # a twin, as near
        ([[0.0, 0.0, 0.0]], [0.0], []),  # all are alike: there is no order to get wrong
    ],
)
def test_place_rows(distances, spread, expected):
    placed, mistaken = place_rows([0], ["a", "b", "c"], torch.tensor(distances), torch.tensor(spread), limit=0.25)
    assert mistaken == expected
    assert placed[0]["nearest_row"] == min(range(3), key=lambda row: distances[0][row])


def test_misplaced_layers_are_named():
    again = torch.tensor([[[0.0, 1.0], [5.0, 5.0], [9.0, 0.0]]], dtype=torch.float64)
    names = ["a", "b", "c"]
    assert misplaced(names, again + 0.1, again) == []
    assert misplaced(names, again[:, [0, 2, 1]], again) == ["b of the file is c", "c of the file is b"]


def test_limits_of_float32_are_tighter():
    assert FLOAT32.cosine > BF16.cosine
    assert FLOAT32.relative_error < BF16.relative_error / 50
