"""What a features file says of itself reaches no model, dataset or path unchecked."""

from pathlib import Path

import pytest
from helpers.parity import TINY, captions_run, given, rewrite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": "@pd.io.common.os.system('touch X') == 0"}, "data.query: "),
        ({"query": "9**9**9 == demo_id"}, "data.query: "),
        ({"model": "hf-hub:someone/else"}, "model: the file names 'hf-hub:someone/else', which timm does not have"),
        ({"model": "local-dir:{folder}"}, "model: the file names 'local-dir:"),
        ({"model": "../../{folder}"}, "pass --model NAME"),
        ({"options": {"cache_dir": "{folder}/X"}}, "provenance.options: cache_dir"),
        ({"options": {"pretrained_cfg": {"url": "http://127.0.0.1/"}}}, "provenance.options: pretrained_cfg"),
        ({"options": {"depth": 10**9}}, "provenance.options: depth"),
        ({"options": {"global_pool": "{folder}/X"}}, "provenance.options: global_pool"),
        ({"dataset": "../folder"}, "provenance.dataset: "),
        ({"weights": "checkpoint", "checkpoint_sha256": "0" * 64, "model": "{folder}"}, "pass --model NAME"),
        ({"weights": "checkpoint", "checkpoint_sha256": "0" * 64}, "pass --checkpoint PATH"),
        ({"weights": "hub:someone/else", "revision": "0" * 40}, "weights: the file was made with hub:someone/else"),
        ({"weights": "hub:timm/test_vit.r160_in1k", "revision": "main"}, "provenance: revision"),
        ({"seed": 2**70}, "provenance: seed"),
        ({"seed": None}, "provenance: seed"),
        ({"precision": "16"}, "provenance: precision"),
        ({"model": "resnet18.a1_in1k"}, "preprocessing: the file was made with"),
        ({"model": "test_vit.other_tag"}, "which timm does not have"),
        (
            {"options": {"depth": 3}},
            "layers: the file has blocks.3, blocks.4, blocks.5, but the model has blocks.0, blocks.1",
        ),
        ({"options": {"embed_dim": 128}}, "the file has 6×64 layers and dimensions, but the model gives 6×128"),
        ({"options": {"embed_dim": 16384, "num_heads": 2, "depth": 200}}, "of memory"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("made", ["32-true"], indirect=True)
def test_what_a_file_says_of_itself_reaches_nothing_unchecked(file, certify, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("fetched"))
    change = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in change.items()}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(change))
    code, out, certificate = certify(file)
    assert (code, certificate) == (2, None)
    assert said in out
    assert out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("made", ["32-true"], indirect=True)
def test_the_user_names_a_model_that_is_not_known(file, certify, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert certify(file, "--model", TINY)[0] == 0
    code, out, _ = certify(file, "--model", "another")
    assert code == 2
    assert "model: the file names 'test_vit.r160_in1k', not 'another'" in out
    rewrite(file, lambda content: content["metadata"]["provenance"].update(options={"qkv_bias": True}))
    code, out, _ = certify(file)
    assert code == 2
    assert "only when models.yml has them for this model" in out
    Path("models.yml").write_text(f"vision: [{{name: {TINY}, options: {{qkv_bias: true}}}}]\n")
    code, out, _ = certify(file)
    assert code == 0, out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "someone/else"}, "model: the file names 'someone/else', which models.yml does not list"),
        ({"source": "/etc"}, "model: the file names '/etc', which models.yml does not list"),
        ({"weights": "hub:someone/else", "revision": "0" * 40}, "provenance.source"),
        ({"options": {"trust_remote_code": True}}, "provenance.options: trust_remote_code"),
        ({"options": {"gguf_file": "../x.gguf"}}, "provenance.options: gguf_file"),
        ({"tokenizer": "../tokenizer"}, "provenance: tokenizer"),
        ({"query": "@pd.io.common.os.system('touch X') == 0"}, "data.query"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_file_of_captions_says_of_itself_is_checked(tmp_path, certify, monkeypatch, change, said):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    monkeypatch.chdir(tmp_path)
    rewrite(file, lambda content: content["metadata"]["provenance"].update(change))
    code, out, certificate = certify(file, *given(folder))
    assert (code, certificate) == (2, None)
    assert said in out
    assert not Path("X").exists()


def test_a_folder_that_the_user_did_not_give_is_not_read(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    rewrite(file, lambda content: content["metadata"]["provenance"].update(model=str(folder)))
    code, out, _ = certify(file, "--captions", folder / "captions.csv")
    assert code == 2
    assert "checkpoint: give --checkpoint DIR" in out


def test_the_user_names_what_is_loaded_not_what_it_is_called(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    told = {"model": "someone/known", "source": "someone/else"}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(told))
    code, out, _ = certify(file, "--captions", folder / "captions.csv", "--model", "someone/known")
    assert code == 2
    assert "model: the file names 'someone/else', not 'someone/known'" in out


def test_a_file_does_not_choose_the_commit_whose_code_runs(tmp_path, certify):
    folder = tmp_path / "model"
    (file,) = captions_run(folder, "llama", tmp_path, untrained=True, pool="avg")
    told = {"source": "someone/tiny", "weights": "hub:someone/tiny", "revision": "1" * 40}
    rewrite(file, lambda content: content["metadata"]["provenance"].update(told))
    given = ("--captions", folder / "captions.csv", "--model", "someone/tiny", "--trust_remote_code", "true")
    code, out, _ = certify(file, *given)
    assert code == 2
    assert "trust_remote_code: the file decides which commit" in out
