"""``lit-extract review``: open the files, serve the page until Ctrl-C, print where the result is."""

import logging
import os
import signal
import socket
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_extract.common.errors import InputError, counted, one_line
from lit_extract.review.accept import accept_command, dataset_of
from lit_extract.review.decisions import Decisions
from lit_extract.review.files import ENDING, original_of, read_originals, review_path
from lit_extract.review.flags import Rules
from lit_extract.review.images import find_images
from lit_extract.storage.places import place_of

if TYPE_CHECKING:
    from lit_extract.review.server import ReviewServer

HOST = "127.0.0.1"
SECONDS_TO_STOP = 3  # for requests in progress

logger = logging.getLogger(__name__)


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
    """Serve the page until Ctrl-C. ``file`` has captions, or is their review file; port 0 means a free one."""
    if missing := [package for package in ("starlette", "uvicorn") if find_spec(package) is None]:
        raise InputError(f"review: the page needs {' and '.join(missing)}: pip install 'lit-extract[review]'")
    if file.stem.endswith(ENDING):
        file = original_of(file)
    captions = read_originals(file)
    dataset = dataset or dataset_of(file, captions)
    images, id_column = find_images(captions, dataset, root, follow_links)
    with place_of(review_path(file)).write_lock(), _listener(port) as listener:
        if not review_path(file).exists():
            logger.info("checking %s …", counted(len(captions), "caption"))
        decisions = Decisions(file, captions, id_column, rules, prompts)
        if missing_images := images.paths.count(None):
            named = counted(missing_images, "caption belongs to an image", "captions belong to images")
            logger.warning("%s that %s does not have", named, dataset)
        command = accept_command(decisions.path, file, captions, dataset)
        names = {"captions": file.name, "review": decisions.path.name, "dataset": dataset, "id_column": id_column}
        try:
            from lit_extract.review.server import ReviewServer  # needs the extra

            _serve(ReviewServer(decisions, images, {**names, "command": command}), listener, browser)
        finally:
            up_to_date = decisions.disk.close()
        progress = _report(decisions)
        if not up_to_date:
            logger.warning(progress["problem"])
        if progress["empty"]:
            still = counted(progress["empty"], "caption is still empty", "captions are still empty")
            logger.warning("%s; check --accept refuses that", still)
        logger.info("  %s", command)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"port: {port} can't be used ({one_line(error)}); pass another, or 0 for a free one") from None


def _serve(server: "ReviewServer", listener: socket.socket, browser: bool) -> None:
    import uvicorn

    from lit_extract.review.guard import Guard, Keys

    keys, port = Keys(), listener.getsockname()[1]
    config = uvicorn.Config(
        Guard(server.app(), keys),
        log_level="error",
        access_log=False,  # it would contain the token
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    _report(server.decisions)
    logger.info("  http://%s:%s/?token=%s", HOST, port, keys.token)
    logger.info(
        "From another machine: ssh -L %s:%s:%s %s, and open this address there.", port, HOST, port, socket.gethostname()
    )
    logger.info("Each decision is saved at once. Ctrl-C stops the page.")
    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if browser and has_screen and "SSH_CONNECTION" not in os.environ:  # over ssh it would open in the terminal
        webbrowser.open(f"http://{HOST}:{port}/?token={keys.once}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn stops, then raises it again
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(decisions: Decisions) -> dict[str, Any]:
    progress = decisions.progress()
    logger.info(
        "%s, %s of them reviewed, %s edited; flagged and not reviewed: %s; %s",
        counted(progress["total"], "caption"),
        *(f"{progress[count]:,}" for count in ("reviewed", "edited", "flagged_left")),
        decisions.path,
    )
    return progress
