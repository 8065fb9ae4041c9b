"""Status tells what is there, in every state it can be in, and never stumbles, executes anything or takes a lock."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import s3_server

from lit_extract.inspection.survey import Entry, Missing, find_missing, survey
from lit_extract.modules.registry import read_models
from lit_extract.storage.finalize import finalize
from lit_extract.storage.layout import NOT_FINITE, OK
from lit_extract.storage.store import Store, StoreSpec

REPOSITORY = Path(__file__).parents[2]
N, LAYERS, DIM, SHARD_ROWS = 10, 3, 4, 4
HOLDER = """
import sys
from pathlib import Path
from lit_extract.storage.places import place_of
with place_of(Path(sys.argv[1])).write_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def make_store(folder, model, pools=("cls",), prompt=None, shards=(0, 1, 2), bad=0, sweep=False):
    """A store as a run of ``model`` leaves it when these shards are done."""
    dataset, subset = folder.parts[-2:]
    untrained = subset.endswith("-untrained")
    ending = (f"_prompt-{prompt}" if prompt else "") + ("-untrained" if untrained else "")
    stem = f"{model.replace('/', '_')}_pool-"
    spec = StoreSpec(
        pools=pools,
        layers=[f"blocks.{k}" for k in range(LAYERS)],
        layer_shapes=[(DIM,)] * LAYERS,
        shard_rows=SHARD_ROWS,
        stimulus_ids=[f"{k}.jpg" for k in range(N)],
        provenance={
            "model": model,
            "dataset": dataset,
            "subset": subset.removesuffix("-untrained"),
            "weights": "untrained" if untrained else "hub:x",
            **({"prompt_name": prompt, "tokens_sha256": "0" * 64} if prompt else {}),
        },
        notes={
            "files": {pool: f"{stem}{pool}{ending}.pt" for pool in pools},
            "num_params": 1,
            "lit_extract": "0.1.0",
            **({"sweep": True} if sweep else {}),
            "created": "2026-01-02T03:04:05+00:00",
        },
    )
    store = Store.create(folder / f"{stem}{'+'.join(pools)}{ending}.zarr", spec)
    for shard in shards:
        rows = store.rows_of(shard)
        status = np.array([NOT_FINITE if row < bad else OK for row in rows], dtype=np.uint8)
        store.write_shard(shard, dict.fromkeys(pools, np.ones((len(rows), LAYERS, DIM), dtype=np.float32)), status)
    return store.path


def make_file(folder, model, **settings):
    return finalize(make_store(folder, model, **settings))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A folder with something in every state; one store is held by another process."""
    root = tmp_path_factory.mktemp("status") / "features"
    images, captions, untrained = root / "nsd" / "all", root / "nsd" / "shared", root / "nsd" / "all-untrained"
    make_file(images, "vit_a", pools=("cls", "avg"), bad=2)
    make_store(images, "vit_begun", shards=(0, 2))
    make_store(images, "vit_complete", sweep=True)
    finalize(make_store(images, "vit_kept"), keep_store=True)
    whole = make_store(images, "vit_left_behind")
    shutil.copytree(whole, root / "copy")
    finalize(whole)
    (root / "copy").rename(whole)
    running = make_store(images, "vit_running", shards=())
    make_file(captions, "org/lm", pools=("avg",), prompt="coco")
    make_file(captions, "org/other", pools=("avg",), prompt="mine", sweep=True)
    make_file(untrained, "vit_a", sweep=True)
    (images / "vit_a_pool-cls.pt.parity.json").write_text("{}")
    (images / "picture.png").write_bytes(b"x")
    (root / "logs").mkdir()
    (root / "logs" / "x.log").write_text("x")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(running)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        yield root, holder.pid
        holder.kill()


def by_name(found):
    return {str(entry.path.relative_to(found.folder)): entry for entry in found.entries}


def test_every_state_is_told(features):
    root, pid = features
    found = by_name(survey(root, REPOSITORY / "models.yml"))
    assert {name: entry.state for name, entry in found.items()} == {
        "nsd/all/vit_a_pool-cls.pt": "done",
        "nsd/all/vit_a_pool-avg.pt": "done",
        "nsd/all/vit_begun_pool-cls.zarr": "unfinished",
        "nsd/all/vit_complete_pool-cls.zarr": "complete",
        "nsd/all/vit_kept_pool-cls.pt": "done",
        "nsd/all/vit_kept_pool-cls.zarr": "kept",
        "nsd/all/vit_left_behind_pool-cls.pt": "done",
        "nsd/all/vit_left_behind_pool-cls.zarr": "leftover",
        "nsd/all/vit_running_pool-cls.zarr": "running",
        "nsd/shared/org_lm_pool-avg_prompt-coco.pt": "done",
        "nsd/shared/org_other_pool-avg_prompt-mine.pt": "done",
        "nsd/all-untrained/vit_a_pool-cls-untrained.pt": "done",
    }
    begun = found["nsd/all/vit_begun_pool-cls.zarr"]
    assert (begun.rows_done, begun.shards_left, begun.shape, begun.dtype) == (6, 1, (N, LAYERS, DIM), "float32")
    assert (begun.model, begun.kind, begun.dataset, begun.subset) == ("vit_begun", "vision", "nsd", "all")
    assert (begun.pools, begun.untrained, begun.lit_extract) == (("cls",), False, "0.1.0")
    assert begun.created == "2026-01-02T03:04:05+00:00"
    on_disk = [path.stat() for path in begun.path.rglob("*") if path.is_file()]
    assert begun.n_bytes == sum(stat.st_size for stat in on_disk)
    assert begun.modified == pytest.approx(max(stat.st_mtime for stat in on_disk), abs=1)
    done = found["nsd/all/vit_a_pool-avg.pt"]
    assert (done.rows_done, done.bad_rows, done.shape, done.dtype) == (N, 2, (N, LAYERS, DIM), "float32")
    assert (done.pools, done.n_bytes, done.lit_extract) == (("avg",), done.path.stat().st_size, "0.1.0")
    caption = found["nsd/shared/org_lm_pool-avg_prompt-coco.pt"]
    assert (caption.model, caption.kind, caption.prompt) == ("org/lm", "language", "coco")
    assert found["nsd/all-untrained/vit_a_pool-cls-untrained.pt"].untrained is True
    running = found["nsd/all/vit_running_pool-cls.zarr"]
    assert running.holder.startswith(f"process {pid} on ")
    assert (running.rows_done, running.shards_left) == (0, 3)


def test_looking_does_not_take_the_lock_and_a_killed_run_is_not_running(tmp_path):
    store = make_store(tmp_path / "nsd" / "all", "vit_a", shards=(1,))
    (store.parent / f".{store.name}.lock").write_text("process 1 on a-host-that-went-away")
    (entry,) = survey(tmp_path, REPOSITORY / "models.yml").entries
    assert (entry.state, entry.holder, entry.shards_left) == ("unfinished", None, 2)
    arguments = [sys.executable, "-c", HOLDER, str(store)]
    taken = subprocess.run(arguments, input="", capture_output=True, text=True, cwd=REPOSITORY)
    assert taken.stdout == "held\n", taken.stderr


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def break_folder(folder):
    """Everything that a killed run, a full disk or another program leaves; name -> (state, reason)."""
    (file,) = make_file(folder, "vit_cut")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    torch.save({"feats": torch.zeros(2, 3, 4), "num_params": 1}, folder / "older.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"feats": 1, "num_params": 1, "layers": [], "stimulus_ids": [], "metadata": {}}, folder / "odd.pt")
    torch.save({"x": Evil(folder / "executed")}, folder / "evil.pt")
    (folder / "evil_pickle.pt").write_bytes(pickle.dumps(Evil(folder / "executed")))
    (folder / "empty.pt").write_bytes(b"")
    (folder / ".vit_x_pool-cls.pt.part").write_bytes(b"x" * 1000)
    (folder / "folder.pt").mkdir()
    (folder / "empty.zarr").mkdir()
    (folder / "being_made.zarr.part" / "cls").mkdir(parents=True)
    (folder / "being_made.zarr.part" / "zarr.json").write_text("{")
    broken = make_store(folder, "vit_broken")
    (broken / "zarr.json").write_text((broken / "zarr.json").read_text()[:100])
    lacking = make_store(folder, "vit_lacking")
    (lacking / "cls" / "zarr.json").unlink()
    (folder / "dangling.pt").symlink_to(folder / "nowhere.pt")
    (folder / "circle").symlink_to(folder)
    return {
        "dangling.pt": ("unreadable", "link that leads to no file"),
        "vit_cut_pool-cls.pt": ("not ours", "zip"),
        "older.pt": ("not ours", "content: layers: field required"),
        "list.pt": ("not ours", "list"),
        "odd.pt": ("not ours", "feats"),
        "evil.pt": ("not ours", "mkdir"),
        "evil_pickle.pt": ("not ours", "zip"),
        "empty.pt": ("not ours", "zip"),
        ".vit_x_pool-cls.pt.part": ("leftover", "killed"),
        "empty.zarr": ("not ours", "it has no zarr.json"),
        "being_made.zarr.part": ("leftover", "killed"),
        "vit_broken_pool-cls.zarr": ("not ours", "its zarr.json is not whole"),
        "vit_lacking_pool-cls.zarr": ("not ours", "it has no cls/zarr.json"),
    }


def test_what_is_broken_or_foreign_is_listed_with_its_reason_and_not_executed(tmp_path, cli):
    folder = tmp_path / "nsd" / "all"
    folder.mkdir(parents=True)
    expected = break_folder(folder)
    code, out, err = cli("status", tmp_path)
    assert (code, err) == (0, "")
    assert not (folder / "executed").exists()
    found = {entry.path.name: entry for entry in survey(tmp_path).entries}
    assert found.keys() == expected.keys()
    for name, (state, reason) in expected.items():
        assert found[name].state == state, name
        assert reason in found[name].reason, (name, found[name].reason)
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {state}: {name}")]
        assert len(line) <= 120


def test_json_is_the_same_and_loads_neither_torch_nor_zarr(features):
    root, _ = features
    script = """
import sys
from lit_extract.cli import main
assert main(["status", sys.argv[1], "--json", "--models", sys.argv[2]]) == 0
heavy = {"torch", "zarr", "lightning", "pandas", "timm", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    arguments = [sys.executable, "-c", script, str(root), str(REPOSITORY / "models.yml")]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    found = survey(root, REPOSITORY / "models.yml")
    assert (told["format"], told["folder"]) == (2, str(root))
    assert [entry["path"] for entry in told["entries"]] == [str(entry.path) for entry in found.entries]
    assert [entry["shape"] for entry in told["entries"]] == [
        entry.shape and list(entry.shape) for entry in found.entries
    ]
    assert [group["models"] for group in told["missing"]] == [group.models for group in found.missing]


def test_the_table_has_a_line_a_model_and_says_what_is_missing(features, cli, tmp_path, monkeypatch):
    root, pid = features
    monkeypatch.chdir(tmp_path)
    models = Path("models.yml")
    models.write_text("vision: [vit_a, vit_begun, vit_absent]\nlanguage: [org/lm]\n")
    code, out, err = cli("status", root)
    assert (code, err) == (0, "")
    parts = [part.splitlines() for part in out.strip("\n").split("\n\n")]
    tables = {lines[0].partition(":")[0]: lines for lines in parts}
    images = tables[str(root / "nsd" / "all")]
    assert images[0].endswith("float32, lit-extract 0.1.0")
    assert images[1].split() == "model pool state rows bad left L×D size written".split()
    (begun,) = [line for line in images if line.startswith("  vit_begun ")]
    assert begun.split()[1:6] == ["cls", "unfinished", "6/10", "1", "shard"]
    assert len([line for line in images if line.startswith("  vit_a ")]) == 2
    assert any(line.startswith(f"  running: vit_running: process {pid} on ") for line in images)
    assert f"  missing 1 of 3 vision models of {models}: vit_absent" in images
    untrained = tables[str(root / "nsd" / "all-untrained")]
    assert untrained[-1] == f"  missing 2 of 3 vision models of {models}: vit_begun, vit_absent"
    captions = tables[str(root / "nsd" / "shared")]
    assert captions[1].split()[:4] == ["model", "pool", "prompt", "state"]
    assert captions[-1] == f"  missing all 1 language models of {models}, prompt mine"
    assert not any("prompt coco" in line for line in captions), "the one language model of that prompt is there"


def test_a_folder_has_one_table_also_when_another_is_in_it(tmp_path, cli):
    folder = tmp_path / "nsd" / "all"
    make_file(folder, "a")
    make_file(folder / "nsd" / "all", "m")
    make_file(folder, "z")
    _, out, _ = cli("status", tmp_path)
    assert [part.partition(":")[0] for part in out.split("\n\n")] == [str(folder), str(folder / "nsd" / "all")]


def test_the_models_of_models_yml_fit_into_120_columns(tmp_path, cli):
    names = read_models(REPOSITORY / "models.yml")
    for name in (entry.name for entry in names["vision"][::4]):
        make_store(tmp_path / "things" / "all", name, pools=("cls", "avg"), shards=(0,))
    make_file(tmp_path / "things" / "all", names["language"][5].name, prompt="handwritten")
    code, out, _ = cli("status", tmp_path, "--models", REPOSITORY / "models.yml")
    assert code == 0
    below = [line.replace(str(tmp_path), "features") for line in out.splitlines()]
    assert [line for line in below if len(line) > 120] == []


def test_find_missing():
    def entry(folder, model, kind="vision", prompt=None, tag=None, sweep=False):
        known = {"model": model, "kind": kind, "prompt": prompt, "tag": tag, "sweep": sweep}
        return Entry(Path(folder) / "x", "done", 0, 0.0, **known)

    entries = [
        entry("a", "v1", sweep=True),
        entry("a", "v1"),
        entry("a", "of my own"),
        entry("a", "v3", tag="518"),
        entry("a", "v2", tag="224", sweep=True),
        entry("alone", "v1"),
        entry("b", "l2", "language", "coco", sweep=True),
        entry("b", "l1", "language", "mine"),
        entry("b", "l2", "language", "mine"),
        Entry(Path("c/x"), "not ours", 0, 0.0),
    ]
    assert find_missing(entries, {"vision": ["v1", "v2", "v3"], "language": ["l1", "l2"]}) == [
        Missing(Path("a"), "vision", None, ["v2", "v3"], 3),
        Missing(Path("a"), "vision", None, ["v1", "v3"], 3, "224"),
        Missing(Path("b"), "language", "coco", ["l1"], 2),
    ]


REMOTE = """
import json, sys
from pathlib import Path
from s3fs import S3FileSystem
from inspection import test_status
from lit_extract.cli import main
from lit_extract.storage.places import place_of, to_path

S3FileSystem().mkdir("bucket")
images = to_path("s3://bucket/features/nsd/all")
test_status.make_file(images, "vit_a")
test_status.make_store(images, "vit_begun", shards=(0, 2))
running = test_status.make_store(images, "vit_running", shards=())
(images / "foreign.pt").write_bytes(b"x")
print("READY")
with place_of(running).write_lock():
    assert main(["status", "s3://bucket/features", "--json"]) == 0
assert main(["status", "s3://bucket/nothing"]) == 2
assert main(["status", "s3://no-such-bucket/features"]) == 2
"""


def test_a_remote_folder_is_told_like_a_local_one(tmp_path):
    with s3_server.server(tmp_path / "server.log") as server:
        done = subprocess.run(
            [sys.executable, "-c", REMOTE],
            cwd=REPOSITORY,
            env={**os.environ, **server.environment, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    told, _ = json.JSONDecoder().raw_decode(done.stdout.partition("READY\n")[2])
    states = {entry["path"].rpartition("/")[2]: entry for entry in told["entries"]}
    assert {name: entry["state"] for name, entry in states.items()} == {
        "foreign.pt": "not ours",
        "vit_a_pool-cls.pt": "done",
        "vit_begun_pool-cls.zarr": "unfinished",
        "vit_running_pool-cls.zarr": "running",
    }
    begun = states["vit_begun_pool-cls.zarr"]
    assert begun["path"].startswith("s3://bucket/features/nsd/all/")
    assert (begun["rows_done"], begun["shards_left"], begun["shape"]) == (6, 1, [N, LAYERS, DIM])
    assert begun["n_bytes"] > 0
    assert begun["modified"] is not None
    assert "process" in states["vit_running_pool-cls.zarr"]["holder"]
    assert done.stderr.splitlines() == [
        f"lit-extract: error: folder: there is nothing at 's3://{place}'"
        for place in ("bucket/nothing", "no-such-bucket/features")
    ]


def test_an_empty_folder_has_no_features_yet(tmp_path, cli):
    assert cli("status", tmp_path) == (0, f"{tmp_path}: no features yet\n", "")


def test_a_folder_that_is_none_is_refused(tmp_path, cli):
    (tmp_path / "x.pt").write_bytes(b"")
    for path, said in (("nowhere", "'nowhere' is not a folder"), (tmp_path / "x.pt", "lit-extract show")):
        code, out, err = cli("status", path)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
