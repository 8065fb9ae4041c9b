"""Poolings that keep several vectors a stimulus, from the model to the file.

Oracle: timm's own intermediates of the images as they are decoded, pooled by hand.
"""

import os
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

from lit_extract import ImageFolderDataModule, VisionExtractor, extract, load_features
from lit_extract.common.errors import InputError
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.finalize import finalize
from lit_extract.storage.store import Store

NAME = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def intermediates():
    """A function of a folder of images: their prefix tokens (N, L, 1, D) and maps (N, L, D, 10, 10)."""
    torch.manual_seed(0)
    model = timm.create_model(NAME).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def of(folder):
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*"))])
        with torch.no_grad():
            layers = model.forward_intermediates(
                images, norm=False, intermediates_only=True, output_fmt="NCHW", return_prefix_tokens=True
            )
        return torch.stack([x[1] for x in layers], dim=1), torch.stack([x[0] for x in layers], dim=1)

    return of


def test_tokens_are_all_tokens_and_stay_in_the_store_until_files_are_asked_for(run_job, image_folder, intermediates):
    prefix, maps = intermediates(image_folder)
    expected = torch.cat([prefix, maps.flatten(3).mT], dim=2)  # (N, L, 1 + 100, D)
    result = run_job(pool="tokens", data_shard_rows=4)
    assert result.files == []
    store = Store(result.store)
    assert store.is_kept
    features = load_features(result.store)
    assert (features.layer_shapes, features.shape) == ([(101, 64)] * 6, tuple(expected.shape))
    torch.testing.assert_close(features.feats, expected, rtol=1e-4, atol=1e-4)
    before = {path: path.stat().st_mtime_ns for path in result.store.rglob("*")}
    assert run_job(pool="tokens", data_shard_rows=4).store == result.store
    assert {path: path.stat().st_mtime_ns for path in result.store.rglob("*")} == before, "nothing was computed again"
    feats = features.feats
    (file,) = finalize(result.store)
    assert torch.equal(torch.load(file, weights_only=True)["feats"], feats)


@pytest.mark.parametrize("k", [1, 4, 5])
def test_a_grid_is_one_vector_for_each_part_of_the_image(run_job, image_folder, intermediates, k):
    _, maps = intermediates(image_folder)
    parts = [(i * 10 // k, -(-(i + 1) * 10 // k)) for i in range(k)]
    expected = torch.stack([maps[..., a:b, c:d].mean(dim=(3, 4)) for a, b in parts for c, d in parts], dim=2)
    (file,) = run_job(pool=f"grid{k}").files
    assert file.name == f"{NAME}_pool-grid{k}-untrained.pt"
    features = load_features(file)
    assert features.layer_shapes == [(k * k, 64)] * 6
    torch.testing.assert_close(features.feats, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.layer("blocks.2"), features.feats[:, 2])


@pytest.mark.parametrize("pool", ["avg", "tokens"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_data_types_are_those_numbers_rounded_once(run_job, tmp_path, pool, dtype):
    in_float32 = run_job(pool=pool, finalize=True).files
    rounded = run_job(tmp_path / "rounded", pool=pool, dtype=dtype, finalize=True).files
    expected = load_features(in_float32[0]).feats.to(getattr(torch, dtype))
    features = load_features(rounded[0])
    assert (features.dtype, features.provenance["dtype"]) == (dtype, dtype)
    assert torch.equal(features.feats, expected)
    assert rounded[0].stat().st_size < 0.7 * in_float32[0].stat().st_size


def test_another_data_type_is_another_setting(run_job):
    run_job(pool="avg")
    with pytest.raises(InputError, match="dtype was None, now 'bfloat16'"):
        run_job(pool="avg", dtype="bfloat16")


def test_what_float16_can_not_hold_is_listed(image_folder, tmp_path, monkeypatch):
    model = VisionExtractor(NAME, untrained=True, pool="grid2", dtype="float16")
    activations = model.activations

    def large(inputs):
        outputs = activations(inputs)
        outputs["feats"][0, 0, 7] = 65_520.0  # rounds to infinity
        return outputs

    monkeypatch.setattr(model, "activations", large)
    data = ImageFolderDataModule(str(image_folder), batch_size=64, num_workers=0)
    result = extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), str(tmp_path))
    assert result.not_finite_rows == [0]


@pytest.mark.parametrize("pool", [["tokens", "avg"], ["grid2", "grid4"], "grid0", "grid65", "grid"])
def test_what_does_not_fit_together_is_refused(pool):
    with pytest.raises(InputError, match=r"model\.pool: "):
        VisionExtractor(NAME, untrained=True, pool=pool)


def test_blocks_of_different_tokens_are_a_mapping(image_folder, tmp_path):
    """ConViT has 196 tokens, and 197 from block 10 on."""
    options = {"embed_dim": 24}
    model = VisionExtractor("convit_tiny", untrained=True, pool="tokens", layers=[9, 10], options=options)
    data = ImageFolderDataModule(str(image_folder), num_workers=0)
    trainer = predict_trainer("cpu", devices=1, precision="32-true")
    (file,) = extract(model, data, trainer, str(tmp_path), finalize=True).files
    features = load_features(file)
    assert features.layer_shapes == [(196, 96), (197, 96)]
    torch.manual_seed(0)
    twin, found = timm.create_model("convit_tiny", **options).eval(), []
    twin.blocks[10].register_forward_hook(lambda block, inputs, output: found.append(output))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(twin), is_training=False)
    with torch.no_grad():
        twin(torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(image_folder.glob("*"))]))
    torch.testing.assert_close(features.layer("blocks.10"), found[0], rtol=1e-4, atol=1e-4)


OTHER_CASES = ((NAME, "grid4"), ("test_resnet.r160_in1k", "avg"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pool"), [(NAME, "tokens"), *(pytest.param(*case, marks=pytest.mark.long) for case in OTHER_CASES)]
)
def test_a_killed_run_is_resumed_to_the_same_bytes(image_folder, tmp_path, name, pool):
    """The process is killed when its second shard has begun."""
    settings = f"""
from lit_extract import ImageFolderDataModule, VisionExtractor, extract
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage.store import Store
import os, signal, sys
write = Store.write_shard
if sys.argv[2] == "kill":
    def killed(self, shard, *rest):
        if shard == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, shard, *rest)
    Store.write_shard = killed
model = VisionExtractor({name!r}, untrained=True, pool={pool!r}, dtype="bfloat16")
data = ImageFolderDataModule({str(image_folder)!r}, batch_size=2, shard_rows=2, num_workers=0)
extract(model, data, predict_trainer("cpu", devices=1, precision="32-true"), sys.argv[1], finalize=True)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = lambda folder, how: subprocess.run(  # noqa: E731
        [sys.executable, "-c", settings, str(folder), how], env=environment, capture_output=True, check=False
    )
    assert run(tmp_path / "killed", "kill").returncode == -9
    (store,) = (tmp_path / "killed").rglob("*.zarr")
    assert Store(store).done_shards() == {0}
    assert run(tmp_path / "killed", "go").returncode == 0
    assert run(tmp_path / "whole", "go").returncode == 0
    resumed, whole = ((tmp_path / name).rglob("*.pt") for name in ("killed", "whole"))
    one, other = (load_features(next(files)) for files in (resumed, whole))
    assert one.layers == other.layers
    for k in range(len(one.layers)):
        assert torch.equal(one.layer(k).view(torch.int16), other.layer(k).view(torch.int16))
