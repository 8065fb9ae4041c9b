"""Files of captioning and of the review page: parts, sidecars, databases, certificates, prompts, COCO's annotations."""

import hashlib
import json
import os
import shutil
import sqlite3
import unicodedata
import zipfile
from contextlib import closing, contextmanager, suppress

import pandas as pd
import pytest
import yaml
from helpers.guard import REFUSED, RIGHT, fuzzed, outcome
from helpers.mutations import HOSTILE, NAMES, as_json, changed_values, damaged_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from lit_extract.captioning.coco import coco_captions, read_annotations
from lit_extract.captioning.output import check_output, write_captions
from lit_extract.captioning.parts import Parts, noted_inputs, read_sidecar, sidecar_of
from lit_extract.common.errors import InputError
from lit_extract.modules.prompts import read_prompts
from lit_extract.parity.certificate import certificate_path, read_certificate, write_certificate
from lit_extract.review.accept import accept
from lit_extract.review.database import Database, database_path
from lit_extract.review.decisions import Decisions
from lit_extract.review.files import read_originals, review_path
from lit_extract.review.flags import KINDS, Rules, flag_captions
from lit_extract.review.guard import Guard, Keys
from lit_extract.review.images import find_images
from lit_extract.review.journal import journal_path, read_journal
from lit_extract.review.server import ReviewServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("captioning")


def lines_of(values):
    return b"".join(as_json(value) + b"\n" for value in values)


def json_lines(content):
    """The values of JSON lines, by Python's own parser."""
    return [json.loads(line) for line in content.decode().split("\n") if line]


# Parts and sidecars

STIMULI: list[int | str] = [7, "a", 3, 9]
RECORDS = [
    {"index": 0, "stimulus_id": 7, "caption": "Une\nfemme, à vélo", "status": "ok", "n_bytes": 5},
    {"index": 1, "stimulus_id": "a", "caption": "", "status": "failed: it has a cold", "n_bytes": -1, "mtime_ns": 0},
    {"index": 3, "stimulus_id": 9, "caption": "x", "status": "cut off", "content": -5, "rotated": 1},
]


@fuzzed(400)
@given(
    changed_values(RECORDS).filter(lambda value: isinstance(value, list)).map(lines_of)
    | damaged_bytes(lines_of(RECORDS))
)
def test_parts_are_what_their_lines_say_or_refused(folder, content):
    parts = Parts(folder / "out.csv")
    parts.folder.mkdir(exist_ok=True)
    (parts.folder / "00000.jsonl").write_bytes(content)

    def is_right(records):
        said = json_lines(content)
        return (
            [record["index"] for record in said] == list(records)
            and all(record.items() <= said[k].items() for k, record in enumerate(records.values()))
            and all(STIMULI[row] == record["stimulus_id"] for row, record in records.items())
            and all(
                type(record["caption"]) is type(record["status"]) is str and "\0" not in record["caption"]
                for record in records.values()
            )
        )

    outcome("parts of captions", folder, lambda: parts.records(STIMULI), is_right)


SIDECAR = {
    "provenance": {"dataset": "nsd", "n_stimuli": 2, "query": None, "options": {"a": [1, 2.5]}},
    "notes": {"created": "2026-01-01"},
    "failed": 0,
    "cut_off": 1,
    "exif_rotations": 0,
    "output_sha256": ["ab" * 32],
    "inputs": ["5 1700000000000000000 -77 0", "-1 0 0 0"],
}


@fuzzed(300)
@given(changed_values(SIDECAR).map(as_json) | damaged_bytes(as_json(SIDECAR)))
def test_a_sidecar_is_what_it_says_or_refused(folder, content):
    output = folder / "side.csv"
    sidecar_of(output).write_bytes(content)

    def read():
        sidecar = read_sidecar(output)
        inputs = noted_inputs(output, 2)
        difference = Parts(output).check_provenance({"dataset": "nsd"})
        return sidecar, inputs, difference

    def is_right(found):
        sidecar, inputs, _ = found
        said = json.loads(content)
        rows = None if inputs is None else [" ".join(map(str, row)) for row in inputs.tolist()]
        rows_said = said.get("inputs") and [" ".join(str(int(n)) for n in row.split()) for row in said["inputs"]]
        return all(same_json(sidecar[key], said[key]) for key in sidecar) and rows == (rows_said or rows)

    outcome("sidecar", folder, read, is_right)


def same_json(a, b):
    return a == b or json.dumps(a) == json.dumps(b)  # which has nan equal


# Databases and the review page

CAPTIONS = ["A dog.", "Two cats. Asleep.", '<script>alert("x")</script>', "=1+1", "A\nboat"]
DECIDED = ["A dog.", "Two cats asleep.", CAPTIONS[2], "One, two", CAPTIONS[4]]


@contextmanager
def decisions_on(path):
    decisions = Decisions(path, read_originals(path), "nsd_id", Rules())
    try:
        yield decisions
    finally:
        decisions.disk.close()


def review_of(folder):
    """A caption file, its review file, and a database of decisions about it."""
    path = folder / "nsd_captions.csv"
    write_captions(
        pd.DataFrame({"nsd_id": range(5), "caption": CAPTIONS, "model": "m/Pixtral-1", "prompt": "caption"}), path
    )
    with decisions_on(path) as decisions:
        decisions.decide(0, None, 0)
        decisions.decide(1, "Two cats asleep.", 0)
        decisions.decide(1, "Two cats.", 2)
        decisions.undo(3)
        decisions.decide(3, "One, two", 0)
    return path


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    return review_of(tmp_path_factory.mktemp("reviewed"))


@pytest.fixture(scope="module")
def database(reviewed):
    return database_path(review_path(reviewed)).read_bytes()


def copies(reviewed, folder):
    for path in (reviewed, review_path(reviewed), database_path(review_path(reviewed))):
        shutil.copy(path, folder / path.name)
    return folder / reviewed.name


def open_review(path):
    """Open a review as a server does, show all of it, and close it; return the captions."""
    with decisions_on(path) as decisions:
        decisions.progress()
        decisions.select("flagged", "open", "a")
        return [decisions.describe(row)["text"] for row in range(5)]


def by_sql(path):
    """The captions that a database has, by a reader of its own."""
    before = [[text] for text in CAPTIONS]
    with closing(sqlite3.connect(path)) as connection:
        for row, action, text in connection.execute("SELECT row, action, text FROM decisions ORDER BY revision"):
            if action == "undo":
                before[row].pop()
            else:
                before[row].append(text)
    return [texts[-1] for texts in before]


VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
DECISIONS = st.sampled_from(["start", "decide", "undo"])
ROWS = st.tuples(st.integers(0, 9), st.integers(0, 5), DECISIONS, st.none() | st.text(max_size=9), st.just("now"))


@fuzzed(150)
@given(st.data())
def test_a_database_is_what_its_rows_say_or_refused(folder, reviewed, database, data):
    path = copies(reviewed, folder)
    file = database_path(review_path(path))
    content = data.draw(st.just(None) | damaged_bytes(database))
    if content is None:
        rows = data.draw(st.lists(ROWS | st.tuples(*[VALUES] * 5), min_size=1, max_size=3))
        with closing(sqlite3.connect(file)) as connection, connection:
            for row in rows:
                with suppress(sqlite3.Error, UnicodeEncodeError):
                    connection.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)", row)
    else:
        file.write_bytes(content)

    def is_right(texts):
        return texts == by_sql(file)

    def read():
        with closing(Database(file, CAPTIONS)) as found:
            return list(found.rows.texts)

    outcome("database", folder, read, is_right)
    outcome("review, damaged database", folder, lambda: open_review(path), lambda texts: len(texts) == 5)


@fuzzed(150)
@given(st.data())
def test_a_damaged_review_file_changes_nothing_that_was_decided(folder, reviewed, data):
    path = copies(reviewed, folder)
    content = data.draw(damaged_bytes(review_path(reviewed).read_bytes()))
    review_path(path).write_bytes(content)
    outcome("review file", folder, lambda: open_review(path), lambda texts: texts == DECIDED)
    review_path(path).write_bytes(content)
    outcome(
        "check --accept",
        folder,
        lambda: accept(review_path(path), folder / "derivatives", overwrite=True),
        lambda found: pd.read_csv(found[0])["caption"].str.strip().tolist() == DECIDED,
    )


@fuzzed(150)
@given(st.data())
def test_a_damaged_review_file_without_decisions_is_taken_or_refused(folder, reviewed, data):
    path = copies(reviewed, folder)
    review_path(path).write_bytes(data.draw(damaged_bytes(review_path(reviewed).read_bytes())))
    database_path(review_path(path)).unlink()

    def is_right(texts):
        found = pd.read_csv(review_path(path), keep_default_na=False, dtype=str)["caption"].str.strip()
        return [text.replace("\r\n", "\n") for text in found] == texts

    outcome("review file at the start", folder, lambda: open_review(path), is_right)


JOURNAL = [
    {"format": 1, "captions_sha256": "of the captions"},
    {"file": "of the review file", "revision": 0},
    {"revision": 1, "row": 0, "new": "A dog.", "status": "accepted"},
    {"revision": 2, "row": 1, "new": "Two cats asleep.", "status": "edited"},
]


@fuzzed(150)
@given(changed_values(JOURNAL).filter(lambda value: isinstance(value, list)).map(lines_of)
       | damaged_bytes(lines_of(JOURNAL)))  # fmt: skip
def test_a_journal_of_an_earlier_version_is_what_its_lines_say_or_refused(folder, reviewed, content):
    path = copies(reviewed, folder)
    of_captions = hashlib.sha256("".join(f"{text}\0" for text in CAPTIONS).encode()).hexdigest()
    of_file = hashlib.sha256(review_path(path).read_bytes()).hexdigest()
    content = content.replace(b"of the captions", of_captions.encode()).replace(b"of the review file", of_file.encode())
    journal_path(review_path(path)).write_bytes(content)

    def is_right(found):
        said = [line for line in json_lines(content[: content.rfind(b"\n") + 1]) if "row" in line]
        return found == {line["row"]: (line["new"], line["status"]) for line in said}

    outcome("earlier journal", folder, lambda: read_journal(review_path(path), CAPTIONS), is_right)
    journal_path(review_path(path)).unlink()


SEEN = 987654321  # stands for the revision that a page has seen
POSTS = {
    "decide": {"row": 2, "revision": SEEN, "text": "A dog."},
    "undo": {"revision": 1},
    "other": {"row": 1},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "nsd").mkdir()
    for row in range(5):
        Image.new("RGB", (4, 4)).save(folder / "nsd" / f"{row}.png")
    rows = "".join(f"{row},n,{row}.png\n" for row in range(5))
    (folder / "nsd" / "nsd.csv").write_text(f"nsd_id,name,path\n{rows}")
    path = review_of(folder)
    captions = read_originals(path)
    keys, images = Keys(), find_images(captions, "nsd", str(folder / "nsd"))[0]
    with decisions_on(path) as decisions:
        address = "http://127.0.0.1:8000"
        app = Guard(ReviewServer(decisions, images, {"command": "x"}).app(), keys)
        client = TestClient(app, address, headers={"Origin": address}, raise_server_exceptions=True)
        assert client.get("/", params={"token": keys.token}).status_code == 200
        client.decisions, client.folder = decisions, folder
        yield client


@fuzzed(300)
@given(st.sampled_from(sorted(POSTS)), st.data())
def test_whatever_a_browser_posts_is_answered(client, kind, data):
    body = data.draw(
        changed_values(POSTS[kind]).map(as_json) | damaged_bytes(as_json(POSTS[kind])) | HOSTILE.map(as_json)
    )
    body = body.replace(str(SEEN).encode(), str(client.decisions.rows.revisions.get(2, 0)).encode())
    before = [client.decisions.describe(row) for row in range(5)]

    def post():
        response = client.post(f"/api/{kind}", content=body, headers={"Content-Type": "application/json"})
        if response.status_code != 200:
            raise InputError(f"{response.status_code}: {response.text[:200]!a}")
        return response

    def is_right(response):
        """At most one row has changed, to the text that was sent or one that it had."""
        after = [client.decisions.describe(row) for row in range(5)]
        changed = [row for row in range(5) if after[row]["text"] != before[row]["text"]]
        sent = json.loads(body)
        return len(changed) <= 1 and (
            kind != "decide" or all(after[row]["text"] == sent["text"].strip() for row in changed)
        )

    outcome(f"POST {kind}", client.folder, post, is_right)


ROUTES = (
    "image/{}",
    "api/rows?list={}",
    "api/list?flag={}&near={}",
    "api/changes?since={}",
    "api/find?id={}",
    "api/{}",
)


@fuzzed(150)
@given(st.sampled_from(ROUTES), st.sampled_from(NAMES) | st.integers().map(str) | st.text() | st.just("9" * 5000))
def test_whatever_a_browser_asks_is_answered(client, route, value):
    from urllib.parse import quote

    def get():
        response = client.get("/" + route.replace("{}", quote(value, safe="", errors="replace")))
        if response.status_code != 200:
            raise InputError(f"{response.status_code}: {response.text[:200]!a}")
        return response

    outcome("GET", client.folder, get, lambda response: response.status_code == 200)


@fuzzed(200)
@given(text=st.text(max_size=30))
def test_a_caption_is_saved_as_it_was_sent_or_refused(client, text):
    """Markup, control characters, line ends: in the page's answer, in the database and in the review file."""
    revision = client.decisions.rows.revisions.get(4, 0)
    content = as_json({"row": 4, "revision": revision, "text": text})

    def post():
        response = client.post("/api/decide", content=content, headers={"Content-Type": "application/json"})
        if response.status_code != 200:
            raise InputError(f"{response.status_code}")
        return response.json()["row"]["text"]

    def is_right(answered):
        wanted = text.replace("\r\n", "\n").replace("\r", "\n").strip()
        path = client.decisions.path
        client.decisions.disk.write()
        with closing(sqlite3.connect(database_path(path))) as saved:
            last = saved.execute("SELECT row, text FROM decisions ORDER BY revision DESC LIMIT 1").fetchone()
        in_file = pd.read_csv(path, keep_default_na=False, dtype=str, lineterminator=None)["caption"][4]
        return (
            answered == wanted
            and (last[0] != 4 or last[1] == wanted)
            and in_file.replace("\r\n", "\n").replace("\r", "\n").strip() == wanted
        )

    outcome("caption, written on the page", client.folder, post, is_right)


# Certificates

CERTIFICATE = {
    "format": 1,
    "file": "x.pt",
    "verdict": "fail",
    "failures": ["rows are lost"],
    "remarks": ["of little use"],
    "precision": "bf16-true",
    "stimuli": [{"row": 1, "stimulus_id": 7, "rank": 1, "nearest_row": 1}],
    "layers": [{"layer": "blocks.0", "max_abs_error": 0.5, "cosine": 1.0}],
    "loss": {},
}


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    path = tmp_path_factory.mktemp("certified") / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"abc")
    records = {"x/data.pkl": f"{zipfile.ZipFile(path).infolist()[0].CRC:08x}"}
    return path, {**CERTIFICATE, "records_crc32": records}


CONTROL = {"Cc", "Cs"}


@fuzzed(300)
@given(data=st.data())
def test_a_certificate_is_what_it_says_or_refused(certified, data):
    path, certificate = certified
    content = data.draw(changed_values(certificate).map(as_json) | damaged_bytes(as_json(certificate)))
    certificate_path(path).write_bytes(content)

    def is_right(found):
        said = json.loads(content)
        return (
            all(same_json(found[key], said[key]) for key in found)
            and found["records_crc32"] == certificate["records_crc32"]
            and (found["verdict"] == "pass") is (found["failures"] == [])
            and all(
                type(text) is str and not CONTROL & set(map(unicodedata.category, text)) for text in found["failures"]
            )
            and isinstance(found["stimuli"], list)
        )

    outcome("certificate", path.parent, lambda: read_certificate(path), is_right)


# Prompts

PROMPTS = {
    "colour": {"text": "Which colour is it?", "choices": ["red", "green"], "sentences": 1},
    "caption": "Describe it.",
}


@fuzzed(250)
@given(
    changed_values(PROMPTS).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass"))
    | damaged_bytes(yaml.safe_dump(PROMPTS).encode())
)
def test_prompts_are_what_the_file_says_or_refused(folder, content):
    (folder / "p.yml").write_bytes(content)

    def is_right(prompts):
        said = yaml.safe_load(content)
        mine = {name: prompts[name] for name in said}
        texts = {name: entry if isinstance(entry, str) else entry["text"] for name, entry in said.items()}
        return all(
            prompt.text == texts[name].strip()
            and prompt.name == name
            and list(prompt.choices) == ((isinstance(said[name], dict) and said[name].get("choices")) or [])
            for name, prompt in mine.items()
        )

    outcome("prompts", folder, lambda: read_prompts(str(folder / "p.yml")), is_right)


# COCO's annotations

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 5}],
    "annotations": [
        {"image_id": 5, "id": 1, "caption": "A  dog\nruns."},
        {"image_id": 6, "id": 2, "caption": "A cat; asleep"},
        {"image_id": 5, "id": 3, "caption": "A beach."},
    ],
}


@fuzzed(250)
@given(changed_values(COCO).map(as_json) | damaged_bytes(as_json(COCO)))
def test_annotations_are_what_they_say_or_refused(folder, content):
    (folder / "coco.json").write_bytes(content)

    def is_right(captions):
        expected: dict = {}
        for entry in json.loads(content)["annotations"]:
            if entry["caption"].split():
                expected.setdefault(entry["image_id"], []).append(" ".join(entry["caption"].split()))
        return captions == expected and all(type(image) is int for image in captions)

    outcome("COCO's annotations", folder, lambda: read_annotations([folder / "coco.json"]), is_right)


# Each example of its own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "a/b"}, "name: must be a plain name"),
        ({"name": ".."}, "name: must be a plain name"),
        ({"name": "../x"}, "name: must be a plain name"),
        ({"name": "a\0b"}, "name: must have no control characters"),
        ({"name": "x" * 240}, "name: must be a plain name of at most 255 bytes"),
        ({"dataset": "../x"}, "dataset: must be a plain name"),
        ({"dataset": "/x"}, "dataset: must be a plain name"),
    ],
)
def test_accept_takes_plain_names_only(reviewed, tmp_path, settings, said):
    path = copies(reviewed, tmp_path)
    read = lambda: accept(review_path(path), tmp_path / "derivatives", **settings)  # noqa: E731
    assert outcome("check --accept", tmp_path, read, lambda _: False) == REFUSED
    with pytest.raises(InputError, match=said):
        read()
    assert not (tmp_path / "derivatives").exists()


@pytest.mark.parametrize("dataset", ["../x", "/etc", "a/b", "nsd2", "a\x1b[31m", 7, ["nsd"], {"nsd": 1}])
def test_the_dataset_out_of_a_sidecar_is_a_known_one(reviewed, tmp_path, dataset):
    path = copies(reviewed, tmp_path)
    for file in (path, review_path(path)):
        pd.read_csv(file, keep_default_na=False).rename(columns={"nsd_id": "stimulus_id"}).to_csv(file, index=False)
    database_path(review_path(path)).unlink()
    sidecar_of(path).write_text(json.dumps({"provenance": {"dataset": dataset}}))
    read = lambda: accept(review_path(path), tmp_path / "derivatives")  # noqa: E731
    assert outcome("check --accept", tmp_path, read, lambda _: False) == REFUSED
    with pytest.raises(InputError, match="which is not one of nsd, bold5000"):
        read()
    sidecar_of(path).write_text(json.dumps({"provenance": {"dataset": "nsd"}}))
    assert read()[0] == tmp_path / "derivatives" / "nsd-captions-pixtral.csv"


@pytest.mark.parametrize("model", ["a/..", "..", "/", "", "a/\x1b[31m", "x" * 250])
def test_the_name_out_of_the_captions_is_a_plain_one(tmp_path, model):
    captions = pd.DataFrame({"nsd_id": [0], "caption": ["a"], "model": [model], "prompt": ["caption"]})
    captions.to_csv(tmp_path / "c.csv", index=False)
    captions.to_csv(tmp_path / "edited.csv", index=False)
    read = lambda: accept(tmp_path / "edited.csv", tmp_path / "derivatives", tmp_path / "c.csv")  # noqa: E731

    def is_right(found):
        return found[0].parent == tmp_path / "derivatives" and found[0].name == "nsd-captions-...csv"

    outcome("check --accept", tmp_path, read, is_right)
    assert len(list(tmp_path.rglob("*"))) <= 4


def other_kinds(path):
    """Put what is no file in its place, one after the other."""
    for make in (os.mkfifo, os.mkdir, lambda place: place.symlink_to("/dev/zero")):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        make(path)
        yield


def test_what_is_no_file_is_refused_in_each_place(reviewed, tmp_path, certified):
    path = copies(reviewed, tmp_path)
    parts = Parts(tmp_path / "out.csv")
    parts.folder.mkdir()
    certificate, _ = certified
    readers = {
        parts.folder / "00000.jsonl": lambda: parts.records(STIMULI),
        sidecar_of(path): lambda: read_sidecar(path),
        database_path(review_path(path)): lambda: open_review(path),
        certificate_path(certificate): lambda: read_certificate(certificate),
        tmp_path / "p.yml": lambda: read_prompts(str(tmp_path / "p.yml")),
        tmp_path / "coco.json": lambda: read_annotations([tmp_path / "coco.json"]),
        tmp_path / "out.csv": lambda: check_output(str(tmp_path / "out.csv")),
    }
    for place, read in readers.items():
        for _ in other_kinds(place):
            assert outcome("something else than a file", tmp_path, read, lambda _: False) == REFUSED, place


def test_a_link_in_the_place_of_a_temporary_file_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".x.parity.json.part").symlink_to(victim)
    write_certificate(tmp_path / "x.pt", {})
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"index": 1, "stimulus_id": 7, "caption": "a", "status": "ok"}, "row 1 of stimulus 7 does not belong there"),
        ({"index": 4, "stimulus_id": 9, "caption": "a", "status": "ok"}, "row 4 of stimulus 9 does not belong there"),
        ({"index": 2**70, "stimulus_id": 9, "caption": "a", "status": "ok"}, "index"),
        ({"index": True, "stimulus_id": "a", "caption": "a", "status": "ok"}, "index"),
        ({"index": 2, "stimulus_id": "3", "caption": "a", "status": "ok"}, "row 2 of stimulus 3"),
        ({"index": 2, "stimulus_id": 3, "caption": None, "status": "ok"}, "caption"),
        ({"index": 2, "stimulus_id": 3, "caption": "a\0", "status": "ok"}, "NUL"),
        ({"index": 2, "stimulus_id": 3, "caption": "\ud800", "status": "ok"}, "hex escape"),
        ({"index": 2, "stimulus_id": 3, "caption": "a", "status": "ok", "content": 2**64}, "content"),
        ({"index": 0, "stimulus_id": 7, "caption": "b", "status": "ok"}, "row 0 of stimulus 7 does not belong there"),
        (["a"], "object"),
        ({"a": json.loads("[" * 900 + "]" * 900)}, "recursion limit"),
    ],
)
def test_damaged_parts_name_the_file_and_what_to_do(tmp_path, line, said):
    parts = Parts(tmp_path / "out.csv")
    parts.folder.mkdir()
    (parts.folder / "00000.jsonl").write_bytes(lines_of([*RECORDS, line]))
    with pytest.raises(InputError, match=f"00000.jsonl' is damaged .*{said}.*; delete it and run the same"):
        parts.records(STIMULI)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "<a" * 50_000, "\n" * 100_000 + "x", "." * 100_000, "`a" * 50_000, " [](" * 30_000, "I " * 50_000,
     "{" + "]" * 100_000 + "x", "word " * 20_000, ". " * 50_000, "&a" * 50_000, "aé" * 50_000, "1" * 100_000],
)  # fmt: skip
def test_no_caption_takes_long_to_check(folder, text):
    table = pd.DataFrame({"caption": [text] * 2})
    outcome(
        "check, long caption",
        folder,
        lambda: flag_captions(table, {}, Rules()),
        lambda flags: set(flags[0]) <= set(KINDS),
    )


def test_a_coco_id_that_is_none_is_refused(tmp_path):
    info = "cocoId,cocoSplit,nsdId\nx,train2017,0\n"
    (tmp_path / "info.csv").write_text(info)
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    with pytest.raises(InputError, match="cocoId must be integers"):
        coco_captions(tmp_path / "info.csv", [tmp_path / "coco.json"], tmp_path / "out.csv")


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"annotations": [' + b"1," * (9 * 10**6) + b"1]}"])
def test_annotations_of_absurd_shape_are_refused(tmp_path, content):
    (tmp_path / "coco.json").write_bytes(content)
    assert outcome("COCO's annotations", tmp_path, lambda: read_annotations([tmp_path / "coco.json"]), lambda _: False)


def test_rows_of_a_good_database_are_the_decided_ones(reviewed, tmp_path):
    path = copies(reviewed, tmp_path)
    assert outcome("review", tmp_path, lambda: open_review(path), lambda texts: texts == DECIDED) == RIGHT
