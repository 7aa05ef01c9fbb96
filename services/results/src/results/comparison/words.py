"""What tells two sides apart, in words: the typical answer of each, and words that one uses more often."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from parallax.contracts.comparison import Word
from results.comparison.distances import Matrix
from results.comparison.texts import normalised

LEAST_SHARE: Final = 0.3
"""A word tells when the shares of answers that hold it differ by 30 points. With ten answers a side the usual score
(log-odds with a prior, Monroe et al. 2008) found nothing at all."""
MOST_WORDS: Final = 3
"""Words told for each side."""

_WORD: Final = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff]{3,}|\d+")
_CHARACTERS: Final = re.compile(r"(?=([\u3040-\u30ff\u3400-\u9fff]{2}))")
"""Scripts without spaces have no words to find; two neighbouring characters stand in for them."""
_COMMON: Final = frozenset(
    re.findall(
        r"\w+",
        """the and for are was were that this with from have has had not but you your can will would its they their them
        there these those who what which when where how some such also more most many other one being been""",
    )
)
"""English words that say nothing by themselves."""


def typical(distances: Matrix) -> int | None:
    """The answer that is nearest to all others of its cell (the medoid); the first of several, ``None`` of none."""
    return int(distances.sum(axis=1).round(6).argmin()) if len(distances) else None


def telling_words(texts_a: Sequence[str], texts_b: Sequence[str]) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """Words that are in many more answers of one side: those of a, and those of b, the most telling first."""
    if not texts_a or not texts_b:
        return (), ()
    count_a, count_b = _counted(texts_a), _counted(texts_b)
    told = [
        Word(word=word, answers_a=count_a[word], answers_b=count_b[word], share_a=a, share_b=b)
        for word in count_a.keys() | count_b.keys()
        if abs((a := count_a[word] / len(texts_a)) - (b := count_b[word] / len(texts_b))) >= LEAST_SHARE - 1e-9
    ]
    told.sort(key=lambda word: (-abs(word.share_a - word.share_b), not word.word.isalpha(), word.word))
    ours = [word for word in told if word.share_a > word.share_b]
    theirs = [word for word in told if word.share_b > word.share_a]
    return tuple(ours[:MOST_WORDS]), tuple(theirs[:MOST_WORDS])


def _counted(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in _words(normalised(text)))


def _words(text: str) -> set[str]:
    return {*_WORD.findall(text), *_CHARACTERS.findall(text)} - _COMMON
