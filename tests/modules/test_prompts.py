"""Prompts by name, by text, and out of a file of one's own."""

import pytest

from lit_extract.common.errors import InputError
from lit_extract.modules.prompts import find_prompt, read_prompts


def test_the_labels_that_ship():
    assert {name: prompt.choices for name, prompt in read_prompts().items()} == {
        "caption": (),
        "motion": ("motion", "static"),
        "indoor": ("indoor", "natural", "urban", "object"),
        "scene": ("Scene-dominated", "Object-in-Scene", "Object-dominated"),
    }


def test_the_text_of_a_classifying_prompt_names_its_labels():
    for prompt in read_prompts().values():
        assert all(f'"{choice}"' in prompt.text for choice in prompt.choices)
        assert len(prompt.text.split()) > 10


def test_any_text_is_a_prompt():
    prompt = find_prompt("What colour is it?", ["red", "green"])
    assert (prompt.name, prompt.text, prompt.choices) == ("What colour is it?", "What colour is it?", ("red", "green"))
    assert find_prompt("What colour is it?").choices == ()


def test_a_file_adds_prompts_and_replaces_them(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("colour:\n  text: Which colour?\n  choices: [red, green]\ncaption: Describe it briefly.\n")
    assert find_prompt("colour", file=str(file)).choices == ("red", "green")
    assert find_prompt("caption", file=str(file)).text == "Describe it briefly."
    assert find_prompt("motion", file=str(file)) == find_prompt("motion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "captoin"}, "'captoin' is not one of caption, motion, indoor, scene"),
        ({"prompt": ""}, "is not one of"),
        ({"prompt": "Which colour?", "choices": ["red"]}, "two or more different labels"),
        ({"prompt": "Which colour?", "choices": ["red", "red"]}, "two or more different labels"),
        ({"prompt": "Which colour?", "choices": ["red", " green"]}, "without surrounding blanks"),
        ({"prompt": "caption", "file": "nowhere.yml"}, "can't be read"),
    ],
)
def test_wrong_prompts(arguments, message):
    with pytest.raises(InputError, match=message):
        find_prompt(**arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must map names to prompts"),
        ("a: {choices: [b, c]}\n", "a: text: field required"),
        ("a: {text: Is it there, choices: [yes, no]}\n", r"a: choices\.0: .*string"),
        ("a: {text: Is it there, labels: [b, c]}\n", "a: labels: "),
        ("a: {text: Is it there, sentences: 0}\n", "a: sentences: .*1, not 0"),
        ("a: [\n", "can't be read"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    (tmp_path / "p.yml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / "p.yml"))
