"""Each rule, on texts that it is for and on texts that look like them."""

import pandas as pd
import pytest

from lit_extract.common.errors import InputError
from lit_extract.modules.prompts import read_prompts
from lit_extract.review.flags import (
    KINDS,
    Rules,
    count_sentences,
    flag_caption,
    flag_captions,
    has_control_characters,
    is_cut_off,
    is_repetitive,
)
from lit_extract.review.language import Language

PLAIN = "A man in a red hat rides a bicycle past a bakery."


@pytest.fixture(scope="module")
def language():
    return Language()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (PLAIN, []),
        ("", ["empty"]),
        ("  \n", ["empty"]),
        ("A man in a red hat rides a", ["cut off"]),
        ("I'm sorry, I can't help with that picture.", ["refusal"]),
        ("I’m unable to see the picture you mention.", ["refusal"]),
        ("As an AI model, this looks like a dog to me.", ["refusal"]),
        ("Please provide the image that you want described.", ["refusal"]),
        ("A sign that says sorry hangs on a door.", []),
        ("**A man** rides a bicycle past a bakery.", ["markup"]),
        ("# A man rides a bicycle past a bakery.", ["markup"]),
        ("<p>A man rides a bicycle past a bakery.</p>", ["cut off", "markup"]),
        ("A man rides a bicycle past a bakery.</s>", ["cut off", "markup"]),
        ("[IMG] A man rides a bicycle past a bakery.", ["markup"]),
        ('{"caption": "A man rides a bicycle."}', ["cut off", "markup"]),
        ("Caption: A man rides a bicycle past a bakery.", ["markup"]),
        ("A man holds a sign with the price 5 < 6 on it.", []),
        ("A man\trides a bicycle past a bakery.", ["control characters"]),
        ("A man man man man rides a bicycle.", ["repetition"]),
    ],
)
def test_flags_of_free_text(text, kinds):
    assert flag_caption(text, "ok", Rules(), full_stops=True) == kinds


def test_statuses_of_the_run_are_flags():
    assert flag_caption("", "failed: it has a cold", Rules(), True) == ["failed"]
    assert flag_caption(PLAIN, "cut off", Rules(), True) == ["cut off"]


def test_labels():
    rules = Rules(choices=("motion", "static"))
    assert flag_caption("motion", "ok", rules, True) == []
    assert flag_caption("Motion", "ok", rules, True) == ["label outside the set"]
    assert flag_caption("", "ok", rules, True) == ["empty"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (PLAIN, 1),
        ("A dog", 1),
        ("A dog runs. A cat sleeps.", 2),
        ("a dog runs. a cat sleeps.", 2),
        ("A dog runs! Where to? Home.", 3),
        ("A dog runs.\nA cat sleeps.", 2),
        ("Mr. Smith meets Dr. Jones at 5 p.m. in the U.S. on St. James Ave. near a 3.5 m wall.", 1),
        ('A sign reads "Stop. Go." in red.', 2),
        ("一只猫。一只狗。", 2),
        ("A dog runs... and a cat sleeps.", 1),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


@pytest.mark.parametrize("text", ["A dog,", "A dog and", "A dog with", "A dog runs to the", "A dog…", "A dog (brown"])
def test_cut_off_whatever_the_style(text):
    assert is_cut_off(text, full_stops=False) is (text != "A dog (brown")


def test_a_missing_full_stop_counts_where_others_have_one():
    with_stops = pd.DataFrame({"caption": ["A dog runs.", "A cat sleeps.", "A bird sings"]})
    without = pd.DataFrame({"caption": ["A dog runs", "A cat sleeps", "A bird sings."]})
    assert flag_captions(with_stops, {}, Rules()) == [[], [], ["cut off"]]
    assert flag_captions(without, {}, Rules()) == [[], [], []]


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("A\u200bdog", True),
        ("A\x1b[0m dog", True),
        ("A \ufffd dog", True),
        ("A\ndog", True),
        ("A\u202edog", True),
        ("A café in 東京 🦓", False),
        ("👩\u200d🚀 in space", False),
    ],
)
def test_control_characters(text, odd):
    assert has_control_characters(text) is odd


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("a dog a dog a dog a dog runs", True),
        ("on the beach on the beach on the beach", True),
        ("A zebra, a zebra, and a zebra.", False),
        ("Noooooo", True),
        ("A dog!!!!!!!!", True),
        ("The man and the woman and the child sit on the bench in the park by the lake.", False),
    ],
)
def test_repetition(text, odd):
    assert is_repetitive(text) is odd


@pytest.mark.parametrize(
    ("text", "english"),
    [
        (PLAIN, True),
        ("Two zebras", True),
        ("A zebra.", True),
        ("42", True),
        ("Pizza margherita with tiramisu.", True),
        ("A café in Zürich with croissants.", True),
        ("Giraffes graze near acacia trees in Kenya.", True),
        ("Ein Mann mit rotem Hut fährt mit dem Fahrrad.", False),
        ("Un homme au chapeau rouge fait du vélo.", False),
        ("Un perro corre por la playa.", False),
        ("一只猫", False),
        ("Кот спит на диване", False),
        ("قطة نائمة", False),
    ],
)
def test_english(language, text, english):
    assert language.is_english(text) is english
    assert ("not English" in flag_caption(text, "ok", Rules(language=language), False)) is not english


def test_captions_that_people_wrote_are_left_alone(language):
    captions = pd.read_csv("derivatives/captions/demo-captions-handwritten.csv")
    assert flag_captions(captions, read_prompts(), Rules(language=language)) == [[]] * 24


def test_the_rules_are_those_of_each_rows_prompt():
    captions = pd.DataFrame(
        {
            "caption": [
                "A dog runs. A cat sleeps.",
                "A dog runs. A cat sleeps.",
                "indoor",
                "A dog runs. A cat sleeps.",
            ],
            "prompt": ["caption", "indoor", "indoor", "Tell me a story."],
        }
    )
    flags = flag_captions(captions, read_prompts(), Rules(sentences=None))
    assert flags == [["several sentences"], ["label outside the set"], [], []]
    assert {kind for row in flags for kind in row} <= set(KINDS)


def test_languages_that_are_not_known():
    with pytest.raises(InputError, match="does not know klingon"):
        Language(["english", "klingon"])
