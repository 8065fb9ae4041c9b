"""Features as predict makes them, and the command line that certifies them."""

import json
import shutil

import pytest
from helpers.parity import PRECISIONS, TINY, run

from lit_extract import DemoDataModule, VisionExtractor


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request, tmp_path_factory):
    """Features of the demo photographs, as predict makes them."""
    extractor = VisionExtractor(TINY, untrained=True, seed=3)
    return run(extractor, DemoDataModule(), tmp_path_factory.mktemp("made"), request.param)[0]


@pytest.fixture
def file(made, tmp_path):
    return shutil.copy(made, tmp_path / "x.pt")


@pytest.fixture
def certify(cli):
    """A function that runs verify; it returns exit code, what it printed and the certificate."""

    def run(file, *options, parity=4):
        code, out, err = cli("verify", file, "--parity", parity, *options)
        assert err == ""
        written = file.with_name(f"{file.stem}.parity.json")
        return code, out, json.loads(written.read_text()) if written.exists() else None

    return run
