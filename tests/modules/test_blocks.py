"""Which models are a sequence of blocks, and which of their tokens are patches."""

from types import SimpleNamespace

import pytest
import torch

from lit_extract.common.errors import InputError
from lit_extract.modules.blocks import NoBlocks, block_tokens, prefix_tokens


class TwoBlocks(torch.nn.Module):
    """A model of two blocks, run in an order."""

    num_prefix_tokens = 0

    def __init__(self, order):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4, device="meta") for _ in range(2)])
        self.order = order

    def forward(self, images):
        tokens = images.flatten(2).mT[:, :, :1].expand(-1, -1, 4)
        for k in self.order:
            output = self.encoder.blocks[k](tokens)
            tokens = output[0] if isinstance(output, tuple) else output
        return tokens


@pytest.mark.parametrize("order", [[1, 0], [0, 0, 1, 1], [0, 0], [0, 1, 0, 1], [0]])
def test_blocks_in_another_order_or_called_twice_are_refused(order):
    assert block_tokens("x", TwoBlocks([0, 1]), "encoder.", [3, 2, 2]) == ([4, 4], 4)
    with pytest.raises(NoBlocks, match="not called once each, one after the other"):
        block_tokens("x", TwoBlocks(order), "encoder.", [3, 2, 2])


def test_blocks_that_put_out_more_than_one_tensor_are_refused():
    model = TwoBlocks([0, 1])
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda block, inputs, output: (output, output))
    with pytest.raises(NoBlocks, match="do not output one sequence"):
        block_tokens("x", model, "encoder.", [3, 2, 2])


@pytest.mark.parametrize(
    ("trunk", "tokens"),
    [
        ({"num_prefix_tokens": 1, "n_patches": 16}, [17, 15]),  # tokens that are merged
        ({"num_prefix_tokens": 1, "n_patches": 16}, [17, 16]),  # a class token that leaves
        ({"num_prefix_tokens": 5, "n_patches": 16}, [17, 17]),  # registers that are not there
        ({"num_prefix_tokens": 0, "n_patches": 16}, [17, 17]),
        ({"num_prefix_tokens": 1}, [17, 13]),
        ({}, [17, 17]),  # nobody knows how many are patches
    ],
)
def test_tokens_that_can_t_be_told_from_patches_are_refused(trunk, tokens):
    patches = {"patch_embed": SimpleNamespace(num_patches=trunk.pop("n_patches"))} if "n_patches" in trunk else {}
    with pytest.raises(InputError, match=r"'x' is not supported: .* can't be identified"):
        prefix_tokens("x", SimpleNamespace(**trunk, **patches), tokens)
