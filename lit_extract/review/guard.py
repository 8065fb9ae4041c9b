"""Access control: only the browser that was given the address may use the page, and no other site through it.

Anything else in that browser, or on this machine, can send requests to a port of the loopback interface. So each
request needs the token, the name of this machine as its host (else another site's name may have been pointed here),
and this page as its origin; only requests that write nothing may state no origin.
"""

import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")  # any port: a tunnel has another one at its near end
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Keys:
    """The tokens that open the page: one for whoever reads the terminal, and one for the browser that is started here.

    The latter works only once: other users of the machine can read it in the list of processes.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.once = secrets.token_urlsafe(24)
        # Cookies ignore ports: each server needs its own cookie, or it would lock the other servers' pages.
        self.cookie = f"review_{secrets.token_hex(4)}"

    def opens(self, request: Request, token: str | None) -> bool:
        """Return whether the token in a request's address is right; without one, whether that in its cookies is."""
        if token is None:
            return _same(request.cookies.get(self.cookie, ""), self.token)
        if _same(token, self.once):
            self.once = secrets.token_urlsafe(24)
            return True
        return _same(token, self.token)


class Guard:
    """Passes requests on to the page, or refuses them."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or have the page answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        request = Request(scope)
        token = request.query_params.get("token") if request.url.path == "/" else None
        reason = self._refusal(request, token)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if token and not reason:
                    cookie = f"{self.keys.cookie}={self.keys.token}; Path=/; HttpOnly; SameSite=Strict"
                    headers.append("Set-Cookie", cookie)
            await send(message)

        app = PlainTextResponse(reason, status_code=403) if reason else self.app
        await app(scope, receive, send_with_headers)

    def _refusal(self, request: Request, token: str | None) -> str | None:
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not HOST.fullmatch(host):
            return "Wrong host."
        if origin != f"http://{host}" and not (origin is None and request.method in ("GET", "HEAD")):
            return "Wrong origin."
        is_known = self.keys.opens(request, token)
        return None if is_known else "Open the address with its token, as lit-extract review has printed it."


def _same(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), right.encode())
