"""What doctor finds on machines that have it, that lack it, and where it is broken."""

import contextlib
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lit_extract.datasets import DATASETS
from lit_extract.inspection import machine

REPOSITORY = Path(__file__).parents[2]


def by_name(findings):
    return {finding.what: finding for finding in findings}


@pytest.fixture
def datasets(monkeypatch):
    """A function that examines the datasets, of which none is known but those whose variables are set."""
    for dataset in DATASETS.values():
        if dataset.root_variable:
            monkeypatch.delenv(dataset.root_variable, raising=False)
    return lambda: by_name(machine.examine_datasets())


@pytest.fixture
def nsd(tmp_path, monkeypatch):
    """Two images of NSD, with an index, where its variable says."""
    for number in range(2):
        pixels = np.full((8, 8, 3), number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    pd.DataFrame({"nsd_id": [0, 1], "name": ["a", "b"], "path": ["0.png", "1.png"]}).to_csv(tmp_path / "nsd.csv")
    return lambda: monkeypatch.setenv("NSD_DATASET", str(tmp_path))


def test_datasets_that_are_not_known_are_missing_with_their_variable(datasets):
    found = datasets()
    assert {name: one.state for name, one in found.items()} == {
        "nsd": "missing", "bold5000": "missing", "things": "missing", "demo": "ok",
    }  # fmt: skip
    assert found["nsd"].advice.startswith("export NSD_DATASET=DIR")
    assert found["demo"].found.startswith("24 stimuli in ")


def test_a_dataset_is_found_with_its_images_or_said_to_lack_them(datasets, nsd, tmp_path):
    nsd()
    assert datasets()["nsd"] == machine.Finding("ok", "nsd", f"2 stimuli in {tmp_path}")
    (tmp_path / "1.png").unlink()
    found = datasets()["nsd"]
    assert (found.state, f"but no {tmp_path / '1.png'}" in found.found) == ("wrong", True)
    (tmp_path / "nsd.csv").unlink()
    found = datasets()["nsd"]
    assert (found.state, "no index or images" in found.found) == ("wrong", True)
    assert found.advice == "lit-extract index nsd --root DIR"


def test_each_optional_package_has_a_purpose():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*machine.PURPOSES} == {*project["optional-dependencies"]} - {"dev"}


@pytest.fixture
def packages(monkeypatch):
    """A function that examines packages, of which some have other versions, or None."""

    def examine(**versions):
        known = {"good": "2.0", "torch": "2.9", "openai": "1.70", **versions}
        wanted = [
            "good>=1.0",
            "torch>=2.9",
            "openai>=1.60; extra == 'server'",
            "lit-extract[server]; extra == 'review'",
        ]
        extras = SimpleNamespace(get_all=lambda _: ["server", "review", "dev"])
        monkeypatch.setattr(machine.metadata, "requires", lambda _: wanted)
        monkeypatch.setattr(machine.metadata, "metadata", lambda _: extras)
        monkeypatch.setattr(machine, "_version", known.get)
        return by_name(machine.examine_packages())

    return examine


def test_packages_are_compared_with_what_is_asked_for(packages):
    found = packages()
    assert {name: one.state for name, one in found.items()} == {"packages": "ok", "server": "ok", "review": "ok"}
    assert found["packages"].found == "good 2.0, torch 2.9"
    for version in ("2.8", None):
        found = packages(torch=version)["packages"]
        assert (found.state, found.advice) == ("wrong", "pip install 'torch>=2.9'")
    found = packages(openai=None)["server"]
    assert (found.state, found.advice) == ("missing", "pip install 'lit-extract[server]'")
    assert "openai not installed" in found.found


def test_without_an_installation_that_is_said(monkeypatch):
    def requires(_):
        raise machine.metadata.PackageNotFoundError

    monkeypatch.setattr(machine.metadata, "requires", requires)
    assert [one.state for one in machine.examine_packages()] == ["wrong"]


@contextlib.contextmanager
def hub(code):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def examine_hub(monkeypatch):
    def examine(address, token=None, whoami=lambda: {"name": "someone"}, offline=False):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://{address}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        monkeypatch.setattr("huggingface_hub.whoami", whoami)
        return by_name(machine.examine_hub())

    return examine


def refused():
    raise OSError("401 Client Error")


def test_the_hub_answers_or_does_not(examine_hub):
    for code in (200, 404):
        with hub(code) as address:
            found = examine_hub(address)
            assert (found["hub"].state, found["login"].state) == ("ok", "missing")
            assert found["login"].advice == "hf auth login"
            assert examine_hub(address, "hf_secret")["login"].state == "ok"
            assert examine_hub(address, "hf_secret", refused)["login"].state == "wrong"
    found = examine_hub(address)
    assert [*found] == ["hub"]
    assert (found["hub"].state, f"{address} does not answer" in found["hub"].found) == ("missing", True)
    assert "HF_HUB_OFFLINE is set" in examine_hub(address, offline=True)["hub"].found


def test_no_secret_is_printed(examine_hub):
    with hub(200) as address:
        texts = [str(examine_hub(address, "hf_secret", whoami)) for whoami in (dict, refused)]
    texts += [str(examine_hub("me:password@127.0.0.1:1")), str(examine_hub("me:password@127.0.0.1:x"))]
    assert not [text for text in texts if "secret" in text or "password" in text or "someone" in text]


def test_a_gpu_or_none_or_one_that_torch_does_not_find(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert by_name(machine.examine_torch())["GPU"].state == "missing"
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    found = by_name(machine.examine_torch())["GPU"]
    assert (found.state, "built without CUDA" in found.found) == ("wrong", True)
    card = SimpleNamespace(name="NVIDIA A40", total_memory=48 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    found = by_name(machine.examine_torch())
    assert found["GPU"].found.startswith("NVIDIA A40 (48.0 GB), NVIDIA A40 (48.0 GB); CUDA ")
    assert found["precision"].found.startswith("bf16-true")


def test_a_disk_that_can_be_written_and_one_that_can_not(tmp_path, monkeypatch):
    found = machine.examine_disk(str(tmp_path / "not" / "yet"))
    assert (found.state, f"free for {tmp_path / 'not' / 'yet'}" in found.found) == ("ok", True)
    (tmp_path / "file").write_text("")
    assert machine.examine_disk(str(tmp_path / "file")).state == "wrong"
    found = machine.examine_disk("/proc/foo/bar")
    assert (found.state, found.found.startswith("nothing can be written to /proc: ")) == ("wrong", True)
    assert [*tmp_path.iterdir()] == [tmp_path / "file"], "nothing remains"
    monkeypatch.setattr(machine, "free_bytes", lambda _: 999_999_999)
    found = machine.examine_disk(str(tmp_path))
    assert (found.state, found.found) == ("missing", f"1.0 GB free for {tmp_path}")


def test_a_models_file_that_can_not_be_read_is_wrong(tmp_path, monkeypatch):
    assert machine.examine_models_file().state == "ok"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yml").write_text("vision: 3\n")
    assert machine.examine_models_file().state == "wrong"


def test_the_command_prints_all_with_the_fix_below_and_tells_wrong_from_missing(cli, datasets, nsd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    assert "\nmissing nsd: NSD_DATASET is not set\n          export NSD_DATASET=DIR   # or --data.root DIR\n" in out
    assert [line for line in out.splitlines() if line.startswith("ok      packages: ")]
    nsd()
    assert "\nok      nsd: 2 stimuli" in cli("doctor")[1]
    monkeypatch.setenv("NSD_DATASET", "/nowhere")
    code, out, _ = cli("doctor")
    assert (code, "\nWRONG   nsd: " in out) == (3, True)
    assert out.splitlines()[-1].startswith("1 wrong, ")
