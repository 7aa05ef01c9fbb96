"""Texts as the comparison sees them: normalised, and with the script they are mostly written in."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Final

MAX_CHARS: Final = 20_000
"""How much of an answer is compared. Longer answers are compared by their beginning, and their length as it is."""
SCRIPT_CHARS: Final = 2_000
"""How much of an answer is looked at to learn its script: more would not change the majority."""

_SPACE: Final = re.compile(r"\s+")
_SCRIPTS: Final = (
    ("CJK", "Han"), ("HIRAGANA", "Kana"), ("KATAKANA", "Kana"), ("HANGUL", "Hangul"), ("LATIN", "Latin"),
    ("CYRILLIC", "Cyrillic"), ("ARABIC", "Arabic"), ("DEVANAGARI", "Devanagari"), ("BENGALI", "Bengali"),
    ("TAMIL", "Tamil"), ("THAI", "Thai"), ("GREEK", "Greek"), ("HEBREW", "Hebrew"), ("GEORGIAN", "Georgian"),
    ("ARMENIAN", "Armenian"),
)  # fmt: skip
"""How the Unicode names of letters begin, and the script that this means."""


def normalised(text: str) -> str:
    """The text in one Unicode form, one case, and with single spaces; at most ``MAX_CHARS`` of it."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text[:MAX_CHARS]).casefold()).strip()[:MAX_CHARS]


def dominant_script(text: str) -> str | None:
    """The script of most letters, ``None`` without letters. Languages that share a script are not told apart."""
    counted = Counter(found for letter in text[:SCRIPT_CHARS] if (found := _script(letter)) is not None)
    if not counted:
        return None
    if counted.get("Kana", 0) * 10 >= counted.total():
        return "Japanese"  # Japanese mixes Han and Kana; a tenth of Kana is found in no Chinese text
    return min(counted, key=lambda script: (-counted[script], script))


@lru_cache(maxsize=8_192)
def _script(letter: str) -> str | None:
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "")
    return next((script for start, script in _SCRIPTS if name.startswith(start)), "other")
