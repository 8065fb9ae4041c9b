"""English or not: lingua, among a few languages, with care for short texts."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from lit_extract.common.errors import InputError

# Those that models fall into most; the fewer there are, the surer is the answer for a short text.
LANGUAGES = tuple("english french german spanish italian portuguese dutch chinese japanese russian".split())
SHORT = 4  # words; a text of fewer, in Latin letters, passes: "a cat" is no evidence
# Words that none of the others has: foreign names and dishes weigh much in a short text.
ENGLISH_WORDS = frozenset("the with and at his are while from two standing sitting wearing".split())
ENGLISH_WORDS_AMONG = 8  # one in so many is enough
LEAST_ENGLISH = 0.15  # share of the evidence; less is flagged


class Language:
    """Recognizes English among other languages."""

    def __init__(self, languages: Sequence[str] = LANGUAGES) -> None:
        try:
            import lingua
        except ImportError:
            raise InputError(
                "languages: to recognize English needs lingua: pip install 'lit-extract[check]', or "
                "pass --languages '[]'"
            ) from None
        known = {language.name.lower(): language for language in lingua.Language.all()}
        names = sorted({"english", *(name.lower() for name in languages)})
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"languages: {', '.join(unknown)} is not known; lingua knows {', '.join(sorted(known))}")
        if len(names) < 2:
            raise InputError("languages: name one besides English, or pass --languages '[]' to skip languages")
        self._english = known["english"]
        self._detector = lingua.LanguageDetectorBuilder.from_languages(*(known[name] for name in names)).build()

    def is_english(self, text: str) -> bool:
        """Return whether a text may be English, as one may that is too short to know."""
        letters = [letter for letter in text if letter.isalpha()]
        if not letters:
            return True
        if sum(map(_is_latin, letters)) < len(letters) / 2:
            return False
        words = text.lower().split()
        if len(words) < SHORT or sum(word in ENGLISH_WORDS for word in words) * ENGLISH_WORDS_AMONG >= len(words):
            return True
        return bool(self._detector.compute_language_confidence(text, self._english) >= LEAST_ENGLISH)


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN"))
