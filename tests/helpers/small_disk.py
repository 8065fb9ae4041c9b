"""Jobs on a disk of their own, which is small, fills up and becomes read-only; run by test_faults.py.

    unshare --map-root-user --mount python small_disk.py FOLDER

In a mount namespace a small file system may be mounted without being root.
"""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch

import lit_extract.storage.finalize
from lit_extract import DemoDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.store import Store

DISK = Path(sys.argv[1])


def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(DISK)], check=True)


def fill(left=0):
    """Take all the room there is but some bytes, as another program would."""
    with (DISK / "ballast").open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
        file.truncate(file.tell() - left)


def make_room():
    (DISK / "ballast").unlink()


class FillsAfterTwoShards(lightning.pytorch.Callback):
    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 4:
            fill()


def run(output, *callbacks, **settings):
    model = VisionExtractor("test_vit.r160_in1k", untrained=True)
    data = DemoDataModule(batch_size=2, shard_rows=4, num_workers=0, cache="off")
    trainer = predict_trainer("cpu", devices=1, precision="32-true", callbacks=list(callbacks))
    return extract(model, data, trainer, str(output), **settings)


def refused(output, *callbacks, **settings):
    try:
        run(output, *callbacks, **settings)
    except InputError as error:
        return str(error)
    raise AssertionError("it was not refused")


def feats(extraction):
    return load_features(extraction.files[0]).feats.numpy().copy()


def everything():
    return {path: path.read_bytes() for path in DISK.rglob("*") if path.is_file()}


def full_in_the_middle_of_a_shard(reference):
    error = refused(DISK, FillsAfterTwoShards())
    assert "No space left on device" in error, error
    assert "shards are safe: fix that and run the same command again" in error, error
    (store,) = DISK.rglob("*.zarr")
    done = len(Store(store).done_shards())
    assert 0 < done < 6, done
    assert list(DISK.rglob("*.partial")) == []
    make_room()
    assert feats(run(DISK)).tobytes() == reference.tobytes()


def full_in_the_middle_of_finalize(reference):
    run(DISK, finalize=False)
    before = everything()
    check = lit_extract.storage.finalize.check_room
    for left in (0, 2**12, 2**14, 2**15):
        lit_extract.storage.finalize.check_room = lambda *arguments, left=left, **more: (
            check(*arguments, **more),
            fill(left),
        )
        error = refused(DISK)
        assert "nothing is lost: fix that, then run lit-extract finalize" in error, error
        make_room()
        assert everything() == before
    lit_extract.storage.finalize.check_room = check
    assert feats(run(DISK)).tobytes() == reference.tobytes()


def read_only(reference):
    run(DISK, finalize=False)
    before = everything()
    mount("remount,ro")
    for settings in ({}, {"overwrite": True}):
        assert "Read-only file system" in (error := refused(DISK, **settings)), error
    (store,) = DISK.rglob("*.zarr")
    assert load_features(store).n_done == 24
    mount("remount,rw")
    assert everything() == before
    extraction = run(DISK)
    assert feats(extraction).tobytes() == reference.tobytes()
    mount("remount,ro")
    assert run(DISK).was_done


if __name__ == "__main__":
    reference = feats(run(DISK.with_name("elsewhere")))
    DISK.mkdir()
    for scenario in (full_in_the_middle_of_a_shard, full_in_the_middle_of_finalize, read_only):
        mount("size=2m")
        scenario(reference)
        subprocess.run(["umount", str(DISK)], check=True)
        print(f"{scenario.__name__}: as it should be", flush=True)
