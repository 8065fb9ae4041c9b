"""Recognize English with lingua, among a few languages, with care for short texts."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from lit_extract.common.errors import InputError

# Languages into which models fall most often; the fewer there are, the surer the answer for a short text.
LANGUAGES = tuple("english french german spanish italian portuguese dutch chinese japanese russian".split())
SHORT = 4  # words; a shorter text in Latin letters passes, as "a cat" is no evidence
# Words that exist in none of the other languages: foreign names and dishes weigh heavily in a short text.
ENGLISH_WORDS = frozenset("the with and at his are while from two standing sitting wearing".split())
ENGLISH_WORDS_AMONG = 8  # one such word in eight is enough
LEAST_ENGLISH = 0.15  # confidence; less is flagged


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
            raise InputError(
                f"languages: lingua does not know {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
            )
        if len(names) < 2:
            raise InputError("languages: name at least one besides English, or pass --languages '[]' to skip this")
        self._english = known["english"]
        self._detector = lingua.LanguageDetectorBuilder.from_languages(*(known[name] for name in names)).build()

    def is_english(self, text: str) -> bool:
        """Return whether a text may be English; a text that is too short to tell may be."""
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
