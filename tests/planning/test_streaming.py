"""What bounds a model whose blocks come from disk."""

import math

import pytest
import torch

from lit_extract.planning.streaming import Pass, Rates, measure_rates

RATES = Rates(disk=1e9, link=20e9, operations=75e12, is_measured=True)


@pytest.mark.parametrize(
    ("one", "bound", "seconds"),
    [
        (Pass(2048, 140 * 10**9, 140 * 10**9, 2 * 70e9 * 41e3), "disk", 140),
        (Pass(2048, 140 * 10**9, 140 * 10**9, 2 * 70e9 * 410e3), "arithmetic", 2 * 70e9 * 410e3 / 75e12),
        (Pass(1, 10**9, 40 * 10**9, 1.0), "host link", 2),
        (Pass(1, 10**9, 0, 1.0), "disk", 1),
    ],
)
def test_the_slowest_bounds(one, bound, seconds):
    name, found = RATES.bound(one)
    assert name == bound
    assert found == pytest.approx(seconds)


def test_rates_of_this_machine_are_measured(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    for checkpoints in ([], [str(tmp_path)]):
        rates = measure_rates(checkpoints, on_gpu=False, dtype=torch.float32)
        assert 1e6 < rates.disk < 1e12
        assert 1e8 < rates.operations < 1e15
        assert (rates.link, rates.is_measured) == (math.inf, True)


def test_a_gpu_elsewhere_is_taken_for_an_a40(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rates = measure_rates([], on_gpu=True, dtype=torch.bfloat16)
    assert not rates.is_measured
    assert math.isfinite(rates.link)
