"""32-true is float32 in convolutions and matrix products too, where PyTorch or who uses it would take less."""

import subprocess
import sys

import pytest
import torch
from torch import backends

from lit_extract import DemoDataModule, VisionExtractor, extract
from lit_extract.jobs.trainer import predict_trainer

# Each setting in a process of its own, as the older switches can't be read, and so not put back, after some of them.
SCRIPT = """
import os
import torch
from torch import backends
from lit_extract.modules.precision import ieee_float32

def switches():
    new = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    state = [switch.fp32_precision for switch in new]
    for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            state.append(read())
        except RuntimeError:
            state.append("contradiction")
    return state

for setting in (
    "pass",
    "torch.set_float32_matmul_precision('medium')",
    "backends.fp32_precision = 'tf32'",
    "backends.cuda.matmul.fp32_precision = 'tf32'",
    "backends.cudnn.conv.fp32_precision = 'ieee'",
    "backends.cudnn.allow_tf32 = False",
):
    if os.fork():
        assert os.wait()[1] == 0, setting
        continue
    exec(setting)
    before = switches()
    try:
        with ieee_float32():
            assert switches() == ["ieee"] * 5 + ["highest", False], switches()
            raise KeyError
    except KeyError:
        pass
    assert switches() == before, switches()
    os._exit(0)
"""


def test_all_switches_say_so_whatever_was_set_before_and_that_comes_back():
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("precision", "inside"), [("32-true", "ieee"), ("bf16-true", "tf32"), ("bf16-mixed", "tf32")])
def test_a_run_in_float32_switches_them_and_no_other_does(precision, inside, tmp_path, monkeypatch):
    extractor = VisionExtractor("test_vit.r160_in1k", untrained=True)
    whole, seen = extractor.activations, []

    def activations(inputs):
        seen.append((len(inputs["image"]), backends.cudnn.conv.fp32_precision))
        return whole(inputs)

    monkeypatch.setattr(extractor, "activations", activations)
    assert backends.cudnn.conv.fp32_precision == "tf32", "PyTorch's default is another by now"
    extract(extractor, DemoDataModule(), predict_trainer("cpu", devices=1, precision=precision), str(tmp_path))
    assert set(seen[:-8]) == {(16, inside), (8, inside)}, "24 images, 16 at a time"
    assert set(seen[-8:]) == {(1, "ieee")}, "the check of some of them against float32"
    assert backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "highest"
