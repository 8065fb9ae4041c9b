"""Output on S3: what holds on a disk holds there, against a real server on loopback."""

import json
import re
import subprocess
import sys
import time
import urllib.request
import uuid

import numpy as np
import pytest
import torch
import zarr
from helpers import s3_server
from s3fs import S3FileSystem
from upath import UPath

from lit_extract import load_features
from lit_extract.common.errors import InputError
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import MISSING, OK
from lit_extract.storage.places import RemoteError, lease, place_of, to_path
from lit_extract.storage.store import Store, StoreSpec, is_store, remove_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with (
        s3_server.server(tmp_path_factory.mktemp("s3") / "server.log") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.environment.items():
            patch.setenv(name, value)
        S3FileSystem().mkdir(s3_server.BUCKET)
        yield running
        hang_up()


@pytest.fixture
def new_settings(monkeypatch):
    """For a test that changes how S3 is used: before it calls ``hang_up``, and what it changed is forgotten after."""
    yield monkeypatch
    monkeypatch.undo()
    hang_up()


def hang_up():
    """Forget all connections and the settings they were made with; those of zarr are ours to close."""
    for filesystem in list(S3FileSystem._cache.values()):
        if filesystem.asynchronous and filesystem._s3 is not None:
            zarr.core.sync.sync(filesystem._s3.__aexit__(None, None, None))
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def remote(server, request):
    """A remote folder of this test's own."""
    return to_path(f"s3://{s3_server.BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}/a prefix")


def names(folder):
    return sorted(place_of(folder).file_sizes([]))


def flip_a_bit(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def delete(file):
    file.unlink()


# the store


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_what_is_written_out_of_order_is_read_back(make_store, remote, protocol):
    folder = remote if protocol == "s3" else to_path("memory://a prefix")
    ids = ["b", "a/ü.jpg", "c", "a longer one", "d"]
    extras = {"n_bytes": "int64"}.items()
    store, feats = make_store(
        n=5, shard_rows=2, pools=("cls", "avg"), ids=ids, shards=[2, 0], folder=folder, extras=extras
    )
    again = Store(store.path)
    assert again.done_shards() == {0, 2}
    assert again.status().tolist() == [OK, OK, MISSING, MISSING, OK]
    assert again.extra("n_bytes").tolist() == [0, 1, 0, 0, 4]
    assert again.stimulus_ids() == ids
    for pool in ("cls", "avg"):
        np.testing.assert_array_equal(again.read_shard(pool, 2), feats[pool][4:], strict=True)
        layer = feats[pool][:, 1].copy()
        layer[2:4] = np.nan
        np.testing.assert_array_equal(again.read_layer(pool, 1), layer, strict=True)
    remove_store(store.path)
    assert not place_of(store.path).remains()


def test_the_objects_are_the_files_of_a_local_store(make_store, remote, tmp_path, monkeypatch):
    """So docs/store-format.md is about both, and a store can be copied from one to the other."""
    monkeypatch.setattr("lit_extract.storage.store.uuid.uuid4", lambda: uuid.UUID(int=1))
    local, _ = make_store()
    store, _ = make_store(folder=remote)
    files = {str(file.relative_to(local.path)): file for file in local.path.rglob("*") if file.is_file()}
    assert names(store.path) == sorted(files)
    differ = [name for name, file in files.items() if (store.path / name).read_bytes() != file.read_bytes()]
    assert differ == []


def test_a_truncated_object_is_not_done_and_can_be_written_again(make_store, remote):
    store, feats = make_store(folder=remote)
    truncate(store.path / "cls/c/2/0/0")
    store = Store(store.path)
    assert store.done_shards() == {0, 1}
    store.write_shard(2, {"cls": feats["cls"][8:]}, np.full(2, OK, dtype=np.uint8))
    assert store.done_shards() == {0, 1, 2}
    np.testing.assert_array_equal(store.read_shard("cls", 2), feats["cls"][8:])


def test_a_flipped_bit_is_found_and_its_shard_is_set_aside(make_store, remote):
    store, feats = make_store(folder=remote)
    flip_a_bit(store.path / "cls/c/1/0/0", 0.1)
    with pytest.raises(InputError, match=r"rows 4 to 7 of 's3://bucket/.*damaged"):
        store.read_shard("cls", 1)
    assert store.done_shards() == {0, 2}
    assert "cls/c/1/0/0.corrupt" in names(store.path)
    np.testing.assert_array_equal(store.read_shard("cls", 2), feats["cls"][8:])


def test_a_shard_lost_under_way_is_not_taken_for_nan(make_store, remote):
    store, _ = make_store(folder=remote)
    delete(store.path / "cls/c/1/0/0")
    with pytest.raises(InputError, match=r"rows 4 to 7 .*is lost"):
        store.read_shard("cls", 1)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, delete])
def test_damaged_values_of_rows_are_told_from_a_network_that_fails(make_store, remote, monkeypatch, damage):
    store, _ = make_store(folder=remote, extras={"n_bytes": "int64"}.items())
    damage(store.path / "n_bytes/c/1")

    async def fail(*_, **__):
        raise PermissionError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_cat_file", fail)
        with pytest.raises(RemoteError, match="not today"):
            store.drop_damaged()
    assert store.done_shards() == {0, 1, 2}
    assert store.drop_damaged() == [1]
    assert store.done_shards() == {0, 2}


def test_without_its_mark_it_is_no_store_and_none_of_its_shards_gets_into_the_next(make_store, remote):
    store, _ = make_store(folder=remote)
    delete(store.path / "zarr.json")  # creation or removal was killed
    assert not is_store(store.path)
    assert place_of(store.path).remains()
    with pytest.raises(InputError, match="is not a lit-extract store"):
        Store(store.path)
    store, _ = make_store(folder=remote, shards=[2])
    assert store.done_shards() == {2}


def test_the_mark_comes_last_and_goes_first(make_store, remote, monkeypatch):
    store, _ = make_store(folder=remote)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote.fs, "rm", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_store(store.path)
    assert not is_store(store.path)
    assert "cls/c/0/0/0" in names(store.path)
    written, pipe = [], remote.fs.pipe_file
    with monkeypatch.context() as patch:
        patch.setattr(remote.fs, "pipe_file", lambda path, *rest, **_: written.append(path) or pipe(path, *rest))
        make_store(folder=remote, shards=[])
    assert written[-1] == f"{store.path.path}/zarr.json"
    assert len(written) == 5


def test_what_may_not_be_deleted_is_no_ground_for_a_new_store(make_store, remote, monkeypatch):
    store, _ = make_store(folder=remote)
    delete(store.path / "zarr.json")
    monkeypatch.setattr(remote.fs, "rm", lambda *_, **__: None)  # S3 says nothing of what it may not delete
    with pytest.raises(RemoteError, match="objects could not be deleted"):
        make_store(folder=remote)
    assert not is_store(store.path)


def test_a_store_that_another_has_replaced_is_not_written_to(make_store, remote):
    store, feats = make_store(folder=remote, shards=[])
    store.write_shard(0, {"cls": feats["cls"][:4]}, np.full(4, OK, dtype=np.uint8))
    store.keep()
    store.write_shard(2, {"cls": feats["cls"][8:]}, np.full(2, OK, dtype=np.uint8))
    remove_store(store.path)
    with pytest.raises(InputError, match="removed or replaced during this run"):
        store.write_shard(1, {"cls": feats["cls"][4:8]}, np.full(4, OK, dtype=np.uint8))
    other, _ = make_store(folder=remote, shards=[])
    with pytest.raises(InputError, match="removed or replaced"):
        store.write_shard(1, {"cls": feats["cls"][4:8]}, np.full(4, OK, dtype=np.uint8))
    assert other.done_shards() == set()


def test_done_is_one_listing_not_a_request_for_each_shard(make_store, remote, monkeypatch):
    store, _ = make_store(n=20, shard_rows=1, folder=remote)
    calls, call = [], S3FileSystem._call_s3

    async def counted(self, method, *rest, **options):
        calls.append(method)
        return await call(self, method, *rest, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    assert len(store.done_shards()) == 20
    assert len(calls) <= 1


# the features file


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_the_features_file_is_that_of_a_local_store(make_store, remote, tmp_path, protocol):
    folder = remote if protocol == "s3" else to_path("memory://features")
    store, _ = make_store(folder=folder, pools=("cls", "avg"))
    files = finalize(str(store.path))
    assert [str(file) for file in files] == [f"{folder}/m_pool-{pool}.pt" for pool in ("cls", "avg")]
    assert names(folder) == ["m_pool-avg.pt", "m_pool-cls.pt"]
    local_store, _ = make_store(pools=("cls", "avg"))
    for file, local in zip(files, finalize(local_store.path), strict=True):
        copy = tmp_path / f"copy-{file.name}"
        copy.write_bytes(file.read_bytes())
        test = subprocess.run([sys.executable, "-m", "zipfile", "-t", copy], capture_output=True, text=True, check=True)
        assert test.stdout == "Done testing\n"
        found, expected = (torch.load(path, weights_only=True) for path in (copy, local))
        assert torch.equal(found.pop("feats"), expected.pop("feats"))
        assert found == expected


@pytest.fixture
def fetched(monkeypatch):
    """Bytes of each answer of the server."""
    sizes, call = [], S3FileSystem._call_s3

    async def weighed(self, method, *rest, **options):
        answer = await call(self, method, *rest, **options)
        if method == "get_object":
            sizes.append(answer["ContentLength"])
        return answer

    monkeypatch.setattr(S3FileSystem, "_call_s3", weighed)
    return sizes


def test_one_layer_of_a_store_is_fetched_without_the_others(make_store, remote, fetched):
    store, feats = make_store(folder=remote, layers=8, n=30, shard_rows=10, dim=500)
    fetched.clear()
    np.testing.assert_array_equal(store.read_layer("cls", 5), feats["cls"][:, 5], strict=True)
    assert sum(fetched) == 3 * (10 * 500 * 4 + 4 + 8 * 4 + 32 + 8 * 16 + 4)


def test_features_are_read_from_where_they_are(make_store, remote, tmp_path, monkeypatch, fetched):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store, feats = make_store(folder=remote, n=3000, dim=400, shard_rows=1000)  # 14 MB
    (file,) = finalize(store.path)
    fetched.clear()
    features = load_features(str(file))
    assert features.shape == (3000, 3, 400)
    assert features.stimulus_ids == list(range(100, 3100))
    assert features.provenance["model"] == "m"
    assert 0 < sum(fetched) < 4e6, "the numbers were fetched too"
    np.testing.assert_array_equal(features.layer("blocks.1").numpy(), feats["cls"][:, 1], strict=True)
    once = sum(fetched)
    np.testing.assert_array_equal(features.feats.numpy(), feats["cls"], strict=True)
    assert sum(fetched) == once, "a copy was there"
    assert list(tmp_path.glob("*.pt")) == [], "the copy has no name: it goes with the process"


def test_a_store_under_way_is_read_as_a_local_one(make_store, remote):
    store, feats = make_store(folder=remote, shards=[0])
    features = load_features(str(store.path))
    assert (features.n_done, features.shape) == (4, (10, 3, 4))
    np.testing.assert_array_equal(features.feats.numpy()[:4], feats["cls"][:4])


@pytest.fixture
def small_parts(new_settings, remote):
    """Uploads in the smallest parts that S3 takes."""
    new_settings.setattr(S3FileSystem, "default_block_size", 5 * 2**20)
    hang_up()
    return to_path(str(remote))


def uploads(folder):
    return folder.fs.list_multipart_uploads(s3_server.BUCKET)


def test_a_failure_in_the_middle_of_an_upload_leaves_nothing(make_store, small_parts, monkeypatch):
    store, feats = make_store(folder=small_parts, n=12, dim=500_000, layers=1)  # three shards of 8 MB
    begun, read_shard = [], Store.read_shard

    def fail(self, pool, shard, into):
        if shard == 2:
            begun.extend(uploads(small_parts))
            raise OSError("no route to host")
        return read_shard(self, pool, shard, into)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read_shard", fail)
        with pytest.raises(InputError, match=r"can't write 's3://.*: no route to host; nothing is lost: fix that"):
            finalize(store.path)
    assert begun, "it failed before anything was uploaded"
    assert uploads(small_parts) == []
    assert not any(name.endswith(".pt") for name in names(small_parts))
    (file,) = finalize(store.path)
    assert names(small_parts) == ["m_pool-cls.pt"]
    np.testing.assert_array_equal(load_features(file).feats.numpy(), feats["cls"])


def test_what_a_killed_upload_left_is_dropped(make_store, small_parts):
    store, _ = make_store(folder=small_parts)
    file = small_parts / "m_pool-cls.pt"
    other = small_parts / "another.pt"
    for path in (file, store.path / "cls/c/0/0/0", other):
        small_parts.fs.call_s3("create_multipart_upload", Bucket=s3_server.BUCKET, Key=path.path.partition("/")[2])
    finalize(store.path)
    assert [upload["Key"] for upload in uploads(small_parts)] == [other.path.partition("/")[2]]
    small_parts.fs.clear_multipart_uploads(s3_server.BUCKET)


def test_a_bit_lost_on_the_way_is_found_and_the_object_removed(make_store, remote, monkeypatch):
    store, _ = make_store(folder=remote)
    from lit_extract.storage.archive import write_filled

    class Lossy:
        def __init__(self, out):
            self.out = out

        def write(self, data):
            damaged = bytearray(data)
            if len(damaged) == 4 * 3 * 4 * 4:
                damaged[7] ^= 1
            return self.out.write(damaged)

    with monkeypatch.context() as patch:
        patch.setattr(
            "lit_extract.storage.finalize.write_filled",
            lambda skeleton, chunks, out: write_filled(skeleton, chunks, Lossy(out)),
        )
        with pytest.raises(InputError, match="read back differs from what was written"):
            finalize(store.path)
    assert not any(name.endswith(".pt") for name in names(remote))
    finalize(store.path)
    assert names(remote) == ["m_pool-cls.pt"]


def test_a_damaged_file_that_was_never_read_back_is_made_anew(run_job, remote, monkeypatch):
    """As after a kill between the upload and its verification."""
    undisturbed = run_job()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.storage.finalize.read_back", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(output_dir=remote)
    (file,) = [remote / name for name in names(remote) if name.endswith(".pt")]
    flip_a_bit(file)
    extraction = run_job(output_dir=remote)
    assert extraction.store is None
    assert torch.equal(load_features(file).feats, load_features(undisturbed.files[0]).feats)


# jobs


def test_a_job_equals_a_local_one_is_done_once_and_can_be_done_anew(run_job, remote, monkeypatch):
    local = load_features(run_job(pool=["cls", "avg"]).files[0])
    extraction = run_job(output_dir=remote, pool=["cls", "avg"])
    features = load_features(extraction.files[0])
    assert features.feats.numpy().tobytes() == local.feats.numpy().tobytes()
    assert features.provenance == local.provenance
    assert features.metadata["n_bytes_sha256"] == local.metadata["n_bytes_sha256"]
    folder = "folder/all-untrained/test_vit.r160_in1k_pool"
    assert names(remote) == [f"{folder}-avg-untrained.pt", f"{folder}-cls-untrained.pt"]
    with monkeypatch.context() as patch:
        patch.setattr("lit_extract.jobs.extraction.run_predict", lambda *_: pytest.fail("computed again"))
        assert run_job(output_dir=remote, pool=["cls", "avg"]).was_done
    with pytest.raises(InputError, match="seed was 0, now 1"):
        run_job(output_dir=remote, seed=1)
    kept = run_job(output_dir=remote, seed=1, overwrite=True, keep_store=True)
    assert kept.store is not None
    assert load_features(kept.files[0]).provenance["seed"] == 1
    assert run_job(output_dir=remote, seed=1).store == kept.store, "it was kept on purpose"


def test_a_bad_row_is_repaired_and_the_others_come_from_the_remote_file(run_job, remote, image_folder, monkeypatch):
    whole = (image_folder / "4.png").read_bytes()
    (image_folder / "4.png").write_bytes(bytes(len(whole)))
    settings = {"output_dir": remote, "data_shard_rows": 2, "data_on_bad_image": "skip"}
    before = load_features(run_job(**settings).files[0]).feats.numpy()
    (image_folder / "4.png").write_bytes(whole)
    written = []
    write_shard = Store.write_shard
    monkeypatch.setattr(
        Store, "write_shard", lambda self, shard, *rest: written.append(shard) or write_shard(self, shard, *rest)
    )
    extraction = run_job(**settings)
    assert written == [2]
    assert (extraction.bad_input_rows, extraction.store) == ([], None)
    after = load_features(extraction.files[0]).feats.numpy()
    assert np.delete(after, 4, 0).tobytes() == np.delete(before, 4, 0).tobytes()
    assert np.isfinite(after[4]).all()


def test_interrupted_it_goes_on_where_it_stopped(run_job, remote, monkeypatch, caplog):
    undisturbed = load_features(run_job(data_shard_rows=2).files[0]).feats
    write_shard = Store.write_shard

    def interrupt(self, shard, *rest):
        if shard == 2:
            raise OSError("the cable is out")
        return write_shard(self, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_shard", interrupt)
        with pytest.raises(InputError, match="the cable is out; 2 of 4 shards are safe"):
            run_job(output_dir=remote, data_shard_rows=2)
    caplog.set_level("INFO", "lit_extract")
    extraction = run_job(output_dir=remote, data_shard_rows=2)
    assert "2 of 4 shards done, 2 left" in caplog.text
    assert torch.equal(load_features(extraction.files[0]).feats, undisturbed)


def test_a_second_run_or_finalize_on_a_store_is_refused(run_job, remote, cli):
    store = run_job(output_dir=remote, finalize=False).store
    with place_of(store).write_lock():
        for overwrite in (False, True):
            with pytest.raises(InputError, match=r"is being written by another run \(process \d+ on "):
                run_job(output_dir=remote, overwrite=overwrite)
        assert_refused(cli("finalize", store), "is being written by another run")
    assert Store(store).missing_rows() == []


def test_show_and_finalize_of_the_command_line(run_job, remote, cli, tmp_path):
    store = run_job(output_dir=remote, finalize=False).store
    assert str(store).startswith("s3://bucket/")
    code, said, _ = cli("show", store)
    assert (code, "7 rows done" in said) == (0, True)
    code, said, _ = cli("finalize", store)
    file = f"{remote}/folder/all-untrained/test_vit.r160_in1k_pool-cls-untrained.pt"
    assert (code, said) == (0, f"{file}\n")
    code, said, _ = cli("show", file, "--picture", tmp_path / "x.png")
    assert (code, "7 stimuli × 6 layers" in said) == (0, True)
    assert (tmp_path / "x.png").exists()


# the lock

FOREIGN = {"holder": "process 7 on elsewhere", "id": "x", "machine": "another", "process": 7, "started": "1"}


@pytest.fixture
def quick(monkeypatch):
    """A lease that lives for seconds; S3 counts time in whole ones."""
    for name, seconds in {"RENEWED_S": 0.3, "ALIVE_S": 1.5, "EXPIRED_S": 3.5, "SETTLED_S": 0.5}.items():
        monkeypatch.setattr(lease, name, seconds)


def test_a_second_run_is_told_who_holds_it_and_the_object_goes_with_the_lock(remote):
    target = remote / "x.zarr"
    assert place_of(target).lock_holder() is None
    with place_of(target).write_lock():
        assert names(remote) == [".x.zarr.lock"]
        assert re.fullmatch(r"process \d+ on .+", place_of(target).lock_holder())
        with (
            pytest.raises(InputError, match=r"x\.zarr' is being written by another run \(process \d+ on .*s ago\)"),
            place_of(target).write_lock(),
        ):
            pytest.fail("two hold it")
        with place_of(remote / "y.zarr").write_lock():
            pass  # of other targets it says nothing
    assert names(remote) == []
    with pytest.raises(KeyError), place_of(target).write_lock():
        raise KeyError
    assert names(remote) == []


HOLD = """
import sys, time
from lit_extract.storage.places import place_of, to_path
with place_of(to_path(sys.argv[1])).write_lock():
    print(flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_holds_nothing_once_its_lease_has_expired(remote, monkeypatch):
    target = remote / "x.zarr"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match=f"process {process.pid} on "), place_of(target).write_lock():
            pytest.fail("two hold it")
        process.kill()
    assert names(remote) == [".x.zarr.lock"], "a kill leaves the object"
    monkeypatch.setattr(lease, "ALIVE_S", -1)
    monkeypatch.setattr(lease, "EXPIRED_S", -1)
    with place_of(target).write_lock():
        pass
    assert names(remote) == []


def test_a_lease_of_another_machine_is_waited_for_until_it_expires(remote, quick, caplog):
    caplog.set_level("INFO", "lit_extract")
    target, path = remote / "x.zarr", remote / ".x.zarr.lock"
    path.write_bytes(json.dumps(FOREIGN).encode())
    with pytest.raises(InputError, match="process 7 on elsewhere"), place_of(target).write_lock():
        pytest.fail("it was written a moment ago")
    began = time.monotonic()
    time.sleep(2.1)
    with place_of(target).write_lock():
        assert time.monotonic() - began > 3
        assert place_of(target).lock_holder() != FOREIGN["holder"]
    assert "waiting for s3://" in caplog.text
    assert names(remote) == []


def test_a_lease_is_renewed_and_so_never_expires(remote, quick, monkeypatch):
    target = remote / "x.zarr"
    with place_of(target).write_lock():
        time.sleep(4.5)
        assert place_of(target).lock_holder() is not None
        monkeypatch.setattr(lease, "RENEWED_S", 60)
        time.sleep(0.8)  # a renewal on its way would replace what is written next
        content = json.loads((remote / ".x.zarr.lock").read_bytes())
        (remote / ".x.zarr.lock").write_bytes(json.dumps({**content, "machine": "another"}).encode())
        with pytest.raises(InputError, match="being written by another run"), place_of(target).write_lock():
            pytest.fail("two hold it")
    assert names(remote) == [".x.zarr.lock"], "what is another's is not removed"


def test_status_reads_only(remote, run_job, cli, monkeypatch):
    """As with credentials that allow no writing; a lock that can't be read keeps nothing from being listed."""
    store = run_job(output_dir=remote, finalize=False).store
    (store.parent / f".{store.name}.lock").write_bytes(json.dumps(FOREIGN).encode())

    def refuse(*arguments, **settings):
        raise PermissionError("Access Denied")

    filesystem = type(remote.fs)
    for name in ("_pipe_file", "_put_file", "_rm_file", "_rm", "_cp_file"):
        monkeypatch.setattr(filesystem, name, refuse)
    code, out, err = cli("status", remote)
    assert (code, err) == (0, "")
    assert f"running: test_vit.r160_in1k: {FOREIGN['holder']}" in out
    monkeypatch.setattr(remote.fs, "cat_file", refuse)
    code, out, err = cli("status", remote)
    assert (code, err) == (0, "")
    assert "running: test_vit.r160_in1k: unknown: can't use " in out


def test_of_two_that_take_an_expired_lease_one_has_it(remote, monkeypatch):
    target, path = remote / "x.zarr", remote / ".x.zarr.lock"
    path.write_bytes(json.dumps({**FOREIGN, "id": "y"}).encode())
    alive, expired = lease.ALIVE_S, lease.EXPIRED_S
    monkeypatch.setattr(lease, "ALIVE_S", -1)
    monkeypatch.setattr(lease, "EXPIRED_S", -1)
    slept = []

    def other_is_later(seconds):
        """It found the same, removed what it took for that, and created its own."""
        slept.append(seconds)
        path.write_bytes(json.dumps(FOREIGN).encode())
        monkeypatch.setattr(lease, "ALIVE_S", alive)
        monkeypatch.setattr(lease, "EXPIRED_S", expired)

    monkeypatch.setattr(lease.time, "sleep", other_is_later)
    with (
        pytest.raises(InputError, match=r"being written by another run \(process 7 on elsewhere"),
        place_of(target).write_lock(),
    ):
        pytest.fail("two hold it")
    assert slept == [lease.SETTLED_S]


# what is wrong with the address


def run(cli, output_dir, *options):
    folder = ("--config", "configs/demo/vision.yaml", "--model.name", "test_vit.r160_in1k", "--model.untrained", "true")
    return cli("predict", *folder, "--trainer.accelerator", "cpu", "--output_dir", output_dir, *options)


def assert_refused(answer, *parts):
    code, _, said = answer
    assert code == 2
    assert said.count("lit-extract: error: ") == 1
    assert "Traceback" not in said
    assert [part for part in parts if part not in said] == []


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr("lit_extract.modules.vision.VisionExtractor.configure_model", lambda *_: pytest.fail("loaded"))


def test_a_bucket_that_is_not_there(cli, remote, no_model):
    assert_refused(run(cli, "s3://nowhere/x"), "s3://nowhere/x", "bucket does not exist")
    assert_refused(cli("show", "s3://nowhere/x.pt"), "no file 's3://nowhere/x.pt'")
    assert_refused(cli("finalize", "s3://nowhere/x.zarr"), "store: 's3://nowhere/x.zarr' is not a folder with a store")


def test_nothing_listens_there(cli, remote, no_model, new_settings):
    new_settings.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    new_settings.setattr(S3FileSystem, "retries", 1)
    hang_up()
    assert_refused(
        run(cli, str(remote)), "can't use 's3://", 'Could not connect to the endpoint URL: "http://127.0.0.1:1'
    )


def test_wrong_credentials(cli, remote, server, no_model):
    def authenticate_after(calls):
        request = urllib.request.Request(
            f"{server.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth",
            calls,
            {"Content-Type": "text/plain"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=10).close()

    authenticate_after(b"0")
    try:
        assert_refused(run(cli, str(remote)), "can't use 's3://", "Access Key Id")
        assert_refused(cli("show", remote / "x.pt"), "can't use 's3://")
    finally:
        authenticate_after(b"inf")


def test_no_credentials(cli, remote, no_model, new_settings):
    new_settings.delenv("AWS_ACCESS_KEY_ID")
    new_settings.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hang_up()
    assert_refused(run(cli, str(remote)), "can't use 's3://", "Unable to locate credentials")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint: nonsense"), ("AWS_PROFILE", "nobody", "profile (nobody)")],
)
def test_wrong_settings(cli, remote, no_model, new_settings, name, value, reason):
    new_settings.setenv(name, value)
    hang_up()
    assert_refused(run(cli, str(remote)), reason)


@pytest.mark.parametrize(
    ("output_dir", "reason"),
    [
        ("s3://", "'s3://' is incomplete"),
        ("s4://bucket/x", "s4"),
        ("gs://bucket/x", "pip install 'lit-extract[remote]'"),
    ],
)
def test_what_is_no_address(cli, no_model, output_dir, reason):
    assert_refused(run(cli, output_dir), "output_dir: ", output_dir, reason)


def test_without_the_extra(cli, no_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    assert_refused(run(cli, "s3://bucket/x"), "output_dir: 's3://bucket/x'", "pip install 'lit-extract[remote]'")


def test_what_must_be_local(cli, tmp_path, make_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, _ = make_store()
    assert_refused(cli("show", store.path, "--picture", "s3://bucket/x.png"), "picture: 's3://bucket/x.png' is remote")
    captions = (
        "--model",
        "Captioner",
        "--model.prompt",
        "caption",
        "--model.base_url",
        "http://127.0.0.1:1/v1",
        "--output",
        "s3://bucket/x.csv",
    )
    assert_refused(
        cli("predict", *captions, "--data", "ImageSourceDataModule", "--data.dataset", "demo"),
        "output: 's3://bucket/x.csv' is remote",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_pool-cls.zarr"]


def test_a_file_address_is_a_local_path(tmp_path):
    assert to_path(f"file://{tmp_path}/x") == tmp_path / "x"
    assert to_path("s3://bucket/a//b").path == "bucket/a//b"
    assert isinstance(to_path("s3://bucket/x"), UPath)


def test_status_writes_nothing_and_shows_what_is_there_without_leave_to_write(make_store, remote, cli, monkeypatch):
    make_store(folder=remote)
    lock = remote / ".m_pool-cls.zarr.lock"
    lock.write_bytes(json.dumps(FOREIGN).encode())

    def refuse(*_, **__):
        raise PermissionError("read-only")

    for name in ("_pipe_file", "_rm_file", "_rm"):
        monkeypatch.setattr(S3FileSystem, name, refuse)
    code, out, err = cli("status", remote, "--json")
    assert (code, err) == (0, "")
    (entry,) = json.loads(out)["entries"]
    assert (entry["path"], entry["state"], entry["holder"]) == (
        str(remote / "m_pool-cls.zarr"),
        "running",
        FOREIGN["holder"],
    )

    def unknown(*_, **__):
        raise PermissionError("no heads")

    monkeypatch.setattr(S3FileSystem, "modified", unknown)
    code, out, err = cli("status", remote, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["entries"][0]["holder"].startswith("unknown: ")


def test_layers_that_differ_in_shape_go_to_a_server_and_come_back(remote):
    numbers = [torch.arange(5 * n).reshape(5, n).to(torch.bfloat16) for n in (3, 2)]
    notes = {"files": {"avg": "m_pool-avg.pt"}, "num_params": 1}
    spec = StoreSpec(["avg"], ["a", "b"], [(3,), (2,)], 2, list(range(5)), {"model": "m"}, notes, dtype="bfloat16")
    store = Store.create(remote / "m.zarr", spec)
    for shard in range(3):
        rows = store.rows_of(shard)
        feats = {f"avg.{k}": x[rows.start : rows.stop].view(torch.uint16).numpy() for k, x in enumerate(numbers)}
        store.write_shard(shard, feats, np.full(len(rows), OK, dtype=np.uint8))
    assert all(torch.equal(load_features(store.path).layer(k), layer) for k, layer in enumerate(numbers))
    (file,) = finalize(store.path)
    features = load_features(file)
    assert [*features.feats] == ["a", "b"]
    assert all(torch.equal(features.layer(k), layer) for k, layer in enumerate(numbers))
