"""Images once more by Transformers alone: certified in both precisions, and faults that a certificate finds."""

import json
import shutil

import pytest
import transformers
from helpers.parity import PRECISIONS, rewrite, roll, run
from helpers.vision_families import FAMILIES, save
from safetensors.torch import load_file, save_file

from lit_extract import DemoDataModule, TransformersVisionExtractor
from lit_extract.modules.pooling import LANGUAGE_POOLINGS, VISION_POOLINGS


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """No remarks on the text models of families, whose vocabularies are tiny."""
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def few():
    return DemoDataModule(query="demo_id < 8", subset="few")


def made(family, tmp_path, precision="32-true", **settings):
    folder = tmp_path / "tiny"
    save(folder, *FAMILIES[family][:2])
    (file,) = run(TransformersVisionExtractor(str(folder), **settings), few(), tmp_path / "out", precision)
    return file, folder


SETTINGS = {
    "cls": ("DINOv3", {"layers": ["blocks", "norm"]}),
    "avg": ("DINOv2 with registers", {"pool": "avg", "backend": "pil"}),
    "avg_all": ("DeiT", {"pool": "avg_all"}),
    "grid": ("DINOv3", {"pool": "grid3"}),
    "head": ("CLIP", {"pool": "head"}),
    "padded patches": ("SigLIP 2 NaFlex", {"pool": "avg", "layers": ["norm", "blocks"]}),
    "one frame": ("V-JEPA 2", {"pool": "avg", "layers": ["norm", "blocks"]}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", SETTINGS)
def test_certified_with_nothing_of_what_made_the_file(case, precision, tmp_path, certify, monkeypatch):
    family, settings = SETTINGS[case]
    file, folder = made(family, tmp_path, precision, **settings)

    def not_independent(*_, **__):
        raise AssertionError("the reference must not use this")

    for name in (
        "lit_extract.modules.hooks.capture",
        "lit_extract.modules.transformers_vision.capture",
        "lit_extract.modules.transformers_vision.TransformersVisionExtractor.activations",
        "lit_extract.modules.vision_tower.run_tower",
        "lit_extract.modules.vision_tower.own_output",
        "lit_extract.modules.vision_tower.dissect",
        "lit_extract.data.processors.image_processing",
        "lit_extract.datasets.decode.to_rgb",
        "lit_extract.data.batches.read_stimulus",
    ):
        monkeypatch.setattr(name, not_independent)
    for name, pooling in VISION_POOLINGS.items():
        monkeypatch.setitem(VISION_POOLINGS, name, pooling._replace(pool=not_independent))
    monkeypatch.setitem(LANGUAGE_POOLINGS, "avg", not_independent)
    code, out, certificate = certify(file, "--checkpoint", folder)
    assert code == 0, out
    assert certificate["reference"] == "transformers output_hidden_states"
    assert {"transformers", "torchvision", "pillow"} <= certificate["versions"].keys()


def _other_weights(file, folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("fc1.weight") or "mlp.up_proj.weight" in name)
    weights[name][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _other_size(file, folder):
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["resample"] = 0
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize(
    ("fault", "code", "named"),
    [
        (lambda file, _: rewrite(file, roll), 2, "nearest"),
        (_other_weights, 2, "SHA-256"),
        (_other_size, 2, "SHA-256"),  # of the folder, which has the settings of the processor
    ],
)
def test_faults_are_found(fault, code, named, tmp_path, certify):
    file, folder = made("DINOv3", tmp_path)
    fault(file, folder)
    found, out, _ = certify(file, "--checkpoint", folder)
    assert found == code
    assert named in out


def test_another_backend_is_refused(tmp_path, certify):
    """Of the file: what it says of its processor is not what that is."""
    file, folder = made("DINOv2", tmp_path, pool="avg")

    def claim(content):
        content["metadata"]["provenance"]["preprocessing"]["backend"] = "pil"

    rewrite(file, claim)
    code, out, _ = certify(file, "--checkpoint", folder)
    assert code == 2
    assert "preprocessing" in out


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "/bin/sh"},
        {"image_processor": "x" * 10_000},
        {"settings": []},
        {"call": {"text": ["run this"]}},
    ],
)
def test_what_a_file_may_say_of_its_processor(change, tmp_path, certify):
    file, folder = made("DINOv3", tmp_path)
    rewrite(file, lambda content: content["metadata"]["provenance"]["preprocessing"].update(change))
    code, out, certificate = certify(file, "--checkpoint", folder)
    assert (code, certificate) == (2, None)
    assert next(iter(change)) in out


def test_untrained_with_the_folder_of_its_configuration(tmp_path, certify):
    folder = tmp_path / "tiny"
    save(folder, *FAMILIES["AIMv2"][:2])
    model = TransformersVisionExtractor("tiny", checkpoint=str(folder), untrained=True, seed=2, pool="avg")
    (file,) = run(model, few(), tmp_path / "out")
    assert certify(file, "--checkpoint", folder)[0] == 0
    code, out, _ = certify(file)
    assert code == 2
    assert "--checkpoint" in out


def test_another_configuration_is_refused(tmp_path, certify):
    folder = tmp_path / "tiny"
    save(folder, *FAMILIES["AIMv2"][:2])
    model = TransformersVisionExtractor("tiny", checkpoint=str(folder), untrained=True, seed=2, pool="avg")
    (file,) = run(model, few(), tmp_path / "out")
    shutil.rmtree(folder)
    save(folder, *FAMILIES["DINOv2"][:2])
    code, out, _ = certify(file, "--checkpoint", folder)
    assert code == 2
    assert "config_sha256" in out
