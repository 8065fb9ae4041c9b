"""What Transformers returns as hidden states is told apart without weights, and compared with the layers of a model."""

import pytest
import torch
import transformers
from language_models import save_tiny

from lit_extract.common.errors import InputError
from lit_extract.modules.hidden_states import StateForms, find_states
from lit_extract.modules.language import LanguageExtractor
from lit_extract.modules.pretrained import find_backbone
from lit_extract.modules.selection import all_blocks

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
LLAMA = transformers.LlamaConfig(**SIZES, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2)
MAMBA = transformers.MambaConfig(**SIZES, state_size=4)
OPT = transformers.OPTConfig(**SIZES, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=8)


def forms_of(config, width=16):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return find_states(*find_backbone(model), width)


@pytest.mark.parametrize(
    ("config", "names", "last"),
    [
        (LLAMA, ["embeddings", "blocks.0", "norm"], (16,)),
        (MAMBA, ["blocks.0", "blocks.1", "norm"], (16,)),
        (OPT, ["embeddings", "blocks.0", "norm"], (8,)),
    ],
)
def test_names_and_shapes_are_found_without_weights(config, names, last):
    forms = forms_of(config)
    assert forms.names == names
    assert forms.shapes == {"embeddings": (16,), "blocks.0": (16,), "blocks.1": (16,), "norm": last}
    assert forms.before == 0


def test_a_model_that_can_not_run_without_weights_is_taken_for_what_most_are(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(transformers.MambaModel, "forward", fail)
    names = ["embeddings", *all_blocks(2), "norm"]
    assert forms_of(MAMBA, 5) == StateForms(["embeddings", "blocks.0", "norm"], dict.fromkeys(names, (5,)))


@pytest.mark.parametrize(
    ("model_type", "forms", "named"),
    [
        ("mamba", {"names": ["embeddings", "blocks.0", "blocks.1", "norm"]}, "embeddings, blocks.0, blocks.1 of"),
        ("mamba", {"names": ["embeddings", "blocks.0", "norm"]}, "embeddings, blocks.0, norm of"),
        ("opt", {"shapes": dict.fromkeys(["embeddings", "blocks.0", "blocks.1", "norm"], (32,))}, r"\(1, 8, 16\)"),
    ],
)
def test_what_was_taken_for_granted_is_checked_with_the_weights(tmp_path, monkeypatch, model_type, forms, named):
    save_tiny(model_type, tmp_path)
    true = LanguageExtractor(str(tmp_path))._forms
    monkeypatch.setattr("lit_extract.modules.language.find_states", lambda *_: true._replace(**forms))
    with pytest.raises(InputError, match=rf"^model\.layers: .*{named}"):
        LanguageExtractor(str(tmp_path), layers="hidden_states").configure_model()
