"""``lit-extract plan``: what it says is what a run then makes, of every shipped config, and without weights."""

import json
import re
from pathlib import Path

import pytest
from helpers.language_models import save_captions, save_model
from helpers.text_encoders import save_encoder
from transformers import LlamaConfig

from lit_extract import LanguageExtractor, VisionExtractor, load_features
from lit_extract.planning.memory import device_bytes, estimate_forward
from lit_extract.planning.needs import Machine, Needs, disk_needed, fits_disk

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = ("--config", CONFIGS / "demo" / "vision.yaml")
TINY = (*DEMO, "--model.name", "test_vit.r160_in1k", "--model.untrained", "true")
KB, GB = 10**3, 10**9


@pytest.fixture(autouse=True)
def without_network_and_gpu(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def plan(cli, monkeypatch):
    """A function that runs ``lit-extract plan ARGUMENTS``, which must load no weights."""

    def load(self):
        raise AssertionError("weights are loaded")

    def run(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(VisionExtractor, "configure_model", load)
            patched.setattr(LanguageExtractor, "configure_model", load)
            return cli("plan", *arguments)

    return run


@pytest.fixture
def planned(plan):
    """A function that plans and returns the JSON; the exit code must be the one that is expected."""

    def run(*arguments, code=0):
        found, out, err = plan(*arguments, "--json")
        assert (found, err) == (code, "")
        return json.loads(out)

    return run


@pytest.fixture
def refusal(plan):
    def run(*arguments):
        code, out, err = plan(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1, "one line, no traceback"
        return err

    return run


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a tiny model, and captions of 2, 10 and 60 tokens."""
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder / "model", "llama")
    save_captions(folder / "captions.csv", [1, *[9] * 100, *[59] * 20])
    return folder


def language(folder):
    return (
        "--config",
        CONFIGS / "nsd" / "language.yaml",
        "--model.name",
        "tiny",
        "--model.checkpoint",
        folder / "model",
    )


def captions(folder):
    """All in one shard, so that the longest are the first batch."""
    settings = ("--data.captions", folder / "captions.csv", "--data.prompt_name", "test", "--data.subset", "first")
    return (*settings, "--data.shard_rows", 121)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/vision.yaml")), ids=lambda path: path.parent.name)
def test_every_vision_config_is_planned_without_its_dataset(plan, config):
    hardware = CONFIGS / "trainer" / "a40.yaml"  # there is no such card here
    code, out, err = plan("--config", config, "--config", hardware, "--rows", 1000)
    assert (code, err) == (0, "")
    assert f"1,000 images of {config.parent.name}, pooling cls, bf16-true, A40 of 48.0 GB" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/language.yaml")), ids=lambda path: path.parent.name)
def test_every_language_config_is_planned_with_a_local_model(plan, llama, config):
    code, out, err = plan("--config", config, "--model.checkpoint", llama / "model", "--rows", 1000)
    assert (code, err) == (0, "")
    assert f"1,000 captions of {config.parent.name}" in out
    assert "captions were not read" in out


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/text_encoder.yaml")), ids=lambda path: path.parent.name)
def test_every_text_encoder_config_is_planned_with_a_local_model(plan, tmp_path, config):
    save_encoder(tmp_path, "mpnet")
    code, out, err = plan("--config", config, "--model.checkpoint", tmp_path, "--rows", 1000)
    assert (code, err) == (0, "")
    assert f"1,000 captions of {config.parent.name}" in out
    assert "3×32" in out


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*/captions.yaml")), ids=lambda path: path.parent.name)
def test_captions_have_no_plan(refusal, config):
    assert "plan is for features" in refusal("--config", config)


@pytest.mark.parametrize("pool", ["cls", "[cls, avg]"])
def test_what_is_planned_is_what_is_made(cli, planned, tmp_path, pool):
    settings = (*TINY, "--model.pool", pool, "--output_dir", tmp_path / "out", "--trainer.accelerator", "cpu")
    (model,) = planned(*settings)["models"]
    assert cli("predict", *settings)[0] == 0
    files = sorted(tmp_path.glob("out/demo/*/*.pt"))
    shapes = {load_features(file).feats.shape for file in files}
    assert shapes == {(model["rows"], model["layers"], *model["layer_shapes"][0])}
    assert load_features(files[0]).num_params == model["parameters"]
    size = sum(file.stat().st_size for file in files)
    assert size <= model["features"] <= size + len(files) * 80 * KB
    assert model["disk_left"] == model["disk_peak"] > 2 * model["features"] - 100 * KB
    assert planned(*settings)["models"][0]["disk_left"] == 0, "it is there now"


def test_a_card_and_its_batch(planned):
    tiny = (*TINY, "--trainer.precision", "bf16-true")
    plans = {
        memory: planned(*tiny, "--rows", 1000, "--card_memory", memory, code=code)["models"][0]
        for memory, code in ((48, 0), (0.62, 0), (0.6, 3))
    }
    assert {memory: plan["fits"] for memory, plan in plans.items()} == {48: "yes", 0.62: "split", 0.6: "no"}
    assert plans[48]["batch"] == [64, 0]
    expected = estimate_forward(VisionExtractor("test_vit.r160_in1k"), 64, 0, "bf16-true", on_gpu=True)
    assert plans[48]["device"] == device_bytes(expected)


def test_on_a_cpu_memory_of_the_device_is_that_of_the_host(planned):
    plan = planned(*TINY, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    assert (plan["machine"]["card"], plan["machine"]["precision"]) == (None, "32-true")
    assert plan["models"][0]["device"] is None
    assert 0.7 * GB < plan["models"][0]["host"] < 0.8 * GB


def test_all_models_of_a_file_with_the_reason_for_those_that_can_not_be(plan, planned, tmp_path):
    models = tmp_path / "some.yml"
    models.write_text("vision: [test_vit.r160_in1k, no_such_model, resnet18.a1_in1k, test_vit2.r160_in1k]\n")
    settings = (*DEMO, "--models", models, "--untrained", "--model.pool", "avg")
    content = planned(*settings, code=3)
    assert [bool(model["problem"]) for model in content["models"]] == [False, True, False, False]
    assert "no model of timm is called 'no_such_model'" in content["models"][1]["problem"]
    assert content["models"][2]["layer_shapes"] == [[64], [64], [128], [256], [512]]
    assert content["total"]["features"] == sum(model["features"] for model in content["models"])
    code, out, _ = plan(*settings)
    assert code == 3
    assert re.search(r"^test_vit\.r160_in1k +6×64 +371\.2 k", out, re.MULTILINE)
    assert re.search(r"^resnet18\.a1_in1k +5×64…512 +11\.7 M", out, re.MULTILINE)
    assert "not planned: 1" in out
    assert "3 models: " in out
    assert [model["model"] for model in planned(*settings, "--match", "vit2")["models"]] == ["test_vit2.r160_in1k"]


def test_which_part_of_a_picture_is_seen(plan, planned, tmp_path):
    own = "the middle 95 % × 95 % of a square picture (91 % of its area), resized to 160 × 160"
    whole = "the whole picture, squashed to 160 × 160"
    given = ("--model.preprocessing", "{crop_pct: 1.0, crop_mode: squash}")
    (before,), (after,) = (planned(*TINY, *settings)["models"] for settings in ((), given))
    assert (before["seen"], after["seen"]) == (own, whole)
    assert before["geometry"] != after["geometry"], "no cache of pixels is shared"
    assert f"seen by test_vit.r160_in1k:\n  {whole}\n" in plan(*TINY, *given)[1]
    models = tmp_path / "some.yml"
    models.write_text("vision: [test_vit.r160_in1k, test_vit2.r160_in1k, vit_tiny_patch16_224.augreg_in21k]\n")
    out = plan(*DEMO, "--models", models, "--untrained", "--model.pool", "avg")[1]
    assert f"seen by test_vit.r160_in1k, test_vit2.r160_in1k:\n  {own}\nseen by vit_tiny_patch16_224" in out
    assert "resized to 224 × 224\n" in out


def test_models_of_the_file_have_its_settings(planned, tmp_path):
    models = tmp_path / "some.yml"
    models.write_text("vision: [{name: test_vit.r160_in1k, options: {img_size: 320}}]\n")
    sizes = [
        planned(*settings, "--rows", 100, "--trainer.precision", "bf16-true")["models"][0]["device"]
        for settings in ((*DEMO, "--models", models), (*TINY, "--model.models", models), TINY)
    ]
    assert sizes[0] == sizes[1] > sizes[2]


def test_the_whole_list_that_ships_fits_the_line(plan, monkeypatch):
    monkeypatch.setattr("lit_extract.commands.plan.free_bytes", lambda folder: 10**12)
    code, out, _ = plan(*DEMO, "--match", "*clip*ft_in12k", "--rows", 73_000, "--model.pool", "[cls, avg]")
    assert code == 0
    assert "vit_base_patch16_clip_224.laion2b_ft_in12k" in out
    assert max(map(len, out.splitlines())) <= 120
    assert "decoded images are also cached if there is space: 22.0 GB" in out, "two of three see images alike"


@pytest.mark.parametrize(("free", "code"), [(40 * GB, 0), (20 * GB, 3)])
def test_a_disk_withoutroom(plan, monkeypatch, free, code):
    monkeypatch.setattr("lit_extract.commands.plan.free_bytes", lambda folder: free)
    found, out, _ = plan(*DEMO, "--match", "vit_large_patch16_224", "--rows", 73_000)
    assert found == code
    assert "disk space still needed: 21.6 GB one after another, 28.9 GB at once" in out
    assert ("NOT ENOUGH" in out) == (code == 3)


def test_what_is_kept_of_each_model_is_not_free_for_the_next():
    plans = [
        Needs("a", disk_left=10, disk_kept=4),
        Needs("b", disk_left=20, disk_kept=9),
        Needs("c", disk_left=5, disk_kept=2),
    ]
    assert disk_needed(plans) == (4 + 20, 35)
    assert disk_needed([]) == (0, 0)
    assert fits_disk(plans, Machine(None, 0, "32-true", 24))
    assert not fits_disk(plans, Machine(None, 0, "32-true", 23))
    assert fits_disk(plans, Machine(None, 0, "32-true", None)), "of a bucket nobody knows"


def test_captions_are_looked_at_for_the_largest_batch(planned, llama):
    """59 words and BOS are 60 tokens, of which ten fit the budget; 9 words and BOS are 10."""
    settings = (*language(llama), *captions(llama))
    (model,) = planned(*settings, "--data.token_budget", 600)["models"]
    assert model["rows"] == 121
    assert model["batch"] == [10, 60]
    (model,) = planned(*language(llama), "--rows", 50)["models"]
    assert model["batch"] == [50, 128]


def test_the_batch_that_is_planned_is_the_one_that_a_run_chooses(cli, planned, llama, tmp_path):
    """Also of a run that resumes a store or a file."""
    settings = (*language(llama), *captions(llama), "--output_dir", tmp_path / "out")
    settings += ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")

    def batch(*more):
        return planned(*settings, *more)["models"][0]["batch"]

    assert batch("--data.token_budget", 1024) == [1024 // 60, 60]
    assert cli("predict", *settings, "--finalize", "false", "--data.token_budget", 1024)[0] == 0
    assert batch() == [1024 // 60, 60], "as the store has it"
    assert batch("--overwrite") == [22, 60], "all that there are within 128 tokens of padding"
    assert batch("--data.token_budget", 120) == [2, 60]
    assert cli("predict", *settings)[0] == 0
    (file,) = tmp_path.glob("out/nsd/first/*.pt")
    assert load_features(file).provenance["token_budget"] == 1024
    assert batch() == [1024 // 60, 60], "as the file has it"


def test_a_job_of_slurm_has_the_memory_that_it_was_given(plan, monkeypatch):
    on_cpu = (*TINY, "--trainer.accelerator", "cpu")
    assert plan(*on_cpu)[0] == 0
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    code, out, _ = plan(*on_cpu)
    assert code == 3
    assert "CPU of 104.9 MB" in out


def test_a_gpu_gets_larger_batches_than_a_cpu_whatever_memory_it_has(planned, llama):
    settings = (*language(llama), "--rows", 10_000)
    on_gpu = [planned(*settings, "--card_memory", memory)["models"][0]["batch"] for memory in (48, 0.7)]
    assert on_gpu == [[16384 // 128, 128]] * 2
    on_cpu = planned(*settings, "--trainer.accelerator", "cpu")["models"][0]["batch"]
    assert on_cpu == [2048 // 128, 128]


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory):
    """The configuration alone of a model of 141 GB in bf16."""
    folder = tmp_path_factory.mktemp("llama-70b")
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    LlamaConfig(**sizes, vocab_size=128256, num_key_value_heads=8, dtype="bfloat16").save_pretrained(folder)
    return ("--config", CONFIGS / "nsd" / "language.yaml", "--model.name", folder, "--rows", 73_000)


@pytest.fixture
def on_a_large_disk(monkeypatch):
    monkeypatch.setattr("lit_extract.commands.plan.free_bytes", lambda folder: 10**12)


def test_a_model_larger_than_the_card_is_streamed(plan, planned, llama_70b, on_a_large_disk):
    of_a_block = 2 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)  # bytes
    (model,) = planned(*llama_70b)["models"]
    assert model["fits"] == "streamed"
    assert model["device"] > 2 * of_a_block + 2 * 2 * 8192 * 128256, "two blocks, embeddings and head"
    assert model["device"] < 24 * GB
    one = model["streamed"]
    assert one["bytes_read"] == one["bytes_sent"] == 80 * of_a_block
    assert one["operations"] == 80 * of_a_block * one["rows"] * 128, "two for each of the numbers of two bytes"
    assert one["rows"] == 131_072 // 128
    _, out, _ = plan(*llama_70b)
    assert "streamed: the weights do not fit" in out
    assert "136.9 GB for every 1,024 captions, bounded by" in out
    assert max(map(len, out.splitlines())) <= 140, "the folder's name is long"


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        (("--model.stream", "false"), "no"),
        (("--card_memory", "12"), "no"),
        (("--card_memory", "200"), "yes"),
        (("--card_memory", "200", "--model.stream", "true"), "streamed"),
        (("--host_memory", "8"), "host"),
        (("--trainer.accelerator", "cpu", "--host_memory", "24"), "streamed"),
    ],
)
def test_when_a_model_is_streamed(plan, llama_70b, on_a_large_disk, arguments, fits):
    code, out, _ = plan(*llama_70b, *arguments, "--json")
    (model,) = json.loads(out)["models"]
    assert code == (0 if fits in ("yes", "streamed") else 3)
    assert (model["fits"], model["streamed"] is not None) == (fits, fits == "streamed")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--config", CONFIGS / "nsd" / "language.yaml"), ["data.captions", "data.prompt_name", "--rows"]),
        ((*DEMO, "--model.name", "vit_tiny_patch16_225"), ["no model of timm is called 'vit_tiny_patch16_225'"]),
        ((*DEMO, "--models", "no.yml"), ["models file no.yml"]),
        ((*DEMO, "--match", "zzz"), ["match", "zzz", "vit_tiny_patch16_224.augreg_in21k"]),
        ((*DEMO, "--models", "--model.revision", "main"), ["model.revision", "--models"]),
        ((*DEMO, "--rows", "0"), ["rows", "0"]),
        ((*DEMO, "--card_memory", "-1"), ["card_memory", "-1"]),
        ((*DEMO, "--card_memory", "24", "--trainer.accelerator", "cpu"), ["card_memory", "trainer.accelerator"]),
        ((*DEMO, "--data.batch_size", "0"), ["data.batch_size: 0"]),
        ((*DEMO, "--nonsense"), ["--nonsense: no such option"]),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_one_line(refusal, arguments, named):
    line = refusal(*arguments)
    assert [text for text in named if text not in line] == []


def test_a_missing_dataset_says_how_to_plan_without_it(refusal, monkeypatch):
    monkeypatch.delenv("NSD_DATASET", raising=False)
    line = refusal("--config", CONFIGS / "nsd" / "vision.yaml")
    assert "NSD_DATASET" in line
    assert "--rows" in line


def test_help(cli, capsys):
    with pytest.raises(SystemExit) as end:
        cli("plan", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for setting in ("--models", "--match", "--rows", "--card_memory", "--json", "--output_dir", "--trainer.precision"):
        assert setting in text, setting


def test_one_model_that_can_not_be_planned_is_a_line_and_the_others_are_planned(plan, tmp_path, monkeypatch):
    from lit_extract.commands import plan as plan_cli

    def fails_for_one(model, *rest):
        if model.model_name == "test_vit2.r160_in1k":
            raise ZeroDivisionError("of a defect")
        return estimate_needs(model, *rest)

    estimate_needs = plan_cli.estimate_needs
    monkeypatch.setattr(plan_cli, "estimate_needs", fails_for_one)
    models = tmp_path / "models.yml"
    models.write_text("vision: [test_vit2.r160_in1k, test_vit3.r160_in1k]\n")
    config = ("--config", CONFIGS / "demo" / "vision.yaml", "--model.pool", "avg", "--trainer.accelerator", "cpu")
    code, out, _ = plan(*config, "--models", models, "--rows", 10)
    assert code == 3
    assert "not planned: 1" in out
    assert "test_vit2.r160_in1k: ZeroDivisionError: of a defect" in out
    assert "test_vit3.r160_in1k" in out
    with pytest.raises(ZeroDivisionError):
        plan(*config, "--model.name", "test_vit2.r160_in1k", "--rows", 10)


def test_a_host_that_is_too_small_for_a_gpu_s_model_does_not_fit(planned, plan):
    model = ("--model.name", "vit_large_patch16_224.mae", "--model.untrained", "true")
    given = ("--config", CONFIGS / "demo" / "vision.yaml", *model, "--card_memory", 48)
    (enough,) = planned(*given, "--host_memory", 16)["models"]
    assert enough["fits"] == "yes"
    (short,) = planned(*given, "--host_memory", 2, code=3)["models"]
    assert (short["fits"], short["host"]) == ("host", enough["host"])
    assert enough["host"] > 4 * enough["parameters"]
    assert "not enough host memory; 2.0 GB" in plan(*given, "--host_memory", 2)[1]


def test_tokens_are_planned_as_a_store(cli, planned, tmp_path):
    settings = (*TINY, "--model.pool", "tokens", "--model.dtype", "float16", "--output_dir", tmp_path / "out")
    (model,) = planned(*settings, "--trainer.accelerator", "cpu")["models"]
    assert (model["features"], model["layer_shapes"]) == (0, [[101, 64]] * 6)
    assert cli("predict", *settings, "--trainer.accelerator", "cpu")[0] == 0
    (store,) = tmp_path.glob("out/demo/*/*.zarr")
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    assert size <= model["disk_peak"] == model["disk_kept"] <= size + 80 * KB * model["rows"]


def test_tokens_of_captions_are_planned_with_a_place_for_each_of_the_longest(cli, planned, llama, tmp_path):
    on_cpu = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--model.pool", "tokens")
    settings = (*language(llama), *captions(llama), *on_cpu, "--output_dir", tmp_path / "out")
    (model,) = planned(*settings)["models"]
    assert (model["features"], model["layer_shapes"]) == (0, [[60, 32]] * 3)
    assert planned(*language(llama), *on_cpu, "--rows", 50)["models"][0]["layer_shapes"] == [[128, 32]] * 3
    assert cli("predict", *settings)[0] == 0
    (store,) = tmp_path.glob("out/nsd/first/*.zarr")
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    assert size <= model["disk_peak"] == model["disk_kept"] <= size + 80 * KB * 4
