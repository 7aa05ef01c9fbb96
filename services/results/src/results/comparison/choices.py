"""Closed questions: which of the choices an answer names, found without a model."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from results.comparison.texts import normalised

OTHER: Final = "other"
"""What is counted when an answer names none of the choices, or several."""

_TRIMMED: Final = " .,;:!?\"'*_()[]"


def choice_of(text: str, choices: Sequence[str]) -> int:
    """The index of the choice that an answer names; ``len(choices)`` for none or several.

    The answer is a choice, or begins with the label of one (``B) …``), or exactly one choice occurs in it as a word.
    A choice inside a longer one that occurs too (``agree`` in ``strongly agree``) is not counted.
    """
    answer = normalised(text)
    bare = answer.strip(_TRIMMED)
    wanted = [normalised(choice) for choice in choices]
    whole = [index for index, choice in enumerate(wanted) if bare in (choice, choice.strip(_TRIMMED))]
    if whole:
        return whole[0]
    labelled = [index for index, choice in enumerate(wanted) if _label(choice) and bare == _label(choice)]
    if len(labelled) == 1:
        return labelled[0]
    named = _named(answer, tuple(wanted))
    return named.pop() if len(named) == 1 else len(choices)


def _named(answer: str, wanted: tuple[str, ...]) -> set[int]:
    """The choices that occur as words, each place counted for the longest choice that covers it."""
    covered: list[tuple[int, int]] = []
    named: set[int] = set()
    for index in sorted(range(len(wanted)), key=lambda i: -len(wanted[i])):
        for found in _word(wanted[index]).finditer(answer):
            if not any(start <= found.start() and found.end() <= end for start, end in covered):
                covered.append(found.span())
                named.add(index)
    return named


@lru_cache(maxsize=2_048)
def _word(choice: str) -> re.Pattern[str]:
    # Letters next to each other make one word only in scripts that put spaces between words.
    before, after = (r"(?<!\w)" if choice[:1].isascii() else ""), (r"(?!\w)" if choice[-1:].isascii() else "")
    return re.compile(before + re.escape(choice) + after)


def _label(choice: str) -> str:
    """``b`` of ``b) disagree``."""
    found = re.match(r"([a-z0-9]{1,2})[).:]\s", choice)
    return found.group(1) if found else ""
