"""Images against timm's own evaluation pipeline; bad ones are flagged; batches do not depend on workers."""

import shutil

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps

from lit_extract.common.errors import InputError
from lit_extract.data.base import Connection
from lit_extract.data.batches import ImageBatches
from lit_extract.data.images import (
    BOLD5000DataModule,
    DemoDataModule,
    ImageFolderDataModule,
    NSDDataModule,
)
from lit_extract.datasets import load_dataset
from lit_extract.datasets.table import fingerprint
from lit_extract.modules.vision import VisionExtractor

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONFIGS = {
    "the tiny model's": timm.get_pretrained_cfg("test_vit.r160_in1k").to_dict(),
    "ImageNet": {"input_size": (3, 96, 96), "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"},
    "squashed": {"input_size": (3, 96, 64), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    "with a border": {"input_size": (3, 96, 64), "interpolation": "lanczos", "crop_pct": 0.9, "crop_mode": "border"},
}
CONFIGS = {
    name: {
        key: {**IMAGENET, **config}[key] for key in (*IMAGENET, "input_size", "interpolation", "crop_pct", "crop_mode")
    }
    for name, config in CONFIGS.items()
}
SMALL = CONFIGS["ImageNet"]


def noise(height, width, mode="RGB"):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode)


def smooth(height, width):
    return noise(4, 5).resize((width, height), Image.Resampling.BICUBIC)


def _sixteen_bits(path):
    values = np.random.default_rng(0).integers(0, 2**16, (40, 50), dtype=np.uint16)
    Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")


def _palette(path, **options):
    noise(40, 50).quantize(64).save(path, **options)


def _rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone that was held upright
    smooth(40, 60).save(path, exif=exif)
    with Image.open(path) as image:
        assert ImageOps.exif_transpose(image).size == (40, 60), "else the test shows nothing"


def _animated(path):
    frames = [noise(30, 40 + k).quantize(32) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


IMAGES = {
    "colour.jpg": lambda path: smooth(90, 120).save(path),
    "colour.png": lambda path: noise(90, 120).save(path),
    "of_the_size_of_the_input.png": lambda path: noise(96, 96).save(path),
    "grayscale.jpg": lambda path: smooth(50, 70).convert("L").save(path),
    "grayscale_16_bits.png": _sixteen_bits,
    "bilevel.png": lambda path: noise(50, 70, "L").convert("1").save(path),
    "palette.png": _palette,
    "palette_with_a_transparent_colour.gif": lambda path: _palette(path, transparency=3),
    "palette_with_degrees_of_transparency.png": lambda path: _palette(path, transparency=bytes(range(0, 256, 4))),
    "cmyk.jpg": lambda path: smooth(50, 70).convert("CMYK").save(path),
    "transparent.png": lambda path: noise(50, 70, "RGBA").save(path),
    "grayscale_transparent.png": lambda path: noise(50, 70, "LA").save(path),
    "rotated_by_exif.jpg": _rotated,
    "animated.gif": _animated,
    "one_pixel.png": lambda path: noise(1, 1).save(path),
    "very_wide.png": lambda path: noise(3, 300).save(path),
    "very_tall.png": lambda path: noise(300, 3).save(path),
}


def batches_of(folder, preprocessing=SMALL, **settings):
    module = ImageFolderDataModule(str(folder), preprocessing=preprocessing, **{"num_workers": 0, **settings})
    return list(module.predict_dataloader())


@pytest.fixture(scope="module")
def normalize():
    """uint8 pixels to a model's input under a config, in float32."""
    extractor = VisionExtractor("test_vit.r160_in1k", untrained=True)
    extractor.configure_model()

    def run(images, config):
        extractor.preprocessing, extractor._scale = config, None
        return extractor.normalize(images)

    return run


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # Pillow, of PNGs that have it
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", IMAGES)
def test_model_sees_what_timm_shows_it(tmp_path, normalize, name, config):
    IMAGES[name](tmp_path / name)
    (batch,) = batches_of(tmp_path, config)
    assert batch["errors"] == {}
    transform = timm.data.create_transform(**config, is_training=False)
    with Image.open(tmp_path / name) as image:
        if name == "grayscale_16_bits.png":  # Pillow would clip it
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        expected = transform(image.convert("RGB"))
    actual = normalize(batch["image"], config)[0]
    assert actual.shape == config["input_size"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def by_pillow(image, crop_mode, side, mean=(0, 0, 0)):
    """A picture for a model of ``side`` × ``side`` that sees it at ``crop_pct`` 1.0, (H, W, 3), by Pillow alone."""
    width, height = image.size
    if crop_mode == "squash":
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    if crop_mode == "border":
        of_longer = max(height, width) / side
        image = image.resize((round(width / of_longer), round(height / of_longer)), Image.Resampling.BICUBIC)
        framed = Image.new("RGB", (side, side), tuple(round(255 * value) for value in mean))
        framed.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return np.asarray(framed)
    shorter = min(height, width)
    image = image.resize((side * width // shorter, side * height // shorter), Image.Resampling.BICUBIC)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_what_is_given_instead_of_the_model_s_own_makes_the_pixels(tmp_path, crop_mode):
    pictures = {"square.png": noise(300, 300), "high.png": noise(331, 170), "wide.png": smooth(90, 120)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    given = {"crop_pct": 1.0, "crop_mode": crop_mode, "mean": (0.1, 0.5, 0.9), "std": (0.2, 0.25, 0.3)}
    extractor = VisionExtractor("test_vit.r160_in1k", untrained=True, preprocessing=given)
    (batch,) = batches_of(tmp_path, extractor.preprocessing)
    expected = [by_pillow(pictures[name], crop_mode, 160, given["mean"]) for name in sorted(pictures)]
    np.testing.assert_array_equal(batch["image"].numpy().transpose(0, 2, 3, 1), expected)
    extractor.configure_model()
    normalized = (np.array(expected) / 255 - given["mean"]) / given["std"]
    actual = extractor.normalize(batch["image"]).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, normalized, rtol=0, atol=1e-5)


def _truncated(path):
    smooth(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:1500])


BROKEN = {
    "truncated.jpg": (_truncated, "OSError: "),
    "empty.jpg": (lambda path: path.write_bytes(b""), "UnidentifiedImageError: "),
    "text.png": (lambda path: path.write_text("not found"), "UnidentifiedImageError: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_will_not_decode_is_flagged_with_the_reason_and_no_other(tmp_path, name):
    break_it, reason = BROKEN[name]
    noise(50, 50).save(tmp_path / "a.png")
    break_it(tmp_path / f"b_{name}")
    noise(60, 60).save(tmp_path / "c.png")
    (batch,) = batches_of(tmp_path)
    assert batch["bad"].tolist() == [False, True, False]
    assert list(batch["errors"]) == [1]
    assert batch["errors"][1].startswith(f"{tmp_path / f'b_{name}'}: {reason}")
    (tmp_path / f"b_{name}").unlink()
    (alone,) = batches_of(tmp_path)
    assert torch.equal(batch["image"][[0, 2]], alone["image"])


def test_stop_names_the_stimulus_and_skip_reports_it(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_text("not found")
    for on_bad_image in ("stop", "skip"):
        module = ImageFolderDataModule(str(tmp_path), preprocessing=SMALL, num_workers=0, on_bad_image=on_bad_image)
        (batch,) = module.predict_dataloader()
        if on_bad_image == "stop":
            with pytest.raises(
                InputError, match=r"stimulus broken\.jpg \(row 0\) can't be decoded: .*on_bad_image skip"
            ):
                module.on_before_batch_transfer(batch, 0)
        else:
            assert module.on_before_batch_transfer(batch, 0)["bad"].tolist() == [True]
            assert "skipped: stimulus broken.jpg (row 0)" in caplog.text


def test_hdf5_rows_are_the_bricks_also_of_a_subset(tmp_path):
    bricks = np.random.default_rng(0).integers(0, 256, (5, 425, 425, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = bricks
    stimuli = load_dataset("nsd", tmp_path, "nsd_id in [4, 1, 2]")
    images = ImageBatches(stimuli, [range(3)], SMALL)
    for row, brick in enumerate([1, 2, 4]):
        np.testing.assert_array_equal(np.asarray(images.read(row).decode()[0]), bricks[brick])
    module = NSDDataModule(str(tmp_path), preprocessing=SMALL, num_workers=2, batch_size=2)
    transform = timm.data.create_transform(**SMALL, is_training=False, use_prefetcher=True)
    found = torch.cat([batch["image"] for batch in module.predict_dataloader()])
    np.testing.assert_array_equal(found.numpy(), [transform(Image.fromarray(brick)) for brick in bricks])


def test_each_image_travels_with_its_row(image_folder):
    batches = batches_of(image_folder, batch_size=2)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    transform = timm.data.create_transform(**SMALL, is_training=False, use_prefetcher=True)
    for batch in batches:
        for row, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            with Image.open(image_folder / f"{row}.png") as original:
                np.testing.assert_array_equal(image.numpy(), transform(original))


def test_done_shards_are_left_out_and_the_other_batches_are_the_same(image_folder):
    module = ImageFolderDataModule(str(image_folder), preprocessing=SMALL, num_workers=0, batch_size=2, shard_rows=4)
    undisturbed = list(module.predict_dataloader())
    module.connect(Connection(SMALL, plan=module.plan.leaving({0})))
    left = list(module.predict_dataloader())
    assert [batch["index"].tolist() for batch in left] == [[4, 5], [6]]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(left, undisturbed[2:], strict=True))


def test_workers_change_nothing(image_folder):
    (image_folder / "3.png").write_text("broken")
    alone, shared = (batches_of(image_folder, batch_size=2, num_workers=workers) for workers in (0, 2))
    for expected, found in zip(alone, shared, strict=True):
        assert expected["errors"] == found["errors"]
        assert all(torch.equal(expected[key], found[key]) for key in ("index", "image", "bad"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": "bold_id < 3"}, "data.query: 'bold_id < 3' .* data.subset is 'all'; name the chosen rows"),
        ({"subset": "a/b"}, "data.subset: must be .* not 'a/b'"),
        ({"subset": ".."}, r"data.subset: must be .* not '\.\.'"),
        ({"subset": "."}, r"data.subset: must be .* not '\.'"),
        ({"subset": ""}, "data.subset: must be .* not ''"),
        ({"subset": "/tmp"}, "data.subset: must be .* not '/tmp'"),
        ({"batch_size": 0}, "data.batch_size: 0 must be 1 or more"),
        ({"batch_size": -3, "shard_rows": 3}, "data.batch_size: -3 must be 1 or more"),
        ({"batch_size": 4, "shard_rows": 6}, "data.shard_rows: 6 must be a multiple"),
        ({"batch_size": 4, "shard_rows": 2}, "data.shard_rows: 2 must be a multiple"),
        ({"batch_size": 4, "shard_rows": 0}, "data.shard_rows: 0 must be 1 to "),
        ({"num_workers": -1}, "data.num_workers: -1 must be 0 to 4,096"),
    ],
)
def test_contradictory_settings_are_refused_before_anything_is_read(settings, message):
    with pytest.raises(InputError, match=message):
        BOLD5000DataModule("nowhere", **settings)


def test_without_preprocessing_the_extractors_is_asked_for(image_folder):
    with pytest.raises(InputError, match=r"preprocessing=model\.preprocessing"):
        ImageFolderDataModule(str(image_folder)).predict_dataloader()


def test_fingerprint_is_of_order_ids_and_files_not_of_the_place(image_folder, tmp_path):
    stimuli = load_dataset("folder", image_folder)
    prints = {"as it is": fingerprint(stimuli)}
    shutil.copytree(image_folder, tmp_path / "moved")
    assert fingerprint(load_dataset("folder", tmp_path / "moved")) == prints["as it is"]

    prints["other order"] = fingerprint(stimuli.iloc[::-1].reset_index(drop=True))
    prints["other ids"] = fingerprint(stimuli.assign(stimulus_id=range(7)))
    prints["ids exchanged"] = fingerprint(stimuli.assign(stimulus_id=stimuli["stimulus_id"].tolist()[::-1]))
    prints["a row less"] = fingerprint(stimuli[:-1])
    prints["other rows of the files"] = fingerprint(stimuli.assign(image_row=range(7)))
    (image_folder / "2.png").rename(image_folder / "21.png")
    prints["other name"] = fingerprint(load_dataset("folder", image_folder))
    assert len(set(prints.values())) == len(prints)


def test_setup_needs_the_images(image_folder):
    (image_folder / "photographs.csv").write_text("demo_id,name,path\n0,a,0.png\n1,b,gone.png\n")
    with pytest.raises(InputError, match=r"1 of 2 images is missing: .*gone\.png"):
        DemoDataModule(str(image_folder), preprocessing=SMALL).setup()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("peer is gone")])
def test_an_error_of_the_machine_is_not_a_bad_image(image_folder, monkeypatch, error):
    def fail(*_):
        raise error

    module = ImageFolderDataModule(str(image_folder), preprocessing=SMALL, num_workers=0, on_bad_image="skip")
    batches = module.predict_dataloader()
    monkeypatch.setattr(ImageBatches, "read", fail)
    with pytest.raises(type(error)):
        next(iter(batches))
