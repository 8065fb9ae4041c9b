"""What ``lit-extract verify`` finds in a features file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers.language_models import save_captions, save_model

from lit_extract import CaptionDataModule, DemoDataModule, LanguageExtractor, VisionExtractor, extract
from lit_extract.inspection.soundness import soundness_of
from lit_extract.jobs.trainer import predict_trainer
from lit_extract.storage import archive


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Features of images and of captions, as predict makes them."""
    folder = tmp_path_factory.mktemp("made")
    trainer = predict_trainer("cpu", devices=1, precision="32-true")
    images = extract(
        VisionExtractor("test_vit.r160_in1k", untrained=True), DemoDataModule(), trainer, output_dir=str(folder)
    )
    save_model(folder / "model", "llama")
    save_captions(folder / "captions.csv", [5, 3, 9, 4])
    captions = extract(
        LanguageExtractor("tiny", checkpoint=str(folder / "model"), loss=True),
        CaptionDataModule(str(folder / "captions.csv"), "test"),
        predict_trainer("cpu", devices=1, precision="32-true"),
        output_dir=str(folder),
    )
    return {"images": images.files[0], "captions": captions.files[0]}


@pytest.fixture(params=["images", "captions"])
def either(request, made, tmp_path):
    return shutil.copy(made[request.param], tmp_path / "x_pool-cls.pt")


@pytest.fixture
def file(made, tmp_path):
    return shutil.copy(made["images"], tmp_path / "x_pool-cls.pt")


@pytest.fixture
def captions_file(made, tmp_path):
    return shutil.copy(made["captions"], tmp_path / "y_pool-avg.pt")


def read_content(file):
    with file.open("rb") as opened:
        return archive.read_content(opened)


def rewrite(file, change):
    """Save the content changed, as torch does, with checksums that are right."""
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def test_what_predict_made_is_sound(cli, either):
    code, out, err = cli("verify", either)
    assert (code, err) == (0, "")
    n, layers, dim = torch.load(either, weights_only=True)["feats"].shape
    assert out == f"{either}: sound: {n} stimuli × {layers} layers × {dim} dimensions\n"


def test_folders_and_files_a_line_each(cli, made):
    folder = made["images"].parents[2]
    code, out, _ = cli("verify", folder, made["images"])
    assert code == 0
    assert [line.partition(": sound")[0] for line in out.splitlines()] == sorted(map(str, made.values()))


@pytest.mark.parametrize("place", [0, 1 / 3, 1])
def test_a_bit_flipped_in_the_numbers(cli, file, place):
    feats = read_content(file)["feats"]
    content = bytearray(file.read_bytes())
    content[feats.offset + round(place * (feats.nbytes - 1))] ^= 1
    file.write_bytes(content)
    code, out, err = cli("verify", file)
    assert (code, out, err) == (2, f"{file}: WRONG: feats is damaged: its checksum differs\n", "")


@pytest.mark.parametrize("name", ["mask", "row_loss", "row_bpb"])
def test_a_bit_flipped_beside_the_features(cli, captions_file, name):
    content = bytearray(captions_file.read_bytes())
    content[read_content(captions_file)[name].offset] ^= 1
    captions_file.write_bytes(content)
    code, out, _ = cli("verify", captions_file)
    assert (code, out) == (2, f"{captions_file}: WRONG: {name} is damaged: its checksum differs\n")


@pytest.mark.parametrize("place", [16, 20, 24, 34, 38])
def test_a_bit_flipped_in_the_directory(cli, file, place):
    """Checksum, sizes, number of the disk and attributes of its first entry; torch could not open such a file."""
    with zipfile.ZipFile(file) as archive:
        start = archive.start_dir
    content = bytearray(file.read_bytes())
    content[start + place] ^= 0x10
    file.write_bytes(content)
    code, out, _ = cli("verify", file)
    assert code == 2
    assert out.startswith(f"{file}: WRONG: ")


def test_a_bit_flipped_anywhere_is_found_or_changes_nothing(file, tmp_path):
    """Every hundredth byte; what is not found is padding, or what torch alone reads of the zip format and refuses."""
    whole = file.read_bytes()
    expected = torch.load(file, weights_only=True)
    flipped, found = tmp_path / "flipped.pt", 0
    for place in range(0, len(whole), 101):
        content = bytearray(whole)
        content[place] ^= 0x10
        flipped.write_bytes(content)
        if soundness_of(flipped).problems:
            found += 1
            continue
        try:
            actual = torch.load(flipped, weights_only=True)
        except RuntimeError:
            continue
        for key in ("feats", "inputs"):
            assert torch.equal(actual.pop(key), expected[key])
        assert actual == {key: value for key, value in expected.items() if key not in ("feats", "inputs")}
    assert found > 0.9 * len(range(0, len(whole), 101))


@pytest.mark.parametrize("left", [0, 100, 0.5, -1, -22, -1000])
def test_a_truncated_file(cli, file, left):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else left])
    code, out, err = cli("verify", file)
    assert (code, err) == (2, "")
    assert out.startswith(f"{file}: WRONG: not a features file of lit-extract: ")
    assert out.count("\n") == 1


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_in_a_row_that_is_not_listed(cli, file, number):
    def plant(content):
        content["feats"][7, 2, 5] = content["feats"][23, -1, -1] = number
        content["feats"][3] = torch.nan
        content["metadata"]["bad_input_rows"] = [3]

    rewrite(file, plant)
    code, out, _ = cli("verify", file)
    assert (code, out) == (2, f"{file}: WRONG: NaN or infinity in rows that are not listed: 7, 23\n")


def test_a_number_that_is_not_finite_in_a_tensor_that_is_part_of_another(cli, file):
    def plant(content):
        shape = content["feats"].shape
        larger = torch.zeros(shape.numel() + 5)
        larger[5 + 7 * shape[1:].numel()] = torch.inf
        content["feats"] = larger[5:].reshape(shape)

    rewrite(file, plant)
    code, out, _ = cli("verify", file)
    assert (code, out) == (2, f"{file}: WRONG: NaN or infinity in rows that are not listed: 7\n")


def test_rows_that_are_listed_may_be_nan(cli, file):
    def plant(content):
        content["feats"][3] = torch.nan
        content["feats"][9, 1, 1] = torch.inf
        content["metadata"] |= {"bad_input_rows": [3], "not_finite_rows": [9]}

    rewrite(file, plant)
    code, out, _ = cli("verify", file)
    assert code == 0
    assert out.endswith("; 2 rows not finite, as listed in it\n")


@pytest.mark.parametrize("left", [0.0, torch.inf])
def test_a_bad_input_that_has_numbers(cli, file, left):
    def plant(content):
        content["feats"][3] = torch.nan
        content["feats"][3, 2, 1] = left
        content["metadata"]["bad_input_rows"] = [3]

    rewrite(file, plant)
    code, out, _ = cli("verify", file)
    assert (code, out) == (2, f"{file}: WRONG: bad_input_rows that are not NaN: 3\n")


def provenance(**changes):
    return lambda content: content["metadata"]["provenance"].update(changes)


def metadata(**changes):
    return lambda content: content["metadata"].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("layers"), "content: layers: "),
        (lambda c: c.update(feats=c["feats"][0]), "feats is not a float32 or float16 or bfloat16 tensor of 3 or 4"),
        (lambda c: c.update(feats=c["feats"].double()), "feats is not a float32 or float16"),
        (lambda c: c.update(feats=c["feats"][:0]), "feats is empty: its shape is (0, "),
        (lambda c: c.update(feats="x"), "content: feats"),
        (lambda c: c.update(layers=c["layers"][1:]), "5 layers for 6"),
        (lambda c: c.update(layers=["blocks.0"] * 6), "layers occur twice: blocks.0; layers differ from those of its"),
        (lambda c: c.update(layers=[*range(6)]), "content: layers.0: "),
        (lambda c: c["stimulus_ids"].pop(), "23 stimulus_ids for 24"),
        (lambda c: c["stimulus_ids"].__setitem__(5, 4), "stimulus_ids occur twice: 4"),
        (lambda c: c["stimulus_ids"].__setitem__(5, "five"), "stimulus_ids are not all int or all str"),
        (lambda c: c["stimulus_ids"].__setitem__(5, [5]), "content: stimulus_ids.5"),
        (lambda c: c.update(num_params=0), "content: num_params: "),
        (lambda c: c.update(metadata=[1]), "content: metadata: "),
        (lambda c: c["metadata"].pop("notes"), "content: metadata.notes: "),
        (metadata(format=3), "it has format 3; this version reads 2"),
        (metadata(bad_input_rows=[24]), "bad_input_rows must list rows 0 to 23"),
        (metadata(not_finite_rows=None), "content: metadata.not_finite_rows: "),
        (metadata(bad_input_rows=[3], not_finite_rows=[3]), "rows 3 are in bad_input_rows and in not_finite_rows"),
        (metadata(provenance={}), "content: metadata.provenance.model: "),
        (lambda c: c["metadata"]["provenance"].pop("dataset"), "its provenance has no dataset"),
        (provenance(n_stimuli=25), "n_stimuli of its provenance is 25, but it has 24 rows"),
        (provenance(layers=["blocks.1"]), "layers differ from those of its provenance"),
    ],
)
def test_what_is_missing_or_at_odds(cli, file, change, said):
    rewrite(file, change)
    code, out, err = cli("verify", file)
    assert (code, err) == (2, "")
    assert out.startswith(f"{file}: WRONG: {said}")
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("mask"), "mask is not a tensor of uint8 with 2 axes"),
        (lambda c: c.update(mask=c["mask"][:3].clone()), "mask has 3 rows for 4"),
        (lambda c: c.pop("row_bpb"), "row_bpb is not a tensor of float32 with 1 axes"),
        (lambda c: c.pop("loss"), "loss is missing"),
        (lambda c: c["row_loss"].__setitem__(1, torch.nan), "row_loss is not finite, or should not be, in rows 1"),
        (lambda c: c.update(bpb=c["bpb"] * 1.01), "bpb is "),
    ],
)
def test_what_captions_have_besides(cli, captions_file, change, said):
    rewrite(captions_file, change)
    code, out, err = cli("verify", captions_file)
    assert (code, err) == (2, "")
    assert out.startswith(f"{captions_file}: WRONG: {said}")


def test_all_that_is_wrong_with_a_file_is_said_in_one_line(cli, file, captions_file):
    def spoil(content):
        content["layers"][1] = content["layers"][0]
        content["stimulus_ids"][0] = 1
        content["metadata"]["provenance"]["n_stimuli"] = 7

    rewrite(file, spoil)
    code, out, _ = cli("verify", file, captions_file)
    assert code == 2
    first, second = out.splitlines()
    assert [part for part in ("occur twice: 1", "is 7, but it has 24", "layers occur twice") if part not in first] == []
    assert ": sound: " in second


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("key", ["feats", "metadata", "extra"])
def test_code_in_a_file_is_refused_and_not_run(cli, file, tmp_path, key):
    content = torch.load(file, weights_only=True)
    torch.save({**content, key: Malicious(tmp_path / "trace")}, file)
    code, out, err = cli("verify", file, "--parity", "2")
    assert (code, err) == (2, "")
    assert "not a features file of lit-extract: it holds posix.mkdir, which is not a plain value" in out
    assert not (tmp_path / "trace").exists()


def test_a_compressed_record_is_refused_not_unpacked(cli, file):
    """A gigabyte of zeros is a megabyte when compressed."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10**7))
    code, out, _ = cli("verify", file)
    assert code == 2
    assert out.startswith(f"{file}: WRONG: not a features file of lit-extract: it is not a zip archive of torch.save")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(range(256)) * 40])
def test_something_else(cli, tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    code, out, err = cli("verify", tmp_path)
    assert (code, err) == (2, "")
    assert out.startswith(f"{tmp_path / 'x.pt'}: WRONG: not a features file of lit-extract: ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere.pt"], "files: 'nowhere.pt': no such file"),
        (["."], "files: '.': no features file (.pt) below it"),
        ([], "files"),
        (["s3://bucket/x.pt"], "files: 's3://bucket/x.pt': it is remote; it must be a local path"),
        (["x.pt", "--parity", "0"], "parity: 0 stimuli; must be 1 or more"),
        (["x.pt", "--root", "/data"], "root: only for a certificate; also pass --parity"),
    ],
)
def test_settings_that_make_no_sense(cli, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("verify", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lit-extract: error: ")
    assert named in err
    assert err.count("\n") == 1


def test_a_path_that_can_not_be_checked_does_not_stop_the_others(cli, file, tmp_path):
    (tmp_path / "b.pt").write_bytes(file.read_bytes())
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dangling.pt").symlink_to("nowhere")
    code, out, err = cli("verify", file, "nope.pt", "s3://bucket/x.pt", tmp_path / "links", tmp_path / "b.pt")
    assert (code, err) == (2, "")
    assert [line.partition(" (")[0].partition(": sound")[0] for line in out.splitlines()] == [
        "nope.pt: NOT CHECKED: no such file",
        "s3://bucket/x.pt: NOT CHECKED: it is remote; it must be a local path",
        f"{tmp_path / 'links' / 'dangling.pt'}: NOT CHECKED: it is a link that leads to no file",
        str(file),
        str(tmp_path / "b.pt"),
    ]


def test_files_of_one_folder_that_were_made_from_other_images(cli, file, captions_file, tmp_path):
    """Such as those of earlier versions; a row that is bad in one of them is not compared."""
    bad, other = (shutil.copy(file, tmp_path / name) for name in ("a.pt", "z_pool-cls.pt"))

    def mark_bad(content):
        content["feats"][3] = torch.nan
        content["metadata"]["bad_input_rows"] = [3]

    def change(content):
        content["inputs"][[3, 5], 2] += 1

    rewrite(bad, mark_bad)
    assert cli("verify", tmp_path)[0] == 0
    rewrite(other, change)
    code, out, err = cli("verify", tmp_path)
    assert (code, err) == (2, "")
    assert [line.partition(": sound")[0] for line in out.splitlines()] == [
        *map(str, (bad, file, captions_file, other)),
        f"{tmp_path}: WRONG: z_pool-cls.pt was made from other images than the files before it: 2 of 24 differ: 3, 5",
    ]


def test_a_store_without_features_file_is_to_be_resumed_or_finalized(cli, make_store, tmp_path):
    store, _ = make_store(shards=[0, 2])
    expected = "it is unfinished (2 of 3 shards): the same predict command resumes it\n"
    code, _, err = cli("verify", store.path)
    assert code == 2
    assert err.endswith(f"files: {str(store.path)!r}: it is a store, not a features file (.pt); {expected}")
    code, _, err = cli("verify", tmp_path)
    assert code == 2
    assert err.endswith(f"no features file (.pt) below it, but the store {str(store.path)!r}; {expected}")
    complete, _ = make_store(name="a")
    _, _, err = cli("verify", tmp_path)
    listed = f"{str(complete.path)!r} (of 2, which lit-extract status lists)"
    assert f"{listed}; it is complete: lit-extract finalize {complete.path} makes its features file\n" in err
    (complete.path / "zarr.json").write_text("{")
    assert "not a lit-extract store" in cli("verify", complete.path)[2]


def test_in_constant_memory(tmp_path):
    """A file of 240 MB; torch, which reads it too, is there before."""
    file = tmp_path / "large.pt"
    n, layers = 600, [f"blocks.{k}" for k in range(20)]
    known = {
        **dict.fromkeys(("model", "weights", "pool", "dataset", "subset", "precision"), "x"),
        "options": {},
        "layers": layers,
        "n_stimuli": n,
    }
    rest = {"format": 1, "provenance": known, "notes": {}, "bad_input_rows": [], "not_finite_rows": []}
    content = {"num_params": 1, "layers": layers, "stimulus_ids": list(range(n)), "metadata": rest}
    torch.save({"feats": torch.zeros(n, 20, 5000), **content}, file)
    script = """
import resource, sys
import torch
from lit_extract.inspection import soundness
from lit_extract.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(["verify", sys.argv[1]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script, file], check=True, capture_output=True, text=True)
    line, kilobytes = run.stdout.splitlines()
    assert line.endswith("sound: 600 stimuli × 20 layers × 5000 dimensions")
    assert int(kilobytes) < 60_000


def certificate(file, **changes):
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: f"{record.CRC:08x}" for record in archive.infolist()}
    known = {"format": 1, "records_crc32": records, "verdict": "pass", "failures": [], "remarks": []}
    return {**known, "stimuli": [{}] * 8, "precision": "bf16-true", **changes}


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "; parity of 8 stimuli (bf16-true against float32)"),
        ({"remarks": ["of little use"]}, 0, "; warning: of little use"),
        ({"verdict": "fail", "failures": ["rows are lost"]}, 2, "WRONG: parity: rows are lost"),
        ({"verdict": "fail"}, 2, "x_pool-cls.parity.json is not a certificate: its verdict is 'fail'"),
        ({"format": 2}, 2, "WRONG: x_pool-cls.parity.json is not a certificate: format: should be 1, not 2"),
        ({"records_crc32": {}}, 2, "x_pool-cls.parity.json belongs to another file"),
    ],
)
def test_a_certificate_that_is_there_is_read(cli, file, changes, code, said):
    file.with_name("x_pool-cls.parity.json").write_text(json.dumps(certificate(file, **changes)))
    found, out, _ = cli("verify", file)
    assert found == code
    assert said in out


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}"])
def test_a_certificate_that_is_not_whole(cli, file, text):
    file.with_name("x_pool-cls.parity.json").write_text(text)
    code, out, _ = cli("verify", file)
    assert code == 2
    assert "WRONG: x_pool-cls.parity.json is not a certificate" in out


def test_a_certificate_does_not_hold_for_a_file_that_took_its_place(cli, file):
    file.with_name("x_pool-cls.parity.json").write_text(json.dumps(certificate(file)))
    rewrite(file, lambda content: content["feats"].__setitem__(0, content["feats"][1]))
    code, out, _ = cli("verify", file)
    assert code == 2
    assert "x_pool-cls.parity.json belongs to another file: this one was changed or replaced since" in out
    np.testing.assert_equal(soundness_of(file).problems, [])
