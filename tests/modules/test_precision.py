"""What bf16 costs, through a real Trainer, whose precision must not reach what should stay float32."""

import torch
from helpers.language_models import save_captions, save_model
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_extract import CaptionDataModule, DemoDataModule, LanguageExtractor, VisionExtractor, extract, load_features
from lit_extract.jobs.trainer import predict_trainer


def run(extractor, data, precision, output):
    trainer = predict_trainer(accelerator="cpu", devices=1, precision=precision)
    return load_features(extract(extractor, data, trainer, output_dir=str(output)).files[0])


def test_vision_in_bf16_points_where_float32_does(tmp_path):
    feats = {}
    for precision in ("32-true", "bf16-true", "bf16-mixed"):
        extractor = VisionExtractor("test_vit.r160_in1k", untrained=True)
        features = run(extractor, DemoDataModule(), precision, tmp_path / precision)
        assert features.provenance["precision"] == precision
        feats[precision] = features.feats.clone()
    for precision in ("bf16-true", "bf16-mixed"):
        similarity = cosine_similarity(feats[precision], feats["32-true"], dim=-1)
        assert similarity.min() > 0.999
        assert not torch.equal(feats[precision], feats["32-true"])  # it was not float32 after all


def test_language_in_bf16_keeps_rotary_frequencies_in_float32(tmp_path):
    folder, captions = tmp_path / "model", tmp_path / "captions.csv"
    save_model(folder, "llama")
    texts = save_captions(captions, [120, 110, 100])  # far positions are where rounded frequencies show
    extractor = LanguageExtractor("tiny", checkpoint=str(folder), pool="last")
    features = run(extractor, CaptionDataModule(str(captions), "test"), "bf16-true", tmp_path)
    assert extractor.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert next(extractor.model.parameters()).dtype == torch.bfloat16

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(texts):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        similarity = cosine_similarity(features.feats[row, :2], torch.cat(hidden)[1:3, -1].float(), dim=-1)
        assert similarity.min() > 0.999
