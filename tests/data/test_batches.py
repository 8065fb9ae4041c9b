"""Images through a processor of Transformers: each as the processor gives it for that image alone."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    VJEPA2VideoProcessor,
)

from lit_extract.common.errors import InputError
from lit_extract.data.images import ImageFolderDataModule
from lit_extract.storage.layout import CONTENT, INPUTS, MTIME, SIZE

FIXED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
OF_THE_PICTURE = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 16, "longest_edge": 900}}
PROCESSORS = {
    "torchvision": CLIPImageProcessor(**FIXED),
    "pil": CLIPImageProcessorPil(**FIXED),
    "rows of different shapes": Qwen2VLImageProcessor(**OF_THE_PICTURE),
}


def settings(processor):
    return {
        "image_processor": type(processor).__name__,
        "backend": processor.backend,
        "settings": processor.to_dict(),
    }


def batches_of(folder, processor, **given):
    data = ImageFolderDataModule(str(folder), preprocessing=settings(processor), **{"num_workers": 0, **given})
    return list(data.predict_dataloader())


def test_for_a_processor_of_videos_an_image_is_one_frame(image_folder):
    processor = VJEPA2VideoProcessor(crop_size=32)
    preprocessing = {"image_processor": "VJEPA2VideoProcessor", "backend": "torchvision"}
    data = ImageFolderDataModule(
        str(image_folder), num_workers=0, preprocessing={**preprocessing, "settings": processor.to_dict()}
    )
    (batch,) = data.predict_dataloader()
    with Image.open(image_folder / "4.png") as image:
        expected = processor([image], return_tensors="pt")["pixel_values_videos"]
    assert batch["pixel_values_videos"][4].shape == (1, 1, 3, 32, 32)
    torch.testing.assert_close(batch["pixel_values_videos"][4], expected, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_rows_are_what_the_processor_gives_for_each_image(image_folder, processor, workers):
    expected = []
    for number in range(7):
        with Image.open(image_folder / f"{number}.png") as image:
            expected.append(processor(images=image, return_tensors="pt"))
    batches = batches_of(image_folder, processor, batch_size=3, num_workers=workers)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in batches:
        assert not batch["bad"].any()
        for place, row in enumerate(batch["index"].tolist()):
            for name in expected[row]:
                torch.testing.assert_close(batch[name][place], expected[row][name], rtol=0, atol=0)


def test_rows_of_one_shape_are_one_tensor(image_folder):
    (batch,) = batches_of(image_folder, PROCESSORS["pil"])
    assert batch["pixel_values"].shape == (7, 1, 3, 32, 32)
    (batch,) = batches_of(image_folder, PROCESSORS["rows of different shapes"])
    assert len({len(patches) for patches in batch["pixel_values"]}) > 1
    assert batch["image_grid_thw"].shape == (7, 1, 3)


def test_what_was_noted_of_each_image(image_folder):
    """The same as of a model of timm: what a resumed run compares with."""
    of_timm = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    (expected,) = ImageFolderDataModule(str(image_folder), num_workers=0, preprocessing=of_timm).predict_dataloader()
    (batch,) = batches_of(image_folder, PROCESSORS["pil"])
    torch.testing.assert_close(batch[INPUTS], expected[INPUTS], rtol=0, atol=0)
    stat = (image_folder / "3.png").stat()
    assert batch[INPUTS][3, [SIZE, MTIME]].tolist() == [stat.st_size, stat.st_mtime_ns]
    assert batch[INPUTS][:, CONTENT].unique().numel() == 7


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_bad_images_do_not_touch_the_others(image_folder, processor):
    (whole,) = batches_of(image_folder, processor)
    (image_folder / "2.png").write_bytes(b"no image")
    (batch,) = batches_of(image_folder, processor)
    assert batch["bad"].tolist() == [row == 2 for row in range(7)]
    assert list(batch["errors"]) == [2]
    assert "2.png" in batch["errors"][2]
    for row in (0, 1, 3, 4, 5, 6):
        torch.testing.assert_close(batch["pixel_values"][row], whole["pixel_values"][row], rtol=0, atol=0)


def test_an_image_that_the_processor_refuses_is_a_bad_one(image_folder):
    """Qwen's takes none that is more than 200 times as wide as high."""
    Image.fromarray(np.zeros((2, 900, 3), dtype=np.uint8)).save(image_folder / "2.png")
    data = ImageFolderDataModule(
        str(image_folder), num_workers=0, preprocessing=settings(PROCESSORS["rows of different shapes"])
    )
    (batch,) = data.predict_dataloader()
    assert list(batch["errors"]) == [2]
    with pytest.raises(InputError, match="row 2"):
        data.on_before_batch_transfer(batch, 0)
    assert data.readable([1, 2]) == [1], "else each run would try it again"


def test_nothing_is_kept_in_the_cache(image_folder, tmp_path):
    batches_of(image_folder, PROCESSORS["pil"], cache=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_provenance(image_folder):
    """Which processor, by class and backend, with all settings and versions; not the folder where it was found."""
    known = settings(PROCESSORS["pil"])
    given = {**known, "source": "/somewhere", "revision": None, "call": {"text": ["<image>"]}}
    provenance = ImageFolderDataModule(str(image_folder), preprocessing=given).provenance()
    assert provenance["preprocessing"] == {**known, "call": {"text": ["<image>"]}}
    assert {"pillow", "torchvision", "transformers"} <= provenance.keys()
    assert "timm" not in provenance


def test_batches_travel_to_workers_before_their_processor_is_made(image_folder):
    data = ImageFolderDataModule(str(image_folder), preprocessing=settings(PROCESSORS["pil"]))
    batches = data.batches_of([[0, 1]])
    again = pickle.loads(pickle.dumps(batches))
    torch.testing.assert_close(again[0]["pixel_values"], batches[0]["pixel_values"], rtol=0, atol=0)


@pytest.fixture
def llava(tmp_path):
    """The folder of a whole processor, which repeats <image> in the text as often as the image has patches."""
    words = {word: number for number, word in enumerate(["<unk>", "<pad>", "<image>", "what", "is", "this"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    known = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    whole = LlavaProcessor(PROCESSORS["torchvision"], tokenizer, image_token="<image>", **known)
    whole.save_pretrained(tmp_path / "llava")
    return str(tmp_path / "llava")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_whole_processor_has_a_text_too(image_folder, llava, workers):
    text = ["<image> what is this"]
    given = {**settings(PROCESSORS["pil"]), "source": llava, "call": {"text": text}}  # not the backend of the folder
    data = ImageFolderDataModule(str(image_folder), num_workers=workers, preprocessing=given)
    (batch,) = data.predict_dataloader()
    with Image.open(image_folder / "4.png") as image:
        expected = AutoProcessor.from_pretrained(llava)(images=[image], text=text, return_tensors="pt")
        pixels = PROCESSORS["pil"](image, return_tensors="pt")["pixel_values"]
    assert batch["input_ids"][4].tolist() == expected["input_ids"].tolist() == [[2] * 16 + [3, 4, 5]]
    torch.testing.assert_close(batch["pixel_values"][4], pixels, rtol=0, atol=0)
    assert (pixels - expected["pixel_values"]).abs().max() > 1e-3, "else the backends can't be told apart"
