"""The server engine against a small server that answers, refuses and goes away as it is told."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.fake_engine import decode
from PIL import Image

from lit_extract.captioning.captioner import Captioner
from lit_extract.common.errors import InputError
from lit_extract.data.sources import ImageSource

MODEL = "m"


class Chat:
    """What the server was asked, and the statuses of its next answers; 200 when there are none left."""

    def __init__(self):
        self.requests, self.keys, self.statuses, self.reply, self.seconds = [], [], [], "A dog.", 0.0
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def answer(self, request):
        with self.lock:
            self.requests.append(request)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            status = self.statuses.pop(0) if self.statuses else 200
        time.sleep(self.seconds)
        with self.lock:
            self.under_way -= 1
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.reply}}
        content = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
        return status, content if status == 200 else {"error": {"message": "as it was told"}}


@pytest.fixture
def chat():
    return Chat()


@pytest.fixture
def base_url(chat):
    class Handler(BaseHTTPRequestHandler):
        def send(self, status, content):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            chat.keys.append(self.headers["Authorization"])
            models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "us"}]
            self.send(200, {"object": "list", "data": models})

        def do_POST(self):
            self.send(*chat.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has gone away
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sources(images):
    return [ImageSource(path.name, str(path)) for path in sorted(images.iterdir())]


def test_what_is_asked(chat, base_url, sources, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    captioner = Captioner(MODEL, "motion", base_url=base_url, seed=7, max_image_size=4)
    chat.reply = "static"
    captioner.configure_model()
    assert [reply.text for reply in captioner.replies(sources[3:4])] == ["static"]
    assert chat.keys == ["Bearer secret"]
    (request,) = chat.requests
    assert request["model"] == MODEL
    assert request["temperature"] == 0
    assert request["structured_outputs"] == {"choice": ["motion", "static"]}
    image, text = request["messages"][0]["content"]
    assert text["text"] == captioner.prompt.text
    seen = decode(image["image_url"]["url"])
    assert (seen.size, seen.getpixel((0, 0))) == ((4, 3), (60, 60, 60))
    assert "secret" not in json.dumps(captioner.provenance())


def test_a_label_has_no_more_tokens_than_bytes(base_url):
    assert Captioner(MODEL, "Which one is it?", ["東京", "a"], base_url=base_url).request.max_tokens == 6 + 2


def test_each_image_has_a_seed_of_its_own_that_is_always_the_same(chat, base_url, sources):
    captioner = Captioner(MODEL, base_url=base_url, temperature=1.0)
    captioner.replies(sources)
    captioner.replies(sources[::-1])
    seeds = sorted(request["seed"] for request in chat.requests)
    assert len(set(seeds)) == 10
    assert seeds[::2] == seeds[1::2]


def test_no_more_are_under_way_than_allowed(chat, base_url, sources):
    chat.seconds = 0.05
    Captioner(MODEL, base_url=base_url, concurrency=3).replies(sources)
    assert chat.most == 3
    assert len(chat.requests) == 10


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_is_busy_is_asked_again(chat, base_url, sources, status):
    chat.statuses = [status, status]
    replies = Captioner(MODEL, base_url=base_url, attempts=1).replies(sources[:2])
    assert [reply.text for reply in replies] == ["A dog.", "A dog."]
    assert len(chat.requests) == 4


def test_a_request_that_is_refused_is_tried_so_often_and_recorded(chat, base_url, sources):
    chat.statuses = [400] * 2
    (reply,) = Captioner(MODEL, base_url=base_url, attempts=2).replies(sources[:1])
    assert reply.text == ""
    assert reply.error is not None
    assert reply.error.startswith("the server answers 400: ")
    assert "as it was told" in reply.error
    assert len(chat.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_concerns_all_requests_stops_the_run(chat, base_url, sources, status):
    chat.statuses = [status] * 20
    with pytest.raises(InputError, match=f"answers {status}: "):
        Captioner(MODEL, base_url=base_url).replies(sources)


def test_a_server_that_stays_busy_stops_the_run(chat, base_url, sources):
    chat.statuses = [503] * 100
    with pytest.raises(InputError, match="answers 503: "):
        Captioner(MODEL, base_url=base_url, patience=1.0).replies(sources[:1])
    assert len(chat.requests) > 1


def test_nobody_answers(sources):
    captioner = Captioner(MODEL, base_url="http://127.0.0.1:9/v1", patience=0.5)
    with pytest.raises(InputError, match=r"no server answered at 'http://127\.0\.0\.1:9/v1'"):
        captioner.replies(sources)


def test_another_model_is_served(base_url):
    with pytest.raises(InputError, match=r"model\.name: the server at .* has no 'other'; it has m"):
        Captioner("other", base_url=base_url).configure_model()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "server"}, r"model\.engine: server needs an address"),
        ({"engine": "vllm", "base_url": "http://x/v1"}, r"model\.base_url: .* is for the engine server"),
        ({"base_url": "localhost:8000"}, "must start with http"),
        ({"base_url": "http://x/v1", "engine_options": {"dtype": "float32"}}, "only for the engine vllm"),
        ({"base_url": "http://x/v1", "attempts": 0}, r"model\.attempts: 0 must be 1 or more"),
        ({"base_url": "http://x/v1", "temperature": -1.0}, r"model\.temperature: -1.0 must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        Captioner(**settings)


def test_images_are_read_when_they_are_sent(chat, base_url, tmp_path):
    missing = ImageSource(1, str(tmp_path / "nowhere.png"))
    (reply,) = Captioner(MODEL, base_url=base_url).replies([missing])
    assert reply.error is not None
    assert "FileNotFoundError" in reply.error
    assert chat.requests == []
    Image.new("RGB", (2, 2)).save(missing.path)
    assert Captioner(MODEL, base_url=base_url).replies([missing])[0].text == "A dog."
