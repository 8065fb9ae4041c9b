"""A tiny Pixtral with random weights, in Mistral's format: what vLLM opens as it opens Pixtral-12B.

``python tests/vllm/tiny_pixtral.py FOLDER`` makes one. The vocabulary and the size of the images are those of
the real one, so that its tokenizer and its image preprocessing run as they are.
"""

import json
import shutil
import sys
from pathlib import Path

import mistral_common
import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, HEADS, HIDDEN, LAYERS, VOCABULARY = 64, 2, 128, 2, 131072
PARAMS = {
    "dim": DIM,
    "n_layers": LAYERS,
    "head_dim": DIM // HEADS,
    "hidden_dim": HIDDEN,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "rope_theta": 1000000000.0,
    "norm_eps": 1e-05,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16384,
    "vision_encoder": {
        "hidden_size": DIM,
        "num_channels": 3,
        "image_size": 1024,
        "patch_size": 16,
        "rope_theta": 10000.0,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "adapter_bias": True,
        "image_token_id": 10,
        "image_break_token_id": 12,
        "image_end_token_id": 13,
    },
}


def make(folder: Path) -> Path:
    """Write the model into a folder."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(PARAMS, indent=1))
    data = Path(mistral_common.__file__).parent / "data"
    shutil.copy(data / "tekken_240911.json", folder / "tekken.json")
    save_file(_weights(), folder / "consolidated.safetensors")
    return folder


def _weights() -> dict[str, Tensor]:
    """Large enough that images tell: with tiny weights every image would get the same caption."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    weights = {
        "tok_embeddings.weight": normal(VOCABULARY, DIM) * DIM**0.5,
        "output.weight": normal(VOCABULARY, DIM),
        "norm.weight": torch.ones(DIM),
        "vision_encoder.patch_conv.weight": normal(DIM, 3, 16, 16),
        "vision_encoder.ln_pre.weight": torch.ones(DIM),
        "vision_language_adapter.w_in.weight": normal(DIM, DIM),
        "vision_language_adapter.w_in.bias": torch.zeros(DIM),
        "vision_language_adapter.w_out.weight": normal(DIM, DIM) * 4,
        "vision_language_adapter.w_out.bias": torch.zeros(DIM),
    }
    for prefix in ("layers", "vision_encoder.transformer.layers"):
        for layer in range(LAYERS):
            name = f"{prefix}.{layer}"
            weights |= {f"{name}.attention.{w}.weight": normal(DIM, DIM) for w in ("wq", "wk", "wv", "wo")}
            weights |= {f"{name}.feed_forward.{w}.weight": normal(HIDDEN, DIM) for w in ("w1", "w3")}
            weights[f"{name}.feed_forward.w2.weight"] = normal(DIM, HIDDEN)
            weights |= {f"{name}.{norm}.weight": torch.ones(DIM) for norm in ("attention_norm", "ffn_norm")}
    return weights


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
