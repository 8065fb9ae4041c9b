"""Sources and what becomes of their pixels."""

import base64
import io
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from lit_extract.common.errors import InputError
from lit_extract.data.base import Connection
from lit_extract.data.sources import ImageSource, ImageSourceDataModule, encode

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def decode(url):
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_give_their_pixels(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert (decode(encode(ImageSource(0, str(path)))) == PIXELS).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_all_modes_become_rgb_as_for_vision_features(tmp_path, mode):
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert (decode(encode(ImageSource(0, str(path)))) == np.asarray(Image.open(path).convert("RGB"))).all()


def test_rotation_in_exif_is_not_applied(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(path, exif=exif)
    assert decode(encode(ImageSource(0, str(path)))).shape == (12, 20, 3)


@pytest.mark.parametrize(("most", "size"), [(None, (20, 12)), (20, (20, 12)), (10, (10, 6)), (64, (20, 12))])
def test_larger_images_are_reduced_and_none_enlarged(tmp_path, most, size):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    height, width, _ = decode(encode(ImageSource(0, str(path)), most)).shape
    assert (width, height) == size


def test_rows_of_nsds_hdf5(tmp_path):
    images = np.stack([PIXELS, PIXELS[::-1]])
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = images
    data = ImageSourceDataModule("nsd", root=str(tmp_path), preprocessing={"max_image_size": None})
    data.setup()
    for source, pixels in zip(data.sources, images, strict=True):
        assert (decode(encode(source)) == pixels).all()


def test_what_is_left_of_each_shard_is_planned():
    data = ImageSourceDataModule("demo", shard_rows=10)
    data.connect(Connection({"max_image_size": None}, plan=data.plan.without_rows({*range(10), 11, 19})))
    batches = list(data.predict_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[10, *range(12, 19)], [20, 21, 22, 23]]
    assert [source.stimulus for source in batches[0]["sources"]] == [10, *range(12, 19)]


def test_a_query_needs_no_name_as_the_output_has_one():
    data = ImageSourceDataModule("demo", query="demo_id > 20")
    data.setup()
    assert [source.stimulus for source in data.sources] == [21, 22, 23]


def test_no_image_at_all_is_an_error(tmp_path):
    (tmp_path / "photographs.csv").write_text("demo_id,name,path\n0,a,a.jpg\n1,b,b.jpg\n")
    with pytest.raises(InputError, match=r"all 2 images are missing: .*check data\.root"):
        ImageSourceDataModule("demo", root=str(tmp_path)).setup()


def test_neither_the_package_nor_its_names_import_vllm():
    code = (
        "import sys, lit_extract; [getattr(lit_extract, name) for name in lit_extract.__all__]; "
        "import lit_extract.commands.predict; "
        "print([name for name in sys.modules if name.split('.')[0] in ('vllm', 'openai')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_vllm_the_command_says_what_to_install(monkeypatch, capsys):
    import lit_extract.commands.predict  # noqa: F401  (its libraries ask find_spec too)
    from lit_extract.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["predict", "--config", "configs/demo/captions.yaml", "--output", "x.csv"]) == 2
    assert "pip install 'lit-extract[vllm]'" in capsys.readouterr().err
