"""Run a sweep over the demo dataset, interrupt it twice, and write what was printed to docs/sweep.md.

Run it from the root of the repository: python scripts/sweep_transcript.py
"""

import os
import pty
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

WORK = Path("build/sweep")
FEATURES, MODELS = WORK / "features", WORK / "models.yml"
VISION = [
    "vit_tiny_patch16_224.augreg_in21k",
    "deit_tiny_patch16_224.fb_in1k",
    "vit_small_patch16_224.augreg_in21k",
    "deit_small_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in1k",
]
LANGUAGE = ["bloom", "gpt2", "llama"]
OURS = f"--models {MODELS} --output_dir {FEATURES}"
HARDWARE = "--config configs/trainer/cpu.yaml"
SWEEP_VISION = f"sweep --config configs/demo/vision.yaml {HARDWARE} {OURS} --untrained"
SWEEP_VISION += " --data.batch_size 2 --data.shard_rows 2"
SWEEP_LANGUAGE = f"sweep --config configs/demo/language.yaml {HARDWARE} {OURS}"
STATUS = f"status {FEATURES} --models {MODELS}"

HEAD = """# A sweep, interrupted twice

This page shows a sweep over five small vision models with random weights and three tiny language models, on the
photographs and captions that ship with lit-extract. The 24 images are in shards of two, so a model is half done when it
is interrupted.
`python scripts/sweep_transcript.py` runs the commands and writes this page with their output.
"""


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    for architecture in LANGUAGE:
        make_language_model(architecture, WORK / architecture)
    language = [{"name": f"tiny/{name}", "checkpoint": str(WORK / name)} for name in LANGUAGE]
    MODELS.write_text(yaml.safe_dump({"vision": VISION, "language": language}, sort_keys=False))
    parts = [
        HEAD,
        f"The models, in `{MODELS}`:",
        fenced(MODELS.read_text(), "yaml"),
        "## Interrupted by Ctrl-C",
        "The terminal here can't draw a table (`TERM=dumb`), so the output is plain lines, as in a log.",
        fenced(run(SWEEP_VISION, until=shards_of(VISION[1], 4), then=press_ctrl_c)),
        "The running model has finished its batch, here a shard. The features are now:",
        fenced(run(STATUS)),
        "## Resumed, and killed",
        "`kill -9` ends the sweep at once; the kernel then sends SIGTERM to the running model. Just before:",
    ]
    before: list[str] = []

    def look_and_kill(process: int, _: int) -> None:
        before.append(run(STATUS))
        os.kill(process, signal.SIGKILL)

    said = run(SWEEP_VISION, until=shards_of(VISION[3], 2), then=look_and_kill)
    wait_until_nobody_writes()
    parts += [
        fenced(before[0]),
        "The output of the sweep up to then:",
        fenced(said),
        "And after the kill:",
        fenced(run(STATUS)),
        "## Resumed, to the end",
        fenced(run(SWEEP_VISION)),
        "## The language models",
        fenced(run(SWEEP_LANGUAGE)),
        "In the end:",
        fenced(run(STATUS)),
        "## For other schedulers",
        "`--dry_run` prints one command per model:",
        fenced(run(f"{SWEEP_LANGUAGE} --dry_run")),
    ]
    Path("docs/sweep.md").write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")


def fenced(text: str, language: str = "console") -> str:
    return f"```{language}\n{text.strip()}\n```"


def run(
    arguments: str,
    until: Callable[[], bool] | None = None,
    then: Callable[[int, int], None] = lambda process, terminal: None,
) -> str:
    """Return what a terminal shows of a command; when ``until`` comes true, ``then`` happens to it."""
    command = [sys.executable, "-m", "lit_extract", *shlex.split(arguments)]
    environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(command[0], command, environment)
    output, has_happened = b"", until is None
    os.set_blocking(terminal, False)
    while True:
        try:
            if not (read := os.read(terminal, 65536)):
                break
            output += read
        except BlockingIOError:
            if not has_happened and until is not None and until():
                has_happened = True
                then(process, terminal)
            time.sleep(0.005)
        except OSError:  # the command has ended
            break
    os.waitpid(process, 0)
    if not has_happened:
        raise SystemExit(f"{arguments}: ended before it could be interrupted; its output:\n{output.decode()}")
    said = (
        output.decode().replace("\r\n", "\n").replace(sys.executable, "python").replace(socket.gethostname(), "node1")
    )
    return f"$ lit-extract {arguments}\n{said}"


def press_ctrl_c(process: int, terminal: int) -> None:
    os.write(terminal, b"\x03")


def shards_of(model: str, n_shards: int) -> Callable[[], bool]:
    """Return a function that returns whether so many shards of a model are done."""
    store = FEATURES / "demo" / "all-untrained" / f"{model}_pool-cls-untrained.zarr"
    return lambda: len(list(store.glob("cls/c/*/0/0"))) >= n_shards


def wait_until_nobody_writes() -> None:
    while list(FEATURES.rglob("*.lock")):
        time.sleep(0.1)


def make_language_model(architecture: str, folder: Path) -> None:
    """Make a random model of two blocks with a tokenizer of words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from lit_extract import load_captions

    texts = load_captions("derivatives/captions/demo-captions-handwritten.csv")["caption"].tolist()
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    size = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 1, "eos_token_id": 2}
    config = {
        "bloom": lambda: transformers.BloomConfig(**size, hidden_size=32, n_layer=2, n_head=4),
        "gpt2": lambda: transformers.GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        "llama": lambda: transformers.LlamaConfig(
            **size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
    }[architecture]()
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
