"""Logits of last hidden states are the model's own, whatever it does to them, and the model is left as it was."""

import pytest
import torch
from language_models import save_tiny

from lit_extract.modules.logits import logits_of
from lit_extract.modules.pretrained import find_backbone, find_with_head


@pytest.mark.parametrize(
    "model_type", ["cohere", "granite", "gemma2", "falcon_h1", "minicpm3", "bert", "blip-2", "mistral3"]
)
@torch.no_grad()
def test_a_few_states_at_a_time_give_what_the_whole_text_does(tmp_path, model_type):
    model = save_tiny(model_type, tmp_path)
    backbone, _ = find_backbone(model)
    model = find_with_head(model, backbone)
    ids = torch.arange(20, 31)
    expected = model(input_ids=ids[None], use_cache=False).logits[0]
    output = backbone(input_ids=ids[None], use_cache=False)
    states = output.last_hidden_state[0]
    parts = [logits_of(model, backbone, output, states[some], ids[some]) for some in (slice(0, 4), slice(4, 11))]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(input_ids=ids[None], use_cache=False).logits[0], expected)


@torch.no_grad()
def test_a_forward_of_its_own_is_put_back_also_after_an_error(tmp_path):
    """As accelerate puts one into modules that lie on several devices."""
    model = save_tiny("llama", tmp_path)
    backbone, _ = find_backbone(model)
    ids = torch.arange(20, 31)
    output = backbone(input_ids=ids[None])
    own = backbone.forward = lambda *_, **__: output
    with pytest.raises(RuntimeError):
        logits_of(model, backbone, output, output.last_hidden_state[0, :, :3], ids)
    assert backbone.forward is own
