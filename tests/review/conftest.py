"""A small NSD with captions of all sorts, and the page about them: in process, served, and in a browser."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.small_review import CAPTIONS
from PIL import Image

from lit_extract.captioning.output import write_captions
from lit_extract.review.decisions import Decisions
from lit_extract.review.files import read_originals
from lit_extract.review.flags import Rules

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def root(tmp_path):
    """A folder with nsd.csv and eight images, the shade of each ten times its number."""
    root = tmp_path / "nsd"
    (root / "images").mkdir(parents=True)
    paths = [f"images/{number}.png" for number in range(len(CAPTIONS))]
    for number, path in enumerate(paths):
        Image.new("RGB", (40 + number, 30), (10 * number,) * 3).save(root / path)
    ids = range(100, 100 + len(paths))
    pd.DataFrame({"nsd_id": ids, "name": [f"n{i}" for i in ids], "path": paths}).to_csv(root / "nsd.csv", index=False)
    return root


@pytest.fixture
def captions(tmp_path):
    """nsd_captions.csv, as a run writes it."""
    path = tmp_path / "nsd_captions.csv"
    table = pd.DataFrame({"nsd_id": range(100, 100 + len(CAPTIONS)), "caption": CAPTIONS})
    write_captions(table.assign(model="mistralai/Pixtral-12B-2409", prompt="caption"), path)
    return path


@pytest.fixture
def review_file(captions):
    return captions.with_name("nsd_captions-review.csv")


@pytest.fixture
def decide_on(captions):
    """A function that opens the review, as a server does when it starts; what it opened before is forgotten, as by a
    kill."""

    def decide_on(file=captions):
        return Decisions(file, read_originals(file), "nsd_id", Rules())

    return decide_on


@pytest.fixture
def serve(captions, root):
    """A function that starts ``lit-extract review`` as a process; it returns the process and the address.

    The process has ``lines``, what it has printed until then.
    """
    processes = []

    def serve(*options, file=captions):
        command = [sys.executable, "-m", "lit_extract", "review", str(file), "--dataset", "nsd", "--root", str(root)]
        command += ["--no_browser", "--languages", "[]", *options]
        repository = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": repository}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=root.parent
        )
        processes.append(process)
        process.lines = []
        for line in process.stdout:
            process.lines.append(line)
            if address := re.search(r"http://\S+", line):
                return process, address[0]
        raise AssertionError("".join(process.lines))

    yield serve
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")  # not longer: meanwhile playwright has an event loop running in this thread
def chromium():
    """A headless browser, or the reason why there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, BROWSERS)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on this machine")
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()
