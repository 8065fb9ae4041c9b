"""The pixel cache gives what decoding gives, to the byte, or nothing: whatever happened to it or to the images."""

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import lit_extract.data.images
from lit_extract.data.base import Connection
from lit_extract.data.batches import ImageBatches
from lit_extract.data.images import ImageFolderDataModule
from lit_extract.data.pixels import PIXELS, ROWS, Noted, PixelCache, folder_name, image_state, open_files

SMALL = {
    "input_size": (3, 48, 48),
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def see(folder, cache, preprocessing=SMALL, workers=0, **settings):
    """All images of a folder through a data module, (N, 3, H, W), and what was wrong with them."""
    module = ImageFolderDataModule(
        str(folder), preprocessing=preprocessing, num_workers=workers, batch_size=2, cache=str(cache), **settings
    )
    batches = list(module.predict_dataloader())
    errors = {row: reason for batch in batches for row, reason in batch["errors"].items()}
    return torch.cat([batch["image"] for batch in batches]), errors


@pytest.fixture
def decoded(image_folder):
    """What decoding alone gives."""
    return see(image_folder, "off")[0]


@pytest.fixture
def count_decoded(monkeypatch):
    """Rows that were decoded, in the order of their batches."""
    rows = []
    true_read = ImageBatches.read

    def read_and_count(self, row):
        rows.append(row)
        return true_read(self, row)

    monkeypatch.setattr(ImageBatches, "read", read_and_count)
    return rows


def the_file(cache, name):
    (folder,) = cache.iterdir()
    return folder / name


def test_the_second_time_nothing_is_decoded_and_the_pixels_are_the_same(image_folder, tmp_path, decoded, count_decoded):
    first, _ = see(image_folder, tmp_path / "cache")
    assert sorted(count_decoded) == list(range(7))
    count_decoded.clear()
    second, _ = see(image_folder, tmp_path / "cache")
    assert count_decoded == []
    assert torch.equal(first, decoded)
    assert torch.equal(second, decoded)


def test_workers_fill_it_too(image_folder, tmp_path, decoded, count_decoded):
    assert torch.equal(see(image_folder, tmp_path / "cache", workers=2)[0], decoded)
    assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded)
    assert count_decoded == [], "workers decode in processes of their own"


def test_a_subset_and_the_whole_share_it(image_folder, tmp_path, decoded, count_decoded):
    some, _ = see(image_folder, tmp_path / "cache", query="name in ['1', '4', '5']", subset="some")
    assert torch.equal(some, decoded[[1, 4, 5]])
    count_decoded.clear()
    assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded)
    assert sorted(count_decoded) == [0, 2, 3, 6]


@pytest.mark.parametrize(
    ("key", "value", "shared"),
    [
        ("input_size", (3, 40, 48), False),
        ("interpolation", "bicubic", False),
        ("crop_pct", 1.0, False),
        ("crop_mode", "squash", False),
        ("crop_mode", "border", False),
        ("mean", (0.1, 0.2, 0.3), True),
    ],
)
def test_models_that_see_images_alike_share_it_others_do_not(image_folder, tmp_path, count_decoded, key, value, shared):
    see(image_folder, tmp_path / "cache")
    count_decoded.clear()
    found, _ = see(image_folder, tmp_path / "cache", {**SMALL, key: value})
    assert (count_decoded == []) == shared
    assert torch.equal(found, see(image_folder, "off", {**SMALL, key: value})[0])


def test_the_colour_of_a_border_is_not_that_of_another_model(image_folder, tmp_path, count_decoded):
    with_border = {**SMALL, "crop_mode": "border"}
    see(image_folder, tmp_path / "cache", with_border)
    count_decoded.clear()
    red = {**with_border, "mean": (1, 0, 0)}
    found, _ = see(image_folder, tmp_path / "cache", red)
    assert sorted(count_decoded) == list(range(7))
    assert torch.equal(found, see(image_folder, "off", red)[0])
    count_decoded.clear()
    see(image_folder, tmp_path / "cache", {**with_border, "std": (1, 1, 1)})
    assert count_decoded == [], "it is normalized later"


def test_another_version_of_a_decoder_has_a_cache_of_its_own(monkeypatch):
    before = folder_name("nsd", "0" * 64, SMALL)
    monkeypatch.setattr("lit_extract.data.pixels.version", lambda package: f"{package} of tomorrow")
    assert folder_name("nsd", "0" * 64, SMALL) != before


def test_an_image_that_changed_is_decoded_again_though_size_and_time_are_equal(image_folder, tmp_path, count_decoded):
    victim = image_folder / "3.png"
    pixels = np.zeros((23, 27, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(victim, compress_level=0)
    see(image_folder, tmp_path / "cache")
    before = victim.stat()
    Image.fromarray(255 - pixels).save(victim, compress_level=0)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    count_decoded.clear()
    found, _ = see(image_folder, tmp_path / "cache")
    assert count_decoded == [3]
    assert (found[3] == 255).all()


def test_an_image_that_is_gone_is_not_taken_from_the_cache(image_folder, tmp_path):
    see(image_folder, tmp_path / "cache")
    module = ImageFolderDataModule(
        str(image_folder), preprocessing=SMALL, num_workers=0, batch_size=7, cache=str(tmp_path / "cache")
    )
    batches = module.predict_dataloader()
    (image_folder / "2.png").unlink()
    (batch,) = batches
    assert batch["bad"].nonzero().flatten().tolist() == [2]
    assert "2.png: FileNotFoundError" in batch["errors"][2]


def test_a_bad_image_is_bad_each_time(image_folder, tmp_path):
    (image_folder / "5.png").write_text("broken")
    (_, once), (_, again) = (see(image_folder, tmp_path / "cache") for _ in range(2))
    assert list(once) == [5]
    assert once == again


def _flip_a_pixel(cache):
    with the_file(cache, PIXELS).open("r+b") as file:
        file.seek(2 * 3 * 48 * 48 + 1000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return [2]


def _truncate(name, kept):
    def damage(cache):
        file = the_file(cache, name)
        os.truncate(file, int(file.stat().st_size * kept))
        return list(range(int(7 * kept), 7))

    return damage


def _delete(name):
    def damage(cache):
        the_file(cache, name).unlink()
        return list(range(7))

    return damage


def _exchange_two_rows(cache):
    for name, size in ((PIXELS, 3 * 48 * 48), (ROWS, 29)):
        content = the_file(cache, name).read_bytes()
        rows = [content[size * row : size * (row + 1)] for row in range(7)]
        rows[1], rows[4] = rows[4], rows[1]
        the_file(cache, name).write_bytes(b"".join(rows))
    return [1, 4]


DAMAGE = {
    "a flipped bit": _flip_a_pixel,
    "pixels truncated": _truncate(PIXELS, 0.5),
    "records truncated": _truncate(ROWS, 0.5),
    "no pixels": _delete(PIXELS),
    "no records": _delete(ROWS),
    "rows exchanged": _exchange_two_rows,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_repaired(image_folder, tmp_path, decoded, count_decoded, damage):
    cache = tmp_path / "cache"
    see(image_folder, cache)
    open_files.cache_clear()  # as in another process
    damaged = DAMAGE[damage](cache)
    count_decoded.clear()
    assert torch.equal(see(image_folder, cache)[0], decoded)
    assert sorted(count_decoded) == damaged
    count_decoded.clear()
    assert torch.equal(see(image_folder, cache)[0], decoded)
    assert count_decoded == []


def numbers(row):
    return np.random.default_rng(row).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def state(row):
    return row.to_bytes(16, "little")


def _write_on_and_on(folder, seed):
    cache = PixelCache(folder, 50, (3, 32, 32))
    generator = np.random.default_rng(seed)
    while True:
        row = int(generator.integers(50))
        cache.write(row, state(row), numbers(row), Noted(row, False))


def test_two_writers_that_are_killed_leave_no_wrong_row(tmp_path):
    cache, pixels, found = PixelCache(tmp_path / "cache", 50, (3, 32, 32)), np.empty((3, 32, 32), np.uint8), 0
    context = multiprocessing.get_context("fork")
    for seed in range(5):
        writers = [context.Process(target=_write_on_and_on, args=(cache.folder, 2 * seed + k)) for k in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(0.05)
        for row in range(50):  # while they write
            if cache.read(row, state(row), pixels):
                np.testing.assert_array_equal(pixels, numbers(row))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        for row in range(50):
            if cache.read(row, state(row), pixels):
                found += 1
                np.testing.assert_array_equal(pixels, numbers(row))
    assert found > 50


def test_a_limit_ends_the_caching_not_the_run(image_folder, tmp_path, decoded, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 48 * 48 * 3 + 10, before[1]))
    try:
        found, errors = see(image_folder, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not errors
    assert "File too large; the run continues" in caplog.text
    assert torch.equal(found, decoded)
    assert the_file(tmp_path / "cache", PIXELS).stat().st_size == 3 * 48 * 48 * 3 + 10
    assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded), "the row that was cut is not taken for whole"


def test_without_room_nothing_is_kept_and_it_is_said_once(image_folder, tmp_path, decoded, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(lit_extract.data.images, "free_bytes", lambda _: 7 * 3 * 48 * 48 - 1)
    assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded)
    assert not (tmp_path / "cache").exists()
    said = caplog.text
    assert said.count("decoded images are not kept for the next model") == 1
    assert "--data.cache DIR" in said


def test_before_it_takes_room_it_says_how_much_and_where_and_how_to_stop_it(image_folder, tmp_path, caplog):
    caplog.set_level("INFO")
    see(image_folder, tmp_path / "cache", limit=5)
    (said,) = caplog.messages
    assert said.startswith(f"decoded images are kept for the next model: 34.7 kB in '{tmp_path / 'cache'}', where ")
    assert said.endswith("to keep none, pass --data.cache off")
    caplog.clear()
    see(image_folder, tmp_path / "cache")
    assert caplog.messages == [], "it is known by now"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_named_and_the_cache_makes_way(
    image_folder, tmp_path, decoded, monkeypatch, caplog, number
):
    see(image_folder, tmp_path / "cache", limit=4)
    pixels = the_file(tmp_path / "cache", PIXELS)
    before = pixels.stat().st_blocks
    assert before > 0

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded)
    (said,) = caplog.messages
    assert f"in '{pixels.parent}': {os.strerror(number)}; the run continues" in said
    assert "deleted to free space" in said
    assert pixels.stat().st_blocks == 0
    assert torch.equal(see(image_folder, tmp_path / "cache")[0], decoded)


def test_what_is_free_must_also_do_for_the_features(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lit_extract.data.images, "free_bytes", lambda _: 10**6)
    module = ImageFolderDataModule(str(image_folder), num_workers=0, cache=str(tmp_path / "cache"))
    module.connect(Connection(SMALL, reserved_bytes=10**6))
    list(module.predict_dataloader())
    assert not (tmp_path / "cache").exists()


def test_state_is_of_the_image_and_its_place_in_the_dataset(image_folder):
    path, root = str(image_folder / "1.png"), str(image_folder)
    stat = (image_folder / "1.png").stat()
    states = [
        image_state(path, None, root, stat),
        image_state(path, 0, root, stat),
        image_state(path, 1, root, stat),
        image_state(str(image_folder / "2.png"), None, root, stat),
        image_state(path, None, root, (image_folder / "2.png").stat()),
    ]
    assert len(set(states)) == 5
    assert image_state(path, None, root, stat) == states[0]


def test_content_and_rotation_come_out_of_it_as_of_decoding(image_folder, tmp_path, count_decoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(image_folder / "3.png", exif=exif)

    def inputs():
        module = ImageFolderDataModule(
            str(image_folder), preprocessing=SMALL, num_workers=0, batch_size=2, cache=str(tmp_path / "cache")
        )
        return torch.cat([batch["inputs"] for batch in module.predict_dataloader()])

    first = inputs()
    count_decoded.clear()
    assert torch.equal(inputs(), first)
    assert count_decoded == []
    files = [image_folder / f"{row}.png" for row in range(7)]
    digests = [hashlib.blake2b(file.read_bytes(), digest_size=8).digest() for file in files]
    assert first[:, 0].tolist() == [file.stat().st_size for file in files]
    assert first[:, 1].tolist() == [file.stat().st_mtime_ns for file in files]
    assert first[:, 2].tolist() == [int.from_bytes(digest, "little", signed=True) for digest in digests]
    assert first[:, 3].tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize(("settings", "where"), [({}, "out/.pixels"), ({"data_cache": "off"}, None)])
def test_a_job_keeps_them_in_the_output_folder(run_job, tmp_path, count_decoded, settings, where):
    run_job(**settings)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".pixels")] == ([where] if where else [])
    count_decoded.clear()
    other = run_job(seed=1, overwrite=True, **settings)
    assert (count_decoded == []) == bool(where)
    kept = torch.load(other.files[0], weights_only=True)["feats"]
    anew = torch.load(run_job(seed=1, overwrite=True, data_cache="off").files[0], weights_only=True)["feats"]
    assert torch.equal(kept, anew)
