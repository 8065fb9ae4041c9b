"""Damaged and hostile features files: what is read is right, and what verify calls sound is what torch.load returns."""

import contextlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pickles, torch_zip
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import changed_values, damaged_bytes, deep
from hypothesis import given
from hypothesis import strategies as st

from lit_extract.cli import main
from lit_extract.commands.show import show
from lit_extract.commands.status import as_json, as_text
from lit_extract.common.errors import InputError
from lit_extract.inspection.soundness import soundness_of
from lit_extract.inspection.survey import DONE, survey
from lit_extract.storage.archive import read_content, read_through
from lit_extract.storage.features import load_features
from lit_extract.storage.features_file import read_metadata

pytestmark = pytest.mark.slow

N, LAYERS, DIM = 3, ["blocks.0", "norm"], 2
MODELS = Path(__file__).parents[2] / "models.yml"


def features(kind="images"):
    """The content of a features file of today, feats and all."""
    of_captions = {"prompt_name": "own", "tokens_sha256": "0" * 64, "loss": True, "exclude_bos": False}
    provenance = {
        "model": "org/vit",
        "options": {"img_size": 32},
        "weights": "hub:org/vit",
        "layers": LAYERS,
        "pool": "cls",
        "dataset": "demo",
        "subset": "all",
        "query": None,
        "n_stimuli": N,
        "precision": "bf16-mixed",
        "preprocessing": {"input_size": [3, 32, 32], "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.25, 0.1]},
        **(of_captions if kind == "captions" else {}),
    }
    check = {"rows": [0, 1], "pools": {"cls": {"relative_error": [0.001, 0.01], "of_differences": [0.1, None]}}}
    content = {
        "feats": torch.arange(12, dtype=torch.float32).reshape(N, len(LAYERS), DIM),
        "num_params": 123,
        "layers": LAYERS,
        "stimulus_ids": [7, 300, 70_000] if kind == "images" else ["a/ü.jpg", "b", "007"],
        "metadata": {
            "format": 1,
            "provenance": provenance,
            "notes": {"lit_extract": "0.1", "created": "2026-01-02", "root": "/data", "precision_check": check},
            "n_bytes_sha256": None,
            "bad_input_rows": [1],
            "not_finite_rows": [],
        },
    }
    content["feats"][1] = torch.nan
    if kind == "stages":
        content["feats"] = {name: torch.ones(N, k + 2, dtype=torch.bfloat16) for k, name in enumerate(LAYERS)}
        for layer in content["feats"].values():
            layer[1] = torch.nan
        content["metadata"]["format"] = 2
    if kind == "captions":
        content |= {"mask": torch.tensor([[1, 1, 0]] * N, dtype=torch.uint8), "loss": 1.0, "bpb": 2.0}
        content |= {"row_loss": torch.ones(N), "row_bpb": torch.full((N,), 2.0)}
    else:
        content["inputs"] = torch.arange(4 * N).reshape(N, 4)
    return content


def saved(content):
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


GOOD = {kind: saved(features(kind)) for kind in ("images", "captions", "stages")}
ARCHIVES = {kind: torch_zip.read(content) for kind, content in GOOD.items()}
PICKLES = {kind: archive.members[0].content for kind, archive in ARCHIVES.items()}
_DECOY = torch_zip.read(saved({**features(), "feats": torch.zeros(N, 2, DIM), "stimulus_ids": [1, 2, 3]}))
DECOYS = {member.name.partition(b"/")[2]: member.content for member in _DECOY.members}
KINDS = st.sampled_from(list(GOOD))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def bits(tensor):
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def same(a, b, numbers=True):
    """Whether two contents are the same, down to types and bits; without the numbers of tensors, if so wished."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and (not numbers or bits(a) == bits(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key], numbers) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y, numbers) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def of_torch(file):
    return torch.load(file, weights_only=True, mmap=True)


def as_content(found):
    """What load_features returned, as it is in the file."""
    return {
        "feats": found.feats,
        "num_params": found.num_params,
        "layers": found.layers,
        "stimulus_ids": found.stimulus_ids,
        "metadata": found.metadata,
        **found.extras,
    }


def in_order(content):
    first = ("feats", "num_params", "layers", "stimulus_ids", "metadata")
    return {key: content[key] for key in first} | {key: content[key] for key in content if key not in first}


def sound(file):
    """What torch reads of a file that verify calls sound."""
    if problems := soundness_of(file).problems:
        raise InputError("; ".join(problems))
    return of_torch(file)


def try_all(folder, content, what, expected=None, numbers=True):
    """Read a file in every way: what comes of it is ``expected``, or what torch reads of the same bytes."""
    file = folder / "x.pt"
    file.unlink(missing_ok=True)
    file.write_bytes(content)

    def is_expected(found):
        right = of_torch(file) if expected is None else expected
        return same(as_content(found), in_order(right), numbers) and describes_features(right)

    loaded = outcome(f"features file, {what}", folder, lambda: load_features(file), is_expected)
    outcome(f"verify, {what}", folder, lambda: sound(file), lambda found: expected is None or same(found, expected))
    assert outcome(f"metadata, {what}", folder, lambda: read_metadata(file), lambda _: True) == loaded
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert outcome(f"show, {what}", folder, lambda: show(str(file)), lambda _: True) == loaded
    assert is_clean(printed.getvalue())
    outcome(f"status, {what}", folder, lambda: survey(folder, MODELS), lambda found: lists(found, loaded))
    return loaded


def is_clean(printed):
    """Whether a terminal may get it."""
    return not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in printed)


def lists(found, loaded):
    """Whether status has one entry that can be printed, which is done only if the file can be loaded."""
    (entry,) = found.entries
    json.loads(as_json(found))
    return entry.path.name == "x.pt" and (entry.state != DONE or loaded == RIGHT) and is_clean(as_text(found))


def describes_features(content):
    """What a features file must be, said once more and in other words."""
    feats, metadata = content["feats"], content["metadata"]
    if isinstance(feats, dict):
        shapes = {tuple(layer.shape) for layer in feats.values()}
        assert list(feats) == content["layers"]
        assert len({layer.dtype for layer in feats.values()}) == len({shape[0] for shape in shapes}) == 1
        assert {len(shape) for shape in shapes} <= {2, 3}
        n, depth = next(iter(shapes))[0], len(feats)
    else:
        n, depth, *_ = feats.shape
        assert feats.ndim in (3, 4)
    ids, layers = content["stimulus_ids"], content["layers"]
    assert len(ids) == n == len(set(ids))
    assert all(isinstance(i, int) and not isinstance(i, bool) and abs(i) <= 2**63 for i in ids) or all(
        isinstance(i, str) and i for i in ids
    )
    assert len(layers) == depth == len(set(layers))
    assert all(layer.isprintable() or layer for layer in layers)
    assert isinstance(metadata["provenance"]["model"], str)
    assert isinstance(metadata["provenance"]["pool"], str)
    rows = metadata["bad_input_rows"] + metadata["not_finite_rows"]
    assert len(rows) == len(set(rows))
    assert all(0 <= row < n for row in rows)
    return all(len(content[key]) == n for key in ("mask", "inputs", "row_loss", "row_bpb") if key in content)


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_good_file_is_right_in_every_way(folder, kind):
    assert try_all(folder, GOOD[kind], "good", features(kind)) == RIGHT
    assert try_all(folder, torch_zip.write(ARCHIVES[kind]), "good", features(kind)) == RIGHT
    assert soundness_of(folder / "x.pt").problems == []
    with (folder / "x.pt").open("rb") as file:
        read_through(file)


@fuzzed(250)
@given(st.data(), KINDS)
def test_damaged_bytes(folder, data, kind):
    content = data.draw(damaged_bytes(GOOD[kind]))
    try_all(folder, content, "bytes", features(kind), numbers=False)


@fuzzed(250)
@given(st.data(), KINDS)
def test_damaged_bytes_of_the_structure(folder, data, kind):
    """Without the padding, which is most of a small file."""
    content = bytearray(torch_zip.write(ARCHIVES[kind]))
    for _ in range(data.draw(st.integers(1, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try_all(folder, bytes(content), "bytes", features(kind), numbers=False)


@fuzzed(400)
@given(st.data())
def test_archives_that_readers_understand_differently(folder, data):
    try_all(folder, data.draw(torch_zip.changed_archives(ARCHIVES["images"], DECOYS)), "archive")


@pytest.mark.parametrize(
    ("name", "expected"),
    [(b".new_in_torch", RIGHT), (b"data/new", RIGHT), (b".FORMAT_VERSION", REFUSED), (b"DATA.PKL", REFUSED)],
)
def test_records_that_a_later_torch_may_add(folder, name, expected):
    archive = torch_zip.read(GOOD["images"])
    top = archive.members[0].name.partition(b"/")[0]
    archive.members.append(torch_zip.Member(top + b"/" + name, b"1"))
    assert try_all(folder, torch_zip.write(archive), "example", features("images"), numbers=False) == expected


def with_pickle(pickled, kind="images"):
    archive = torch_zip.read(GOOD[kind])
    archive.members[0].content = pickled
    return torch_zip.write(archive)


@fuzzed(400)
@given(st.data(), KINDS)
def test_changed_opcodes(folder, data, kind):
    try_all(folder, with_pickle(data.draw(pickles.changed_pickles(PICKLES[kind])), kind), "pickle")


def plain(content, tensors):
    """A content whose tensors are names, so that what is in it can be changed; the tensors are collected."""
    if isinstance(content, torch.Tensor):
        tensors[name := f"tensor {len(tensors)}"] = content
        return name
    return {key: plain(value, tensors) for key, value in content.items()} if isinstance(content, dict) else content


def with_tensors(value, tensors):
    if isinstance(value, dict):
        return {key: with_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_tensors(inner, tensors) for inner in value]
    return tensors.get(value, value) if isinstance(value, str) else value


OTHER_TENSORS = [
    torch.zeros(N, 2, DIM, dtype=torch.float64),
    torch.zeros(N, 2, DIM, dtype=torch.bfloat16),
    torch.zeros(2, N, DIM).transpose(0, 1),
    torch.zeros(1).expand(10**9, 2, DIM),
    torch.zeros(0, 2, DIM),
    torch.zeros(2**40, 0, DIM),
    torch.zeros(N, 2),
    torch.zeros(()),
    torch.zeros(N + 1, 2, DIM),
    torch.zeros(N, 2, DIM, requires_grad=True),
    torch.zeros(N, 2, dtype=torch.complex64),
    torch.zeros(N, 2, DIM).to_sparse(),
]


@fuzzed(400)
@given(st.data(), KINDS)
def test_changed_content(folder, data, kind):
    tensors = {}
    good = plain(features(kind), tensors)
    if data.draw(st.integers(0, 3)) == 0:
        tensors[data.draw(st.sampled_from(sorted(tensors)))] = data.draw(st.sampled_from(OTHER_TENSORS))
    content = with_tensors(data.draw(changed_values(good)), tensors)
    try:
        written = saved(content)
    except Exception:  # torch.save can't write everything either
        return
    try_all(folder, written, "content")


def refused(folder, content):
    assert try_all(folder, content, "example") == REFUSED


@pytest.mark.parametrize("hostile", pickles.HOSTILE, ids=range(len(pickles.HOSTILE)))
def test_hostile_pickles(folder, hostile):
    good = PICKLES["images"]
    for pickled in (b"\x80\2" + hostile + b".", good[:-2] + pickles.text("x") + hostile + b"u."):
        if pickled[2:-1] in (b"\x80\4",):
            continue
        try_all(folder, with_pickle(pickled), "hostile pickle")
    assert not Path("hacked").exists()


def test_a_nested_pickle_which_crashed_pythons_own_reader(folder):
    refused(folder, with_pickle(b"\x80\2}" + b")" + b"\x85" * 10**6 + b"Ns."))
    refused(folder, with_pickle(b"\x80\2" + b"(" * 10**6 + b"t" * 10**6 + b"."))
    refused(folder, saved({**features(), "x": deep(60)}))


def test_a_memo_that_stands_for_ten_to_the_twenty_values(folder):
    refused(folder, with_pickle(PICKLES["images"][:-2] + pickles.text("x") + pickles.BOMB + b"u."))


def test_a_memo_that_stands_for_a_terabyte_of_text(folder):
    """Also where an error would name the value: it is refused before anything prints or compares it."""
    text = "a" * 2**20
    for place in ("format", "notes", "provenance"):
        content = features()
        content["metadata"] |= {place: [text] * 1_000_000}
        refused(folder, saved(content))
    content = features()
    content["metadata"]["provenance"]["options"] = {"x": [text] * 1_000_000}
    refused(folder, saved(content))


def test_pickles_of_the_largest_size(folder):
    """Whatever fits into a pickle of the size that is possible takes neither long nor much memory."""
    for unit in (b"N", b"}", b"]", b"J\xff\xff\xff\x7f", b"X\2\0\0\0ab", b"X\0\0\x10\0" + "é".encode() * 2**19):
        refused(folder, with_pickle(b"\x80\2(" + unit * (2**26 // len(unit)) + b"l."))


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_bit_flipped_anywhere_in_the_pickle_is_refused(folder, kind):
    start = GOOD[kind].index(PICKLES[kind])
    for place in range(start, start + len(PICKLES[kind]), 7):
        content = bytearray(GOOD[kind])
        content[place] ^= 0x80
        file = folder / "x.pt"
        file.write_bytes(content)
        for read in (load_features, lambda file: show(str(file)), sound):
            assert outcome("flip", folder, lambda read=read, file=file: read(file), lambda _: False) == REFUSED


def archive(*more, kind="images"):
    members = torch_zip.read(GOOD[kind]).members
    top = members[0].name.partition(b"/")[0]
    return torch_zip.write(
        torch_zip.Archive([*members, *(torch_zip.Member(top + name, value) for name, value in more)])
    )


def test_members_of_which_readers_choose_different_ones(folder):
    pickled, numbers = DECOYS[b"data.pkl"], DECOYS[b"data/0"]
    refused(folder, archive((b"/DATA.PKL", pickled)))
    refused(folder, archive((b"/data.pkl", pickled)))
    refused(folder, archive((b"/DATA/0", numbers)))
    refused(folder, archive((b"/data/0", numbers)))
    for place in (0, len(ARCHIVES["images"].members)):
        two = torch_zip.read(GOOD["images"])
        two.members.insert(place, torch_zip.Member(b"other/data.pkl", pickled))
        refused(folder, torch_zip.write(two))
    out = io.BytesIO(GOOD["images"])
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(out, "a") as changed:
        changed.writestr("archive/data.pkl", pickled)
    refused(folder, out.getvalue())


def test_what_is_around_an_archive_is_refused(folder):
    good = GOOD["images"]
    for content in (
        b"x" + good,
        good + b"x",
        good + good,
        good[:-2] + b"\1\0x",
        bytes(2**17) + good,
        good + bytes(2**17),
    ):
        refused(folder, content)


@pytest.mark.parametrize(
    "change",
    [
        {"notes": [1]},
        {"notes": None},
        {"notes": {"lit_extract": {}}},
        {"notes": {"precision_check": 7}},
        {"notes": {"precision_check": {"pools": {"cls": {"relative_error": [1, "x"]}}}}},
        {"notes": {"exif_rotations": "many"}},
        {"provenance": 3},
        {"provenance": {"model": "a", "pool": 3}},
        {"provenance": {"model": "a", "pool": "cls", "precision": "\x1b[31m"}},
        {"provenance": {"model": "", "pool": "cls"}},
        {"provenance": {"model": "a", "pool": "../x"}},
        {"provenance": {"model": "a", "pool": "cls", "dataset": ["demo"]}},
        {"provenance": {"model": "a", "pool": "cls", "preprocessing": {"input_size": 3}}},
        {"bad_input_rows": [10]},
        {"bad_input_rows": [-1]},
        {"bad_input_rows": [True]},
        {"bad_input_rows": [1, 1]},
        {"not_finite_rows": {"1": 2}},
        {"format": "1"},
        {"format": 2**70},
    ],
    ids=str,
)
def test_metadata_of_other_types(folder, change):
    content = features()
    content["metadata"] |= change
    refused(folder, saved(content))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ["norm"]},
        {"layers": ["norm", "norm"]},
        {"layers": ["a", 1]},
        {"layers": ("a", "b")},
        {"layers": ["a", "b\n"]},
        {"layers": "ab"},
        {"stimulus_ids": [1, 2]},
        {"stimulus_ids": [1, 2, "3"]},
        {"stimulus_ids": [1, 2, True]},
        {"stimulus_ids": [1, 2, 2**63]},
        {"stimulus_ids": [1, 2, 2.0]},
        {"stimulus_ids": ["a", "b", ""]},
        {"stimulus_ids": [1, 2, 2]},
        {"stimulus_ids": torch.arange(3)},
        {"num_params": 1.5},
        {"num_params": 2**63},
        {"mask": torch.ones(N + 1, 2, dtype=torch.uint8)},
        {"inputs": torch.ones(N, 3, dtype=torch.int64)},
        {"row_loss": torch.ones(N, 1)},
        {"loss": 1},
        {"row_loss": torch.ones(N)},
        {"row_loss": torch.ones(N), "row_bpb": torch.ones(N), "loss": 1.0, "bpb": 1.0},
        *({"feats": tensor} for tensor in OTHER_TENSORS),
    ],
    ids=lambda change: next(f"{key} {value!r}"[:40] for key, value in change.items()),
)
def test_content_of_other_types(folder, change):
    refused(folder, saved({**features(), **change}))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2**40, 2, 2), (4, 2, 1)),
        ((2**62, 2**62, 2), (4, 2, 1)),
        ((10**9, 2, 2), (0, 0, 0)),
        ((-3, 2, 2), (4, 2, 1)),
        ((3, 2, 2), (4, 2)),
        ((3, 2, 2, 1) + (1,) * 1000, (4, 2, 1, 1) + (1,) * 1000),
        ((True, 2, 2), (4, 2, 1)),
    ],
    ids=lambda numbers: str(numbers)[:20],
)
def test_shapes_that_the_numbers_do_not_fill(folder, shape, strides):
    def tuple_of(numbers):
        pushed = (b"\x88" if n is True else b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in numbers)
        return b"(" + b"".join(pushed) + b"t"

    good = PICKLES["images"]
    assert good.count(b"K\3K\2K\2\x87") == good.count(b"K\4K\2K\1\x87") == 1
    pickled = good.replace(b"K\3K\2K\2\x87", tuple_of(shape)).replace(b"K\4K\2K\1\x87", tuple_of(strides))
    refused(folder, with_pickle(pickled))


def test_a_sparse_file_of_a_terabyte(folder):
    """It has all the numbers that it says, and costs nothing to make; so the size of a row is limited."""
    content, place = with_large_hole(2**38)
    file = folder / "x.pt"
    with file.open("wb") as out:
        out.write(content[:place])
        out.truncate(place + 4 * 2**38)
        out.seek(0, os.SEEK_END)
        out.write(content[place:])
    for read in (load_features, read_metadata, sound):
        assert outcome("sparse file", folder, lambda read=read: read(file), lambda _: False) == REFUSED
    assert outcome("status", folder, lambda: survey(folder, MODELS), lambda found: len(found.entries) == 1) == RIGHT
    file.unlink()


def with_large_hole(dim):
    """The bytes of a file of one row of so many dimensions without its numbers, and where these go."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        hole = torch.empty((1, 1, dim))
    content = {**features(), "feats": hole, "layers": ["a"], "stimulus_ids": [1]}
    content["metadata"]["bad_input_rows"] = []
    del content["inputs"]
    skeleton = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"skeleton-{os.getpid()}.pt"
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(content, skeleton)
    try:
        with skeleton.open("rb") as file:
            feats = read_content(file)["feats"]
            file.seek(0)
            before = file.read(feats.offset)
            file.seek(feats.offset + feats.nbytes)
            return before + file.read(), feats.offset
    finally:
        skeleton.unlink()


def test_what_is_no_file(tmp_path, monkeypatch, capsys):
    place = tmp_path / "odd"
    place.mkdir()
    os.mkfifo(place / "x.pt")
    (place / "folder.pt").mkdir()
    (place / "device.pt").symlink_to("/dev/zero")
    paths = [
        place / "x.pt",
        place / "folder.pt",
        place / "device.pt",
        place / ("x" * 300),
        place / "\ud800",
        place / "a\0b",
    ]
    for path in paths:
        for read in (load_features, sound):
            assert outcome("no file", tmp_path, lambda read=read, path=path: read(path), lambda _: False) == REFUSED
        for command in ("show", "verify", "status"):
            assert main([command, str(path)]) == (0 if (command, path) == ("status", place / "folder.pt") else 2)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out


def test_names_that_a_terminal_would_obey_are_shown_as_what_they_are(folder):
    content = features()
    content["metadata"]["provenance"] |= {"model": "\x1b[31m\nred", "subset": "\x9b", "weights": "\u2028"}
    content["metadata"]["notes"] |= {"root": "\x1b]0;x\x07", "precision_check": {"failed": "\x1b[31m"}}
    content["stimulus_ids"] = ["a\nb", "\x1b[31m", "c"]
    assert try_all(folder, saved(content), "example", content) == RIGHT


def test_a_good_file_whose_name_is_no_utf_8(folder, capsys):
    inner = folder / "names"
    inner.mkdir()
    for name in ("\udcff.pt", "a\nb.pt", "\x1b[31m.pt", "é.pt"):
        (inner / name).write_bytes(GOOD["images"])
        assert same(as_content(load_features(inner / name)), in_order(features()))
        assert same(sound(inner / name), features()) if name != "\udcff.pt" else True
        assert main(["show", str(inner / name)]) == 0
    assert main(["verify", str(inner)]) == 0
    printed = capsys.readouterr()
    assert (printed.err, is_clean(printed.out)) == ("", True)


def test_verify_goes_on_with_the_others(folder, capsys):
    good, bad = folder / "good.pt", folder / "bad.pt"
    good.write_bytes(GOOD["images"])
    for content in (
        with_pickle(b"\x80\2" + pickles.NESTED_KEYS + b"."),
        GOOD["images"][:-1],
        b"",
        archive((b"/DATA.PKL", b"x")),
    ):
        bad.write_bytes(content)
        assert main(["verify", str(bad), str(good)]) == 2
        first, second = capsys.readouterr().out.splitlines()
        assert ": WRONG: " in first
        assert ": sound: " in second


def test_files_of_before_are_read(folder):
    """Tuples, shared lists, numbers of any size; and none of the records that newer versions of torch add."""
    content = features()
    content["metadata"]["provenance"] |= {"mean": (0.5, 1), "seed": 2**70, "same": content["layers"]}
    del content["inputs"], content["metadata"]["format"]
    old = torch_zip.read(saved(content))
    old.members = [
        m for m in old.members if m.name.partition(b"/")[2] not in (b".format_version", b".storage_alignment")
    ]
    (folder / "x.pt").write_bytes(torch_zip.write(old))
    found = load_features(folder / "x.pt")
    assert same(as_content(found), in_order(content))
    np.testing.assert_array_equal(found.feats[0], content["feats"][0])
    assert struct.calcsize("<f") == found.feats.element_size()
