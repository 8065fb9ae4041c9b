"""What a .pt holds, read without torch, against what torch itself reads."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch

from lit_extract.storage import archive
from lit_extract.storage.archive import TensorRecord
from lit_extract.storage.finalize import finalize

PLAIN = {
    "feats": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "mask": torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8),
    "rows": torch.tensor([3, -4]),
    "nothing": torch.zeros(0, 5),
    "layers": ["blocks.0", "norm"],
    "metadata": {"n": 3, "loss": 0.5, "bad": [], "who": None, "big": 2**70, "name": "é", "yes": True},
}


def read_content(file):
    with file.open("rb") as opened:
        return archive.read_content(opened)


@pytest.fixture
def saved(tmp_path):
    def save(content):
        file = tmp_path / "some.pt"
        torch.save(content, file)
        return file

    return save


def numbers(file, record):
    return np.memmap(file, record.dtype, "r", record.offset, record.shape) if record.nbytes else np.zeros(record.shape)


def test_it_reads_what_torch_reads(saved):
    file = saved(PLAIN)
    content = read_content(file)
    assert list(content) == list(PLAIN)
    for key, value in PLAIN.items():
        if isinstance(value, torch.Tensor):
            assert content[key].shape == tuple(value.shape)
            np.testing.assert_array_equal(numbers(file, content[key]), value.numpy())
        else:
            assert content[key] == value


def test_a_part_of_a_storage_lies_where_it_should(saved):
    file = saved({"part": torch.arange(100.0)[30:50]})
    np.testing.assert_array_equal(numbers(file, read_content(file)["part"]), np.arange(30, 50))


def test_a_features_file_of_ours(make_store):
    store, feats = make_store()
    file = finalize(store.path)[0]
    content = read_content(file)
    assert content["stimulus_ids"] == list(range(100, 110))
    assert content["metadata"]["provenance"] == {**store.provenance, "pool": "cls"}
    np.testing.assert_array_equal(numbers(file, content["feats"]), feats["cls"])


def test_torch_is_not_imported(saved):
    code = (
        "import sys; from lit_extract.storage.archive import read_content; print(sorted("
        "read_content(open(sys.argv[1], 'rb')))); assert not {'torch', 'zarr', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, saved(PLAIN)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(PLAIN))


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_in_it_is_executed(saved, tmp_path):
    target = tmp_path / "made by the pickle"
    file = saved({"feats": Hostile(target)})
    with pytest.raises(ValueError, match=r"holds posix\.mkdir, which is not a plain value"):
        read_content(file)
    assert not target.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "it holds a list, not a dict"),
        ({"feats": torch.zeros(3, 4).T}, "not in C order"),
        ({"model": torch.nn.Linear(2, 2)}, "not a plain value"),
        ({"complex": torch.zeros(2, dtype=torch.complex64)}, "not a plain value"),
    ],
)
def test_what_is_no_features_file_is_said(saved, content, reason):
    with pytest.raises(ValueError, match=reason):
        read_content(saved(content))


def test_a_truncated_file_or_one_of_another_kind(saved, tmp_path):
    whole = saved(PLAIN).read_bytes()
    for number, content in enumerate((b"", b"text", whole[:-1], whole[: len(whole) // 2], whole[100:])):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"\w"):
            read_content(file)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a/text", "hello")
    with pytest.raises(ValueError, match=r"not a zip archive of torch\.save"):
        read_content(other)


def test_a_tensor_larger_than_its_record(saved):
    """Of eight numbers, in a pickle that has been changed; its checksum is right."""
    file = saved({"feats": torch.zeros(7), "more": torch.zeros(7)})
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read("some/data.pkl")
        changed = pickled.replace(b"K\x07\x85", b"K\x08\x85")
        assert len(changed) == len(pickled)
        content = content.replace(pickled, changed)
        crc = struct.pack("<I", archive.getinfo("some/data.pkl").CRC)
    file.write_bytes(content.replace(crc, struct.pack("<I", zlib.crc32(changed))))
    with pytest.raises(ValueError, match=r"shape \(8,\) does not fit its 28 bytes"):
        read_content(file)


def test_a_record_says_where_and_how_much(saved):
    record = read_content(saved({"feats": torch.zeros(2, 3, dtype=torch.float64)}))["feats"]
    assert record == TensorRecord("<f8", (2, 3), record.offset, 48)
    assert record.offset % 64 == 0, "torch aligns its records"
