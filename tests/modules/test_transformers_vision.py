"""Features of vision models of Transformers against its own hidden states, one image at a time."""

import numpy as np
import pytest
import torch
import transformers
from helpers.vision_families import FAMILIES, REFUSED, save
from PIL import Image

from lit_extract.common.errors import InputError
from lit_extract.data.images import ImageFolderDataModule
from lit_extract.modules.transformers_vision import TransformersVisionExtractor


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No progress bars, and no remarks on the text models of families, whose vocabularies are tiny."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from the name of a family to its folder, made once."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / "tiny"
            save(made[family], *{**FAMILIES, **REFUSED}[family][:2])
        return str(made[family])

    return folder


def features_of(extractor, images, batch_size=64):
    """Features (N, P, L·D) of all images of a folder, in its order."""
    extractor.configure_model()
    data = ImageFolderDataModule(
        str(images), num_workers=0, batch_size=batch_size, preprocessing=extractor.preprocessing
    )
    with torch.no_grad():
        batches = list(data.predict_dataloader())
        assert not any(batch["bad"].any() for batch in batches)
        parts = [extractor.activations({name: batch[name] for name in extractor.inputs})["feats"] for batch in batches]
    return torch.cat(parts)


def hidden_states(folder, image):
    """What Transformers itself gives for one image: the blocks (T, D) each, its output, and the mask of its patches."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    is_of_videos = model.main_input_name == "pixel_values_videos"
    if is_of_videos:
        inputs = transformers.AutoVideoProcessor.from_pretrained(folder)([image], return_tensors="pt")
    else:
        inputs = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    tower = getattr(model, "vision_model", model)
    tower.config.tie_last_hidden_states = False
    with torch.no_grad():
        output = tower(**inputs, output_hidden_states=True)
        embedding = model.get_image_features(**inputs).pooler_output if tower is not model else None
    states = [state[0] for state in output.hidden_states[1:]]
    mask = inputs.get("pixel_attention_mask", torch.ones(1, 16))[0].bool()
    return states, output, embedding, mask


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three smooth images of differing shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(60, 40), (40, 60), (50, 50)]):
        pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_hidden_states(family, folder_of, pictures):
    """Alone and in company; patches are the last tokens, whatever comes before them."""
    folder, n_prefix = folder_of(family), FAMILIES[family][2]
    has_class_token = n_prefix in (1, 2, 5)
    pools = ["cls", "avg", "avg_all"] if has_class_token else ["avg", "avg_all"]
    extractor = TransformersVisionExtractor(folder, pool=pools)
    assert extractor.layers == ["blocks.0", "blocks.1", "blocks.2"]
    assert extractor.layer_shapes == [(32,)] * 3
    together, alone = features_of(extractor, pictures), features_of(extractor, pictures, batch_size=1)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    for row in range(3):
        with Image.open(pictures / f"{row}.png") as image:
            states, _, _, mask = hidden_states(folder, image)
        assert all(len(state) == n_prefix + 16 for state in states)
        kept = torch.cat([torch.ones(n_prefix, dtype=torch.bool), mask])
        expected = {
            "cls": torch.cat([state[0] for state in states]),
            "avg": torch.cat([state[n_prefix:][mask].mean(0) for state in states]),
            "avg_all": torch.cat([state[kept].mean(0) for state in states]),
        }
        for place, pool in enumerate(pools):
            torch.testing.assert_close(together[row, place], expected[pool], rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3, "else a constant would pass"


# What its own output is, and whether its last tokens are normed; those of the others are refused.
NORMED = {
    *("DINOv2", "DINOv2 with registers", "DINOv3", "SigLIP", "SigLIP 2 NaFlex", "ViT", "DeiT", "ViT-MSN", "AIMv2"),
    *("AIMv2, with text", "I-JEPA", "V-JEPA 2", "Pixio"),
}
WITHOUT_OUTPUT = {"data2vec-vision", "ViT-MSN", "I-JEPA", "V-JEPA 2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_is_the_last_hidden_state_where_that_is_normed(family, folder_of, pictures):
    folder, n_prefix = folder_of(family), FAMILIES[family][2]
    if family not in NORMED:
        with pytest.raises(InputError, match=r"model\.layers: .*no final norm"):
            TransformersVisionExtractor(folder, pool="avg", layers="norm")
        return
    found = features_of(TransformersVisionExtractor(folder, pool="avg", layers=["norm", -1]), pictures)
    with Image.open(pictures / "1.png") as image:
        states, output, _, mask = hidden_states(folder, image)
    tokens = [output.last_hidden_state[0], states[-1]]
    expected = torch.cat([layer[n_prefix:][mask].mean(0) for layer in tokens])
    torch.testing.assert_close(found[1, 0], expected, rtol=1e-5, atol=1e-5)
    assert (expected[:32] - expected[32:]).abs().max() > 1e-3, "else the norm does nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_what_the_model_itself_puts_out(family, folder_of, pictures):
    folder = folder_of(family)
    if family in WITHOUT_OUTPUT:
        with pytest.raises(InputError, match=r"model\.pool: .*head"):
            TransformersVisionExtractor(folder, pool="head")
        return
    extractor = TransformersVisionExtractor(folder, pool="head")
    assert extractor.layers == ["head"]
    found = features_of(extractor, pictures)
    with Image.open(pictures / "1.png") as image:
        _, output, embedding, _ = hidden_states(folder, image)
    expected = output.pooler_output if embedding is None else embedding
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-5)
    assert extractor.layer_shapes == [(expected.shape[1],)]
    assert ("get_image_features" if embedding is not None else "pooler_output") in extractor.notes["head_meaning"]


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_has_its_reason(family, folder_of):
    with pytest.raises(InputError, match=r"model\.name: ") as error:
        TransformersVisionExtractor(folder_of(family), pool="avg")
    assert REFUSED[family][2] in str(error.value)
    assert "\n" not in str(error.value)
