"""Commands and servers in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEMO_IMAGES = REPOSITORY / "lit_extract" / "datasets" / "demo_images"
SHARD_ROWS, N_SHARDS = 4, 6
# float32: two replies that are almost as likely do not change places with the batch they are in.
ENGINE_OPTIONS = "{enforce_eager: true, dtype: float32}"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
SECONDS_TO_SERVE = 240


class Run:
    """A command under way, leader of a process group of its own, with what it prints in a file."""

    def __init__(self, log, *command):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=REPOSITORY,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self):
        return self.process.wait(timeout=400)

    def kill(self):
        """To the command and its descendants, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_until(self, condition, seconds=300):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended too early:\n{self.output}"
            assert time.monotonic() < end, f"it takes too long:\n{self.output}"
            time.sleep(0.02)


def parts(output):
    """The parts that are on disk, and what identifies each: written again it would be another."""
    files = output.with_name(f"{output.name}.parts").glob("[0-9]*.jsonl")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


class Server:
    """``vllm serve`` on this machine."""

    def __init__(self, model, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.folder = model, folder
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.engine = ("--model.engine", "server", "--model.base_url", self.base_url)
        self.run = None

    def start(self):
        formats = ("--tokenizer-mode", "--config-format", "--load-format")
        mistral = [part for name in formats for part in (name, "mistral")]
        options = ("--max-model-len", 8192, "--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching")
        where = ("--host", "127.0.0.1", "--port", self.port)
        command = (sys.executable, Path(__file__).with_name("vllm_command.py"), "serve", self.model)
        self.run = Run(self.folder / f"serve-{time.monotonic_ns()}.log", *command, *mistral, *options, *where)
        self.run.wait_until(self.answers, SECONDS_TO_SERVE)

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.base_url}/models", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self):
        if self.run is not None:
            self.run.kill()
