"""Counts as shares with intervals. Needs no numpy, so that summaries can use it."""

from collections import Counter
from typing import Final

from parallax.contracts.rates import Outcome, Outcomes, Rate
from results.comparison.intervals import wilson

REFUSED: Final = frozenset({Outcome.REFUSED_IN_WORDS, Outcome.REFUSED_BY_FIELD, Outcome.REFUSED_BY_FILTER})


def rate(count: int, total: int) -> Rate:
    """A share with its interval; 0 of nothing is 0, and nothing is known about it."""
    low, high = wilson(count, total)
    return Rate(count=count, total=total, share=count / total if total else 0.0, low=low, high=high)


def outcomes_of(counts: Counter[Outcome], cut: int) -> Outcomes:
    """Counts with the rates that people ask for."""
    answers = counts.total() - counts[Outcome.FAILED]
    refused = sum(counts[outcome] for outcome in REFUSED)
    return Outcomes(
        **{outcome.value: counts[outcome] for outcome in Outcome},
        refused=rate(refused, answers),
        silent=rate(refused + counts[Outcome.EMPTY], answers),
        cut=rate(cut, answers),
        missing=rate(counts[Outcome.FAILED], counts.total()),
    )
