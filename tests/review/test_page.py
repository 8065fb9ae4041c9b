"""The page in a real browser, by keyboard, from the first look to the accepted captions."""

import re
import signal
import time

import pytest
from helpers.small_review import CAPTIONS

from lit_extract.captioning.output import read_captions, write_captions
from lit_extract.datasets import load_captions

pytestmark = pytest.mark.slow

FIXED = "A dog runs along a beach, and a ball, too."


def until(condition, seconds=20):
    """Wait for something to be so. Playwright's own waiting needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.01)
    return result


class Tab:
    """A tab with the page, and what one reads in it."""

    def __init__(self, page):
        self.page, self.errors = page, []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))

    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_selector("#caption:not([hidden]), #nothing:not([hidden])")
        return self

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def write(self, text):
        """Edit the caption and save it, which leads to the next."""
        self.press("e", "Control+a")
        self.page.keyboard.insert_text(text)
        self.press("Enter")

    def at(self, stimulus):
        until(lambda: self.page.inner_text("#stimulus") == str(stimulus))
        return self

    @property
    def text(self):
        return self.page.input_value("#text")

    def read(self, selector):
        return self.page.inner_text(selector)

    def says(self, text):
        until(lambda: text in self.page.inner_text("body"))


@pytest.fixture
def tab(chromium):
    """A function that opens a tab in a browser of its own, where nothing is remembered yet."""
    contexts = []

    def tab(address, context=None):
        if context is None:
            context = chromium.new_context(viewport={"width": 1280, "height": 720})
            contexts.append(context)
        return Tab(context.new_page()).open(address)

    yield tab
    for context in contexts:
        context.close()


def test_a_whole_review(serve, tab, cli, review_file, tmp_path):
    server, address = serve()
    assert "flagged and not reviewed: 4;" in "".join(server.lines)
    page = tab(address).at(101)
    assert "token" not in page.page.url
    assert page.read("#progress") == "4 of 4 flagged left · 0 of 8 reviewed"
    assert page.read("#chosen") == "4 captions"
    assert page.read("#flags") == "several sentences"

    page.write("A cat sleeps.")
    page.at(103).press("Enter")
    page.at(104).says("2 of 4 flagged left · 2 of 8 reviewed")
    page.press("u")
    page.at(103).says("3 of 4 flagged left · 1 of 8 reviewed")
    page.press("u")
    page.at(101)
    assert page.text == CAPTIONS[1]
    page.write("A cat sleeps.")
    page.at(103)

    page.page.reload()
    page.page.wait_for_selector("#caption:not([hidden])")
    page.at(103).says("3 of 4 flagged left · 1 of 8 reviewed")
    page.press("u")
    page.at(101)
    assert page.text == CAPTIONS[1], "undo goes back beyond the reload"
    page.write("A cat sleeps.")
    page.at(103).write("A “quoted” dog, = 1")
    page.at(104)
    server.send_signal(signal.SIGKILL)
    server.wait()
    page.says("The server does not answer")
    page.write("Too late.")
    page.says("Not saved: the server does not answer")
    assert page.text == "Too late."

    _, address = serve()
    page = tab(address).at(104)
    page.says("2 of 4 flagged left · 2 of 8 reviewed")
    page.press("u")
    page.at(103)
    assert page.text == CAPTIONS[3], "undo goes back beyond the kill"
    page.write("A “quoted” dog, = 1")
    page.at(104).press("g")
    page.page.keyboard.type("106")
    page.press("Enter")
    page.at(106).press("Enter")
    page.says("This was the last of these captions; n goes to one that is left")
    page.press("n")
    page.at(104).write(FIXED)
    page.says("0 of 4 flagged left · 4 of 8 reviewed")
    page.page.click("#result-button")
    command = page.read("#command")
    assert command == f"lit-extract check {review_file} --accept"
    assert page.errors == []

    code, printed, _ = cli(*command.split()[1:], "--derivatives", tmp_path / "derivatives")
    assert (code, printed.split()[1]) == (0, "3"), "though the server still runs"
    accepted = load_captions(tmp_path / "derivatives" / "nsd-captions-pixtral.csv")["caption"].tolist()
    assert accepted == [CAPTIONS[0], "A cat sleeps.", CAPTIONS[2], "A “quoted” dog, = 1", FIXED, *CAPTIONS[5:]]


def test_ctrl_c_writes_the_result_and_says_how_to_accept_it(serve, tab, review_file):
    server, address = serve()
    tab(address).at(101).write("A cat sleeps.")
    until(lambda: b"A cat sleeps." in review_file.with_suffix(".sqlite").read_bytes())
    server.send_signal(signal.SIGINT)
    printed = server.stdout.read()
    assert server.wait() == 0
    assert "8 captions, 1 of them reviewed, 1 edited; flagged and not reviewed: 3;" in printed
    assert printed.endswith(f"  lit-extract check {review_file} --accept\n")
    assert "Traceback" not in printed
    assert read_captions(review_file)["caption"][1] == "A cat sleeps."
    assert sorted(path.name for path in review_file.parent.iterdir() if path.is_file()) == [
        *("nsd_captions-review.csv", "nsd_captions-review.sqlite", "nsd_captions.csv")
    ]


def test_a_caption_can_do_nothing_to_the_page(serve, tab):
    page = tab(serve()[1]).at(101)
    page.press("ArrowDown")
    page.at(103)
    assert page.text == CAPTIONS[3]
    assert CAPTIONS[3] in page.page.locator("[role=option][aria-selected=true] p").inner_text()
    page.press("e", "End")
    page.page.keyboard.type(" more")
    page.press("Escape")
    until(lambda: "more" in page.read("#difference"))
    assert page.page.title() == "nsd_captions.csv – review"
    assert page.page.locator("#list b b, #list img, #difference b, #difference img").count() == 0
    assert page.errors == []


def test_image_and_caption_belong_together_however_fast_one_goes(serve, tab, root):
    page = tab(serve()[1]).at(101)
    page.press("f")
    page.page.select_option("#flag", "")
    page.press("Enter", "d")
    page.page.select_option("#status", "")
    page.press("Enter")
    until(lambda: page.read("#chosen") == "8 captions")
    read = """() => {
        const images = document.querySelectorAll("#figure img");
        const image = images[images.length - 1];
        const [id, text] = ["stimulus", "text"].map((name) => document.getElementById(name));
        const shown = [Number(image.dataset.row), image.src, image.naturalWidth, images.length];
        return [Number(id.textContent) - 100, text.value, ...shown];
    }"""
    for key in ["ArrowUp"] * 8 + ["ArrowDown", "j", "ArrowDown", "k", "ArrowDown", "j", "j", "j"]:
        page.press(key)
        row, text, image_row, source, width, n_images = page.page.evaluate(read)
        assert (text, image_row) == (CAPTIONS[row], row)
        assert re.search(rf"/image/{row}\?", source)
        assert width in (0, 40 + row), "not loaded yet, or the right one"
        assert n_images == 1
    until(lambda: page.page.evaluate(read)[4] == 40 + row)


def test_two_tabs(serve, tab):
    _, address = serve()
    first = tab(address).at(101)
    second = tab(address).at(101)
    first.press("e", "Control+a")
    first.page.keyboard.type("Mine.")
    second.write("Theirs.")
    second.at(103)
    first.says("This caption was changed elsewhere while you were writing")
    assert (first.text, first.read("#other-text")) == ("Mine.", "Theirs.")
    first.press("Enter")
    first.says("Nothing was saved; look again")
    assert first.text == "Mine."
    first.press("Enter")
    first.at(103)
    second.press("ArrowUp")
    second.at(101)
    until(lambda: second.text == "Mine.")

    # and the one that was not looked at again
    first.press("k")
    first.at(101).press("e", "End")
    first.page.keyboard.type(" Again.")
    second.write("Theirs again.")
    first.says("while you were writing")
    first.press("Escape", "t", "Enter")
    first.at(103).press("k")
    first.at(101)
    assert first.text == "Theirs again."
    assert second.errors == []
    assert [error for error in first.errors if "409" not in error] == []


def test_what_is_not_saved_stays_in_the_tab(serve, tab):
    page = tab(serve()[1]).at(101)
    page.press("e", "End")
    page.page.keyboard.type(" Half a thou")
    page.press("Escape", "ArrowDown")
    page.at(103).press("ArrowUp")
    page.at(101)
    assert page.text == f"{CAPTIONS[1]} Half a thou"
    page.page.on("dialog", lambda dialog: dialog.accept())
    page.page.reload()
    page.page.wait_for_selector("#caption:not([hidden])")
    page.at(101)
    assert page.text == f"{CAPTIONS[1]} Half a thou"
    page.press("Escape")
    until(lambda: page.text == CAPTIONS[1])
    page.says("0 of 8 reviewed")


def test_an_empty_caption_is_refused_in_words(serve, tab):
    page = tab(serve()[1]).at(101)
    page.write("")
    page.says("A caption can't be empty")
    page.at(101).says("0 of 8 reviewed")


@pytest.mark.slow
def test_another_program_changes_the_review_file(serve, tab, review_file):
    page = tab(serve()[1]).at(101)
    page.write("Mine.")
    page.at(103)
    until(lambda: read_captions(review_file)["caption"][1] == "Mine.")
    ours = review_file.read_bytes()
    table = read_captions(review_file)
    table.loc[1, "caption"] = "Theirs."
    write_captions(table, review_file)
    page.says("was changed by another program after the review started; it differs from the page in line 3.")
    page.press("k")
    page.at(101)
    assert page.text == "Mine."
    page.write("Mine, still.")
    page.at(103).says("1 of 8 reviewed")
    review_file.write_bytes(ours)
    until(lambda: not page.page.is_visible("#notice"))


def test_labels_are_keys(serve, tab, captions):
    table = read_captions(captions).assign(prompt="motion", caption=["motion", "walking", *["static"] * 6])
    write_captions(table, captions)
    page = tab(serve()[1]).at(101)
    assert page.read("#choices").split() == ["motion", "1", "static", "2"]
    page.press("3")
    page.press("2")
    page.says("0 of 1 flagged left · 1 of 8 reviewed")
    assert page.text == "static"
    page.page.click("#choices button:first-child")
    until(lambda: page.text == "motion")


def test_search_goes_through_all_captions_and_keys_are_explained(serve, tab):
    page = tab(serve()[1]).at(101)
    page.press("f")
    page.page.select_option("#flag", "")
    page.press("Escape", "/")
    page.page.keyboard.type("DOG")
    until(lambda: page.read("#chosen") == "3 captions")
    page.press("Enter")
    page.at(100).press("?")
    assert page.page.locator("#help").is_visible()
    page.press("Enter")
    until(lambda: not page.page.locator("#help").is_visible())
    page.at(100).says("0 of 8 reviewed")
    page.press("/")
    page.page.keyboard.type("no such thing")
    page.says("No such captions")
    page.press("Escape", "Enter", "n", "j", "t", "r", "1")
    page.page.click("#show-all")
    until(lambda: page.read("#chosen") == "8 captions")
    page.says("0 of 8 reviewed")
    assert page.errors == []


def test_another_server_finds_the_review_taken(serve, cli, captions, root):
    serve()
    for command in (("review", captions, "--dataset", "nsd", "--root", root), ("check", captions, "--overwrite")):
        code, _, error = cli(*command, "--languages", "[]")
        assert code == 2
        assert "nsd_captions-review.csv' is being written by another run" in error
