"""The page's server in process: who may talk to it, what it gives, what it takes."""

import json
import resource
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote

import anyio
import pandas as pd
import pytest
from helpers.small_review import CAPTIONS
from starlette.testclient import TestClient

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.review import server as module
from lit_extract.review.decisions import Decisions
from lit_extract.review.flags import Rules
from lit_extract.review.guard import Guard, Keys
from lit_extract.review.images import Images, find_images
from lit_extract.review.server import PAGE, ReviewServer

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def served(decide_on, captions, root):
    """The application, its keys, and its decisions."""
    images, _ = find_images(read_captions(captions), "nsd", str(root))
    keys, decisions = Keys(), decide_on()
    app = Guard(ReviewServer(decisions, images, {"command": "…"}).app(), keys)
    return SimpleNamespace(app=app, keys=keys, decisions=decisions)


@pytest.fixture
def stranger(served):
    """A client that knows the address, but not the token."""
    return TestClient(served.app, ADDRESS)


@pytest.fixture
def client(served):
    """A browser that has opened the page."""
    client = TestClient(served.app, ADDRESS, headers={"Origin": ADDRESS})
    assert client.get("/", params={"token": served.keys.token}).status_code == 200
    return client


def decide(client, row, revision=0, **text):
    return client.post("/api/decide", json={"row": row, "revision": revision, **text})


# Who may talk to it


@pytest.mark.parametrize("path", [*PAGE, "/api/start", "/api/rows?list=x", "/image/0", "/nowhere"])
def test_nothing_without_the_token(stranger, served, path):
    for query in ("", "token=", "token=wrong", f"token={served.keys.token}x", f"token={served.keys.cookie}"):
        response = stranger.get(f"{path}{'&' if '?' in path else '?'}{query}")
        assert (response.status_code, response.headers.get("set-cookie")) == (403, None)
        assert "token" in response.text
        assert served.keys.token not in response.text


def test_the_token_counts_for_the_page_only(stranger, served):
    assert stranger.get("/api/start", params={"token": served.keys.token}).status_code == 403
    for cookies in (
        "",
        "x",
        f"{served.keys.cookie}=",
        f"{served.keys.cookie}=wrong",
        f"other={served.keys.token}",
        "=;\t",
    ):
        assert stranger.get("/api/start", headers={"Cookie": cookies}).status_code == 403
    right = f"a=b; {served.keys.cookie}={served.keys.token}; c=d"
    assert stranger.get("/api/start", headers={"Cookie": right}).status_code == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites(stranger, served):
    response = stranger.get("/", params={"token": served.keys.token})
    value, *attributes = response.headers["set-cookie"].split("; ")
    assert value == f"{served.keys.cookie}={served.keys.token}"
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Strict"]
    assert Keys().cookie != served.keys.cookie, "cookies know no ports"


def test_what_other_users_can_see_among_the_processes_opens_once(served):
    once = served.keys.once
    first, second = (TestClient(served.app, ADDRESS) for _ in range(2))
    assert first.get("/", params={"token": once}).status_code == 200
    assert first.get("/api/start").status_code == 200
    assert second.get("/", params={"token": once}).status_code == 403
    assert second.get("/api/start").status_code == 403


HOSTS = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "127.0.0.1:8000.evil.example",
    "",
    "[::1]:8000",
    "0.0.0.0",
]


@pytest.mark.parametrize("host", HOSTS)
def test_another_sites_name_for_this_machine_is_refused(client, host):
    response = client.get("/api/start", headers={"Host": host, "Origin": f"http://{host}"})
    assert (response.status_code, response.text) == (403, "Wrong host.")


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "localhost"])
def test_another_port_at_the_near_end_of_a_tunnel_is_right(client, host, served):
    cookie = f"{served.keys.cookie}={served.keys.token}"
    response = client.get("/api/start", headers={"Host": host, "Origin": f"http://{host}", "Cookie": cookie})
    assert response.status_code == 200


ORIGINS = [
    "https://evil.example",
    "http://127.0.0.1:8001",
    "http://localhost:8000",
    "https://127.0.0.1:8000",
    "null",
    "",
]


@pytest.mark.parametrize("origin", ORIGINS)
def test_another_origin_is_refused(client, served, origin):
    for answer in (
        client.get("/api/start", headers={"Origin": origin}),
        client.post("/api/decide", json={"row": 0, "revision": 0, "text": "x"}, headers={"Origin": origin}),
        client.options("/api/decide", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}),
    ):
        assert (answer.status_code, answer.text) == (403, "Wrong origin.")
        assert "access-control-allow-origin" not in answer.headers
    assert served.decisions.rows.revision == 0


def test_a_write_must_say_where_it_comes_from(client, served):
    del client.headers["Origin"]
    assert client.get("/api/start").status_code == 200, "browsers say so of writes only"
    assert decide(client, 0).status_code == 403
    assert served.decisions.rows.revision == 0


def test_forms_of_other_sites_can_write_nothing(client, served):
    body = json.dumps({"row": 0, "revision": 0, "text": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/api/decide", content=body, headers={"Content-Type": kind}).status_code == 415
    assert client.get("/api/decide").status_code == 405
    assert served.decisions.rows.revision == 0


@pytest.mark.parametrize("path", [*PAGE, "/api/start", "/image/0", "/nowhere", "/?token=wrong"])
def test_all_answers_keep_others_out(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert "private" in headers["cache-control"] or headers["cache-control"] == "no-store"


# What it gives


PATHS = [
    *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/style.css/../../server.py", "/server.py", "/page/index.html"),
    *(
        "/image/../../nsd_captions.csv",
        "/image/..%2f..%2fnsd.csv",
        "/image//etc/passwd",
        "/image/0/../nsd.csv",
        "/image/-1",
    ),
    *(
        "/image/8",
        "/image/0x0",
        "/image/1e0",
        "/image/9999999999999999999999",
        "/image/",
        "/nsd_captions.csv",
        "//etc/passwd",
    ),
    *("/index.html", "/.lock", "/static/style.css", "/image/%00", "/image/0%00.png", "/image/images%2f0.png"),
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_of_a_request_is_one_of_the_disk(served, path):
    """Sent as it stands: clients would tidy it."""
    sent = {}

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.update({key: value for key, value in message.items() if value})

    raw = path.encode()
    cookie = f"{served.keys.cookie}={served.keys.token}".encode()
    headers = [(b"host", b"127.0.0.1:8000"), (b"cookie", cookie)]
    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(path),
        "raw_path": raw,
        "query_string": b"",
        "headers": headers,
    }
    anyio.run(served.app, {**scope, "root_path": "", "scheme": "http", "server": ("127.0.0.1", 8000)}, receive, send)
    assert sent["status"] in (404, 307)
    assert len(sent.get("body", b"")) < 40


def test_what_ships_is_what_is_served(client):
    folder = Path(module.__file__).parent / "page"
    assert sorted(path.name for path in folder.iterdir()) == sorted(name for name, _ in PAGE.values())
    for path, (name, media_type) in PAGE.items():
        response = client.get(path)
        assert response.content == (folder / name).read_bytes()
        assert response.headers["content-type"].startswith(media_type)
    text = "".join(path.read_text() for path in folder.iterdir())
    assert "http://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "https://" not in text, "nothing from elsewhere"
    assert "innerHTML" not in text, "captions are text"


def test_images_go_by_row(client, root):
    for row in (0, 7):
        response = client.get(f"/image/{row}")
        assert response.content == (root / "images" / f"{row}.png").read_bytes()
        assert response.headers["content-type"] == "image/png"
    (root / "images" / "3.png").unlink()
    response = client.get("/image/3")
    assert (response.status_code, response.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert "There is no file" in response.text


def test_lists_keep_their_rows_and_say_where_one_is(client):
    chosen = client.get("/api/list", params={"flag": "flagged", "status": "open", "near": 2}).json()
    assert (chosen["total"], chosen["place"]) == (4, 1)
    name = chosen["list"]
    assert decide(client, 1).status_code == 200
    rows = client.get("/api/rows", params={"list": name}).json()["rows"]
    assert [(row["row"], row["id"], row["status"]) for row in rows] == [
        *((1, "101", "accepted"), (3, "103", "open"), (4, "104", "open"), (6, "106", "open"))
    ]
    assert rows[0]["text"] == CAPTIONS[1]
    assert rows[1]["text"] == CAPTIONS[3]

    def place(**query):
        return client.get("/api/place", params={"list": name, **query}).json()["place"]

    assert (place(row=4), place(row=5)) == (2, None)
    assert (place(after=-1), place(after=1), place(after=3)) == (1, 2, 1)
    for row in (3, 4, 6):
        decide(client, row)
    assert place(after=0) is None
    assert client.get("/api/rows", params={"list": name, "from": 1, "count": 2}).json()["rows"][0]["row"] == 3
    assert client.get("/api/rows", params={"list": "unknown"}).status_code == 410
    assert client.get("/api/find", params={"id": "106"}).json() == {"row": 6}


def test_of_73000_captions_a_page_at_a_time_is_sent(tmp_path):
    n = 73_000
    captions = tmp_path / "nsd_captions.csv"
    text = [f"Caption {row} of a dog that runs on the beach." for row in range(n)]
    table = pd.DataFrame({"nsd_id": range(n), "caption": text, "model": "m", "prompt": "caption"})
    write_captions(table, captions)
    review = table.assign(original=text, flag=["cut off" if row % 1000 == 0 else "" for row in range(n)])
    write_captions(review, captions.with_name("nsd_captions-review.csv"))
    decisions = Decisions(captions, read_captions(captions), "nsd_id", Rules())
    keys = Keys()
    server = ReviewServer(decisions, Images([None] * n, None, tmp_path), {})
    client = TestClient(Guard(server.app(), keys), ADDRESS, headers={"Origin": ADDRESS})
    client.get("/", params={"token": keys.token})
    chosen = client.get("/api/list")
    assert chosen.json()["total"] == n
    rows = client.get("/api/rows", params={"list": chosen.json()["list"], "from": 72_950, "count": n})
    assert [row["row"] for row in rows.json()["rows"]] == list(range(72_950, n))
    rows = client.get("/api/rows", params={"list": chosen.json()["list"], "count": n})
    assert len(rows.json()["rows"]) == module.ROWS_AT_ONCE
    found = client.get("/api/list", params={"search": "caption 7 of", "flag": ""})
    flagged = client.get("/api/list", params={"flag": "cut off", "near": 500})
    assert (found.json()["total"], flagged.json()["total"], flagged.json()["place"]) == (1, 73, 1)
    decided = decide(client, 72_999, text="A dog.")
    changes = client.get("/api/changes", params={"since": 0})
    assert [row["row"] for row in changes.json()["rows"]] == [72_999]
    for response in (client.get("/api/start"), chosen, rows, found, flagged, decided, changes):
        assert len(response.content) < 100_000
    for _ in range(40):
        client.get("/api/list")
    assert client.get("/api/rows", params={"list": chosen.json()["list"]}).status_code == 410, "lists don't pile up"


# What it takes


def test_decide_and_undo(client, served, review_file):
    answer = decide(client, 1, text=" A cat sleeps. ").json()
    assert (answer["row"]["text"], answer["row"]["status"], answer["row"]["revision"]) == ("A cat sleeps.", "edited", 1)
    assert (answer["progress"]["reviewed"], answer["progress"]["flagged_left"]) == (1, 3)
    assert answer["progress"]["undo"] == {"revision": 1, "row": 1, "id": "101"}
    with closing(sqlite3.connect(review_file.with_suffix(".sqlite"))) as database:
        saved = database.execute("SELECT row, action, text FROM decisions").fetchall()
    assert saved == [(1, "decide", "A cat sleeps.")], "on disk when the answer comes"
    answer = client.post("/api/undo", json={"revision": 1}).json()
    assert (answer["row"]["text"], answer["row"]["status"], answer["progress"]["undo"]) == (CAPTIONS[1], "open", None)
    assert client.post("/api/undo", json={"revision": 1}).status_code == 409


def test_two_tabs_do_not_overwrite_each_other(client, served):
    other = TestClient(served.app, ADDRESS, headers={"Origin": ADDRESS})
    other.get("/", params={"token": served.keys.token})
    assert decide(other, 1, text="Theirs.").status_code == 200
    for late in (decide(client, 1, text="Mine."), decide(client, 1)):
        assert late.status_code == 409
        assert (late.json()["conflict"]["text"], late.json()["conflict"]["revision"]) == ("Theirs.", 1)
    assert served.decisions.rows.texts[1] == "Theirs."
    changes = client.get("/api/changes", params={"since": 0}).json()
    assert [(row["row"], row["text"]) for row in changes["rows"]] == [(1, "Theirs.")]
    assert decide(client, 1, 1, text="Mine, knowingly.").status_code == 200
    late = other.post("/api/undo", json={"revision": 1})
    assert late.status_code == 409
    assert late.json()["progress"]["undo"]["revision"] == 2
    assert served.decisions.rows.texts[1] == "Mine, knowingly."


def test_a_caption_is_never_markup(client):
    rows = client.get("/api/list").json()
    response = client.get("/api/rows", params={"list": rows["list"]})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["rows"][3]["text"] == CAPTIONS[3]


BODIES = [
    *("", "{", "[]", "7", "{}", '{"row": 0}', '{"row": "0", "revision": 0}', '{"row": 0, "revision": null}'),
    *('{"row": true, "revision": 0}', '{"row": 0, "revision": 0, "text": 7}', '{"row": 0.5, "revision": 0}'),
]


@pytest.mark.parametrize("body", BODIES)
def test_what_makes_no_sense_is_refused(client, served, body):
    for path in ("decide", "undo"):
        sent = body.replace("revision", "r") if path == "undo" else body
        response = client.post(f"/api/{path}", content=sent, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
    assert served.decisions.rows.revision == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"row": 8, "revision": 0}, 404),
        ({"row": -1, "revision": 0}, 404),
        ({"row": 0, "revision": 5}, 409),
        ({"row": 0, "revision": 0, "text": " "}, 422),
        ({"row": 0, "revision": 0, "text": "a\ud800"}, 400),
        ({"row": 0, "revision": 0, "text": "a" * 2**20}, 413),
    ],
)
def test_what_can_not_be_is_refused(client, served, content, status):
    data = json.dumps(content)
    response = client.post("/api/decide", content=data, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert served.decisions.rows.revision == 0
    for query in ("list=&from=x", "since=x"):
        assert client.get(f"/api/changes?{query}").status_code in (200, 400)
    assert client.get(f"/api/find?id={quote('“é” ; DROP')}").json() == {"row": None}


def test_a_full_disk_is_reported_and_the_text_stays_with_the_page(client, served, review_file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (review_file.with_suffix(".sqlite").stat().st_size, limits[1]))
    try:
        response = decide(client, 1, text="Mine." * 4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert response.status_code == 507
    assert "nsd_captions-review.sqlite can't be written" in response.json()["message"]
    assert served.decisions.rows.texts[1] == CAPTIONS[1]
    assert decide(client, 1, text="Mine.").status_code == 200


def test_the_review_file_is_written_while_the_server_runs(served, review_file, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_WRITES", 0.1)
    with TestClient(served.app, ADDRESS, headers={"Origin": ADDRESS}) as client:
        client.get("/", params={"token": served.keys.token})
        decide(client, 1, text="A cat sleeps.")
        end = time.monotonic() + 20
        while read_captions(review_file)["caption"][1] != "A cat sleeps.":
            assert time.monotonic() < end
            time.sleep(0.05)


def test_labels_of_classifying_prompts_come_with_the_row(captions, decide_on):
    table = read_captions(captions).assign(prompt="motion", caption=["motion", "walking", *["static"] * 6])
    write_captions(table, captions)
    row = decide_on().describe(1)
    assert (row["choices"], row["flags"]) == (["motion", "static"], ["label outside the set"])
