"""``lit-extract review``: open the files, serve the page until Ctrl-C, say where the result is."""

import os
import signal
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_extract.common.errors import InputError, one_line
from lit_extract.review.decisions import Decisions
from lit_extract.review.files import ENDING, accept_command, dataset_of, original_of, read_for_review, review_file
from lit_extract.review.flags import Rules
from lit_extract.review.images import Images, find_images
from lit_extract.storage.places import place_of

HOST = "127.0.0.1"
SECONDS_TO_STOP = 3  # for requests that are under way


def review(
    file: Path,
    rules: Rules,
    dataset: str | None = None,
    root: str | None = None,
    prompts: str | None = None,
    port: int = 0,
    browser: bool = True,
    follow_links: bool = False,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        file: Captions, or their review file.
        rules: What is asked of captions.
        dataset: What they are of; default: what they say.
        root: Folder of the dataset; default: its environment variable.
        prompts: YAML with prompts besides those that ship here.
        port: Of the loopback interface; 0: a free one.
        browser: Open the page, where there is a screen.
        follow_links: Show images outside the dataset's folder that links in it lead to.

    Raises:
        InputError: The extra is not installed, files that can't be used, a port that is taken, or another run that
            has the review file.
    """
    if missing := [package for package in ("starlette", "uvicorn") if find_spec(package) is None]:
        raise InputError(f"review: the page needs {' and '.join(missing)}: pip install 'lit-extract[review]'")
    captions_file = _captions_of(file)
    captions = read_for_review(captions_file)
    dataset = dataset or dataset_of(captions_file, captions)
    images, id_column = find_images(captions, dataset, root, follow_links)
    with place_of(review_file(captions_file)).write_lock(), _listen(port) as listener:
        if not review_file(captions_file).exists():
            print(f"checking {len(captions):,} captions …", flush=True)
        decisions = Decisions(captions_file, captions, id_column, rules, prompts)
        if images.n_missing:
            print(f"beware: {images.n_missing:,} of {len(captions):,} captions are of images that {dataset} has not")
        command = accept_command(decisions.path, captions_file, captions, dataset)
        about = {
            "captions": captions_file.name,
            "review": decisions.path.name,
            "dataset": dataset,
            "id_column": id_column,
            "command": command,
        }
        try:
            _serve(decisions, images, about, listener, browser)
        finally:
            up_to_date = decisions.close()
        print("\n".join(_farewell(decisions, command, up_to_date)), flush=True)


def _captions_of(file: Path) -> Path:
    if not file.stem.endswith(ENDING):
        return file
    try:
        return original_of(file)
    except InputError:
        raise InputError(
            f"{str(file)!r} is a review file, but the captions that it was made of are not beside it"
        ) from None


@contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port: {port} can't be used ({one_line(error)}); give another, or 0 for a free one"
            ) from None
        yield listener


def _serve(decisions: Decisions, images: Images, about: dict[str, Any], listener: socket.socket, browser: bool) -> None:
    import uvicorn

    from lit_extract.review.guard import Guard, Keys
    from lit_extract.review.server import ReviewServer

    keys, port = Keys(), listener.getsockname()[1]
    guard = Guard(ReviewServer(decisions, images, about).app(), keys)
    config = uvicorn.Config(
        guard,
        log_level="error",
        access_log=False,  # it would have the token in it
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    listener.listen()  # a browser that comes before uvicorn is ready waits, instead of being refused
    print("\n".join(_greeting(decisions, f"http://{HOST}:{port}/?token={keys.token}", port)), flush=True)
    if browser and _has_screen():
        webbrowser.open(f"http://{HOST}:{port}/?token={keys.once}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn stops, then raises it again
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_screen() -> bool:
    """Whether a browser that is started here would be seen: not over ssh, where it would be one in the terminal."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and "SSH_CONNECTION" not in os.environ


def _greeting(decisions: Decisions, address: str, port: int) -> list[str]:
    progress = decisions.progress()
    return [
        f"{progress['total']:,} captions, {progress['reviewed']:,} of them reviewed; {progress['flagged_left']:,} "
        f"flagged ones are left: {decisions.path}",
        f"  {address}",
        f"From another machine: ssh -L {port}:{HOST}:{port} {socket.gethostname()}, then the same address there.",
        "Each decision is on disk at once. Ctrl-C stops the page.",
    ]


def _farewell(decisions: Decisions, command: str, up_to_date: bool) -> list[str]:
    progress = decisions.progress()
    lines = [
        f"\n{progress['total']:,} captions, {progress['reviewed']:,} of them reviewed, {progress['edited']:,} edited; "
        f"{progress['flagged_left']:,} flagged ones are left: {decisions.path}"
    ]
    if not up_to_date:
        lines.append(f"beware: {progress['problem']}")
    if progress["clashes"]:
        lines.append(f"beware: {progress['clashes']:,} were changed by another program; say on the page which it is")
    if progress["empty"]:
        lines.append(f"beware: {progress['empty']:,} have no text yet, which check --accept refuses")
    return [*lines, f"  {command}"]
