"""The page's server: a few routes around :class:`Decisions`. No path in a request ever becomes a path on disk."""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, NotRequired, TypeVar

from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import validate_json
from lit_extract.review.decisions import Decisions
from lit_extract.review.images import Images, NoImageError
from lit_extract.review.rows import OPEN, STATUSES, ConflictError

PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("review", "server", "list", "caption", "words")},
}
ROWS_AT_ONCE = 200
CHANGES_AT_MOST = 200  # if there are more, the page reloads everything that it shows
LISTS_AT_MOST = 32
ROW = re.compile("[0-9]{1,10}")
LONGEST_BODY = 2**20  # bytes
SECONDS_BETWEEN_WRITES = 5.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class _Decision(TypedDict):
    row: int
    revision: int
    text: NotRequired[str | None]


class _Undo(TypedDict):
    revision: int


_DECISION, _UNDO = TypeAdapter(_Decision), TypeAdapter(_Undo)


class ReviewServer:
    """The routes. ``about`` has further facts for the page: names of files, the command that accepts the result."""

    def __init__(self, decisions: Decisions, images: Images, about: dict[str, Any]) -> None:
        self.decisions, self.images, self.about = decisions, images, about
        # Chosen rows stay in place when they are decided, because a person goes back and forth among them.
        self._lists: dict[str, list[int]] = {}
        self._version = secrets.token_hex(4)  # another server on this port may have other images at these addresses

    def app(self) -> Starlette:
        """Return the application, still without a guard."""
        routes = [Route(path, self._file) for path in PAGE]
        routes += [
            Route("/image/{row}", self._image),
            Route("/api/start", self._start),
            Route("/api/list", self._list),
            Route("/api/rows", self._rows),
            Route("/api/place", self._place),
            Route("/api/find", self._find),
            Route("/api/changes", self._changes),
            Route("/api/decide", self._decide, methods=["POST"]),
            Route("/api/undo", self._undo, methods=["POST"]),
        ]
        handlers: Any = {ConflictError: self._on_conflict, InputError: _on_input_error, OSError: _on_disk_error}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        writing = asyncio.create_task(self._write_now_and_then())
        yield
        writing.cancel()  # the code that opened the review writes it for the last time

    async def _write_now_and_then(self) -> None:
        while True:
            try:
                await run_in_threadpool(self.decisions.disk.write)
            except Exception:  # a defect, but decisions are still saved, and the next attempt may succeed
                logger.exception("the review file was not written")
            await asyncio.sleep(SECONDS_BETWEEN_WRITES)

    # What is shown

    def _file(self, request: Request) -> Response:
        name, media_type = PAGE[request.url.path]
        return Response((files(__package__) / "page" / name).read_bytes(), media_type=media_type)

    def _image(self, request: Request) -> Response:
        name = request.path_params["row"]
        row = self._checked_row(int(name) if ROW.fullmatch(name) else -1)
        try:
            data, media_type = self.images.read(row)
        except NoImageError as error:
            return PlainTextResponse(str(error), status_code=404)
        return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})

    def _start(self, request: Request) -> Response:
        return JSONResponse({**self.about, "statuses": STATUSES, "version": self._version, **self._progress()})

    def _list(self, request: Request) -> Response:
        """Choose rows; the answer has their number, and the place among them of a row, or of the next one."""
        query = request.query_params
        rows = self.decisions.select(query.get("flag", ""), query.get("status", ""), query.get("search", ""))
        name = secrets.token_hex(8)
        self._lists[name] = rows
        if len(self._lists) > LISTS_AT_MOST:
            del self._lists[next(iter(self._lists))]  # the oldest
        near = _number(request, "near", 0)
        place = next((place for place, row in enumerate(rows) if row >= near), max(0, len(rows) - 1))
        return JSONResponse({"list": name, "total": len(rows), "place": place, **self._progress()})

    def _rows(self, request: Request) -> Response:
        """Return some rows of a list."""
        rows = self._chosen(request)
        begin = max(0, _number(request, "from", 0))
        end = begin + min(_number(request, "count", ROWS_AT_ONCE), ROWS_AT_ONCE)
        return JSONResponse({"rows": [self.decisions.describe(row) for row in rows[begin:end]]})

    def _place(self, request: Request) -> Response:
        """Return the place of a row in a list, or of the next open row after a place, searching on from the start.

        The place is null if there is none.
        """
        rows = self._chosen(request)
        if "row" in request.query_params:
            row = _number(request, "row", 0)
            return JSONResponse({"place": rows.index(row) if row in rows else None})
        after = _number(request, "after", -1) + 1
        statuses = self.decisions.rows.statuses
        around = [*range(after, len(rows)), *range(min(after, len(rows)))]
        return JSONResponse({"place": next((place for place in around if statuses[rows[place]] == OPEN), None)})

    def _find(self, request: Request) -> Response:
        return JSONResponse({"row": self.decisions.find(request.query_params.get("id", ""))})

    def _changes(self, request: Request) -> Response:
        """Return the rows that were decided after a revision, on this page or another."""
        progress = self._progress()
        rows = self.decisions.changed_since(_number(request, "since", 0))
        shown = None if len(rows) > CHANGES_AT_MOST else [self.decisions.describe(row) for row in rows]
        return JSONResponse({"rows": shown, **progress})

    # What is done

    async def _decide(self, request: Request) -> Response:
        body = await _body(request, _DECISION)
        row = self._checked_row(body["row"])
        await run_in_threadpool(self.decisions.decide, row, body.get("text"), body["revision"])
        return JSONResponse({"row": self.decisions.describe(row), **self._progress()})

    async def _undo(self, request: Request) -> Response:
        body = await _body(request, _UNDO)
        row = await run_in_threadpool(self.decisions.undo, body["revision"])
        return JSONResponse({"row": self.decisions.describe(row), **self._progress()})

    def _on_conflict(self, request: Request, error: ConflictError) -> Response:
        row = None if error.row is None else self.decisions.describe(error.row)
        return JSONResponse({"conflict": row, **self._progress()}, status_code=409)

    def _progress(self) -> dict[str, Any]:
        return {"progress": self.decisions.progress()}

    def _checked_row(self, row: int) -> int:
        if not 0 <= row < len(self.decisions.rows.texts):
            raise HTTPException(404, "There is no such row.")
        return row

    def _chosen(self, request: Request) -> list[int]:
        rows = self._lists.get(request.query_params.get("list", ""))
        if rows is None:
            raise HTTPException(410, "This list is no longer known.")
        return rows


async def _body(request: Request, form: "TypeAdapter[T]") -> T:
    """Return the body of a request: a JSON object of limited size in the given form."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "The request must be JSON.")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LONGEST_BODY:
            raise HTTPException(413, "The request is too long.")
    try:
        return validate_json(form, data, "request")
    except InputError as error:
        raise HTTPException(400, str(error)) from None


def _number(request: Request, name: str, default: int) -> int:
    try:
        return max(-1, int(request.query_params.get(name, default)))
    except ValueError:
        raise HTTPException(400, f"{name} must be a number.") from None


def _on_input_error(request: Request, error: InputError) -> Response:
    return JSONResponse({"message": str(error)}, status_code=422)


def _on_disk_error(request: Request, error: OSError) -> Response:
    message = f"Not saved: {one_line(error)}. No earlier decision is lost."
    return JSONResponse({"message": message}, status_code=507)
