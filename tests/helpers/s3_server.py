"""A real S3 server for tests: moto's, in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bucket"


@dataclass
class Server:
    """A server that can be stopped and frozen."""

    process: subprocess.Popen
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """Where a user's settings would be: no option of ours says where the server is."""
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_MAX_ATTEMPTS": "1",  # s3fs tries five times besides
        }

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def server(log: Path) -> Iterator[Server]:
    """A server with an empty bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        assert process.poll() is None, log.read_text()
        yield Server(process, port)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
