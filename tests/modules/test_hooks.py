"""Hooks come and go with one forward pass, which ends at the last wanted layer."""

import pytest
import torch
from torch import nn

from lit_extract.modules.hooks import capture


class Counting(nn.Module):
    """Adds one, and counts how often it is asked to."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + 1


@pytest.fixture
def network():
    return nn.Sequential(*(Counting() for _ in range(4)))


def n_hooks(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_pooled_outputs_of_the_named_modules(network):
    with capture({"early": network[0], "late": network[2]}, lambda hidden: hidden * 10) as pooled:
        assert network(torch.zeros(2)).tolist() == [4, 4], "the network itself is not changed"
    assert {name: values.tolist() for name, values in pooled.items()} == {"early": [10, 10], "late": [30, 30]}
    assert n_hooks(network) == 0


def test_nothing_behind_the_last_layer_is_computed(network):
    after = []
    with capture({"early": network[0], "late": network[1]}, torch.clone, last="late") as pooled:
        after.append(network(torch.zeros(2)))
        after.append("not reached")
    assert after == []
    assert pooled["late"].tolist() == [2, 2]
    assert [module.calls for module in network] == [1, 1, 0, 0]
    assert n_hooks(network) == 0


def test_an_error_in_the_block_passes_and_leaves_no_hook(network):
    with pytest.raises(KeyError, match="mine"), capture({"a": network[0]}, torch.clone, last="a"):
        raise KeyError("mine")
    assert n_hooks(network) == 0


def test_an_error_in_the_pooling_passes_and_leaves_no_hook(network):
    def pool(hidden):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture({"a": network[0]}, pool):
        network(torch.zeros(2))
    assert n_hooks(network) == 0


def test_of_a_tuple_the_first_is_the_hidden_state():
    class WithCache(nn.Module):
        def forward(self, x):
            return x + 1, "cache"

    module = WithCache()
    with capture({"a": module}, torch.clone) as pooled:
        module(torch.zeros(2))
    assert pooled["a"].tolist() == [1, 1]


def test_what_goes_into_an_entrance_is_captured_beside_the_outputs(network):
    with capture({"out": network[1]}, torch.clone, last="out", entrances={"in": network[0]}) as pooled:
        assert n_hooks(network) == 2
        network(torch.full((2,), 7.0))
    assert {name: values.tolist() for name, values in pooled.items()} == {"in": [7, 7], "out": [9, 9]}
    assert n_hooks(network) == 0


def test_each_capture_starts_empty(network):
    for start in (0.0, 5.0):
        with capture({"a": network[0]}, torch.clone, last="a") as pooled:
            network(torch.full((1,), start))
        assert pooled["a"].tolist() == [start + 1]
