"""The tutorial from captions to review to features, run as it stands on its page."""

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.markdown import blocks_of, run_page

from lit_extract import load_features

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "captions-demo.md"

pytestmark = pytest.mark.slow


def run(command):
    """Run one command of the page; the review is stopped by Ctrl-C when its address is printed."""
    words = shlex.split(command)
    if words[0] != "lit-extract":
        return subprocess.run(words, check=True)
    words = [sys.executable, "-m", "lit_extract", *words[1:]]
    if words[3] != "review":
        return subprocess.run(words, check=True)
    with subprocess.Popen(
        [*words, "--no_browser"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        seen = ""
        for line in server.stdout:
            seen += line
            if "http://127.0.0.1:" in line:
                server.send_signal(signal.SIGINT)
        assert "http://127.0.0.1:" in seen, seen
    return server.returncode


def test_each_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shipped = Path("derivatives/captions/demo-captions-handwritten.csv")
    shipped.parent.mkdir(parents=True)
    shutil.copy(ROOT / shipped, shipped)
    run_page(PAGE)  # the tiny model
    commands = [line for block in blocks_of(PAGE) if block.marks == "bash" for line in block.code.splitlines()]
    assert [shlex.split(command)[:2][-1] for command in commands[1:]] == [
        *("check", "review", "check", "predict", "predict", "report"),
    ]
    for command in commands:
        run(command)
    language, vision = sorted(Path("features/demo/all-untrained").glob("*.pt"))
    assert load_features(language).stimulus_ids == load_features(vision).stimulus_ids == list(range(24))
    assert load_features(language).provenance["prompt_name"] == "mine"
    assert "tiny-gpt2" in Path("report/index.html").read_text(encoding="utf-8")
