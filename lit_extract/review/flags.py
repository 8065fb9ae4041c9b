"""Flags of captions that a person should look at; each rule is a pure function of the text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lit_extract.captioning.output import CUT_OFF, FAILED
from lit_extract.modules.prompts import Prompt
from lit_extract.review.language import Language

KINDS = (
    *("failed", "empty", "cut off", "several sentences", "not English", "refusal", "markup"),
    *("control characters", "repetition", "label outside the set"),
)
SEPARATOR = "; "  # between the flags of a row

# Full stops that end no sentence.
_ABBREVIATIONS = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|No|vs|etc|approx|e\.g|i\.e|a\.m|p\.m|ft|in|Jr|Sr|[A-Z])\.(?=\s)", re.IGNORECASE
)
# The patterns below need time in proportion to the text, whatever it is, as a file may be hostile.
# Before a small letter, an end counts only after a longer word in small letters: else it may be an abbreviation.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])|(?<=[a-z]{4})[.!?][\"'”’)\]]*\s+(?=[a-z])|[。！？]+"
)
_ENDS_WELL = re.compile(r"[.!?。！？][\"'”’)\]]*$")
_ENDS_BADLY = re.compile(
    r"(?:[,;:(–—-]|…|\.\.\.|\b(?:a|an|the|and|or|of|with|in|on|at|to|for|from|by|as|into|his|her|its|their|is|are))$",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:I(?:'|’)?m sorry|I am sorry|I apologi[sz]e|I (?:can(?:'|’)?t|cannot|can not|am (?:unable|not able)|"
    r"do(?:n(?:'|’)t| not) (?:see|have))|I(?:'|’)m (?:unable|not able)|as an? (?:AI|language model|assistant)|"
    r"unable to (?:see|view|describe|assist|help|process)|no image (?:was |is |has been )?(?:provided|attached)|"
    r"please (?:provide|upload|share) (?:the|an|your))",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"\*\*|__|```|`[^`]+`|^[^\S\n]*(?:[-*+•]|#{1,6}|>|\d+[.)])\s|!?\[[^\[\]]*\]\([^)]{0,2000}\)|</?[a-z][^<>]*>|<\|?[^<>\s]+\|?>|"
    r"\[/?[A-Z_]{2,}\]|&(?:[a-z]+|#\d+);|^[^\S\n]*[{[].*[}\]]\s*$|^[^\S\n]*(?:caption|description|answer|image)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_RUN_OF_CHARACTERS = re.compile(r"(\w)\1{4,}|([^\w\s])\2{5,}")
_JOINERS = "\u200c\u200d"  # zero-width, but letters of many scripts and emoji need them


@dataclass(frozen=True)
class Rules:
    """The requirements for the captions of one prompt."""

    choices: Sequence[str] = ()  # labels that a caption may be; empty for free text
    sentences: int | None = 1  # most sentences; None: any number
    language: Language | None = None  # None: any language


def flag_captions(captions: pd.DataFrame, prompts: dict[str, Prompt], rules: Rules) -> list[list[str]]:
    """Return the flags of each row, in the order of :data:`KINDS`.

    ``rules`` are for captions of unknown prompts; its ``choices``, if given, are for all rows.
    """
    texts = captions["caption"].tolist()
    statuses = captions["status"].tolist() if "status" in captions else [""] * len(texts)
    own = rules_of_rows(captions, prompts, rules)
    full_stops = use_full_stops(texts, own)
    return [flag_caption(*row, full_stops) for row in zip(texts, statuses, own, strict=True)]


def rules_of_rows(captions: pd.DataFrame, prompts: dict[str, Prompt], rules: Rules) -> list[Rules]:
    """Return the rules for each row, from the arguments of :func:`flag_captions`."""
    names = captions["prompt"].tolist() if "prompt" in captions else ["caption"] * len(captions)
    own = {
        name: Rules(prompts[name].choices, prompts[name].sentences, rules.language)
        if name in prompts and not rules.choices
        else rules
        for name in set(names)
    }
    return [own[name] for name in names]


def use_full_stops(texts: Sequence[str], rules: Sequence[Rules]) -> bool:
    """Return whether most captions end with full stops: then a caption without one was probably cut off."""
    free = [text for text, own in zip(texts, rules, strict=True) if text and not own.choices]
    return sum(map(ends_well, free)) > len(free) / 2


def flag_caption(text: str, status: str, rules: Rules, full_stops: bool) -> list[str]:
    """Return the flags of one caption; ``full_stops``: the captions of its file end with full stops."""
    if status.startswith(FAILED):
        return ["failed"]
    if not text.strip():
        return ["empty"]
    if rules.choices:
        return [] if text in rules.choices else ["label outside the set"]
    found = {
        "cut off": status == CUT_OFF or is_cut_off(text, full_stops),
        "several sentences": rules.sentences is not None and count_sentences(text) > rules.sentences,
        "not English": rules.language is not None and not rules.language.is_english(text),
        "refusal": _REFUSAL.search(text) is not None,
        "markup": _MARKUP.search(text) is not None,
        "control characters": has_control_characters(text),
        "repetition": is_repetitive(text),
    }
    return [kind for kind in KINDS if found.get(kind)]


def ends_well(text: str) -> bool:
    """Return whether a text ends like a sentence."""
    return _ENDS_WELL.search(text.rstrip()) is not None and not text.rstrip().endswith("...")


def is_cut_off(text: str, full_stops: bool) -> bool:
    """Return whether a text stops early: at a comma, at a word that can't end a sentence, or without a full stop."""
    text = text.rstrip()
    return _ENDS_BADLY.search(text) is not None or (full_stops and not ends_well(text))


def count_sentences(text: str) -> int:
    """Return the number of sentences, counted by their ends; a line has at least one."""
    count = 0
    for line in filter(str.strip, text.splitlines()):
        plain = _ABBREVIATIONS.sub(lambda match: match[0].replace(".", ""), line.strip())
        count += max(1, sum(re.search(r"\w", piece) is not None for piece in _SENTENCE_END.split(plain)))
    return count


def has_control_characters(text: str) -> bool:
    """Return whether a text has line ends, tabs, other control or invisible characters, or U+FFFD."""
    return any(
        letter == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cs", "Cn")
        for letter in text
        if letter not in _JOINERS
    )


def is_repetitive(text: str) -> bool:
    """Return whether a text has a word four times in a row, three words three times, or few different words."""
    words = re.findall(r"\w+", text.lower())
    if any(len(set(words[place : place + 4])) == 1 for place in range(len(words) - 3)):
        return True
    phrases = Counter(tuple(words[place : place + 3]) for place in range(len(words) - 2))
    if phrases and max(phrases.values()) >= 3:
        return True
    few = len(words) >= 12 and len(set(words)) < len(words) / 3
    return few or _RUN_OF_CHARACTERS.search(text) is not None
