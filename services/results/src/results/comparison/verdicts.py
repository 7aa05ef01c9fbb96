"""What counts as found: over the pairs first, then over the questions inside the pairs that differ.

A page must never say "no difference" about a pair and "differs" about one of its questions; hence the two stages.
"""

from collections.abc import Sequence
from typing import NamedTuple

from parallax.contracts.comparison import Kind, Verdict
from results.comparison.questions import KINDS
from results.comparison.shuffles import MORE_SHUFFLES
from results.comparison.significance import (
    ALPHA,
    Smallest,
    benjamini_hochberg,
    could_pass,
    selected_level,
)
from results.comparison.tallies import PairTally

PAIR_STATISTICS = ("everywhere", "sparse", "refusals", "cut_off", "length")
"""In the order of the statistics of a pair."""
_PAIR_KINDS = (Kind.WORDING, Kind.WORDING, Kind.REFUSALS, Kind.CUT_OFF, Kind.LENGTH)


class Judged(NamedTuple):
    """The verdict about a pair and those about its questions, in their order."""

    verdict: Verdict
    smallest: Smallest | None
    kinds: tuple[Kind, ...]
    questions: tuple[tuple[Verdict, tuple[Kind, ...]], ...]


def judge(tallies: Sequence[PairTally]) -> list[Judged]:
    """Verdicts of one family of pairs, false alarms held at 5 % of what is found."""
    smallest = [tally.smallest() for tally in tallies]
    tested = {place: found.p for place, found in enumerate(smallest) if found is not None}
    passed = benjamini_hochberg(tested, ALPHA)
    inside = selected_level(ALPHA, len(passed), len(tested))
    # What a pair that did not pass would have had to offer: as if it had been one more that did.
    outside = selected_level(ALPHA, min(len(passed) + 1, len(tested)), len(tested))
    judged: list[Judged] = []
    for place, (tally, found) in enumerate(zip(tallies, smallest, strict=True)):
        if found is not None and place in passed:
            questions = _questions(tally, inside, differs=True)
            judged.append(Judged(Verdict.DIFFERS, found, _kinds(found, _PAIR_KINDS), questions))
            continue
        enough = found is not None and could_pass(tally.least_p, len(passed), len(tested), ALPHA)
        verdict = Verdict.NO_DIFFERENCE_FOUND if enough else Verdict.CANNOT_TELL
        judged.append(Judged(verdict, found, (), _questions(tally, outside, differs=False)))
    return judged


def _questions(tally: PairTally, level: float, *, differs: bool) -> tuple[tuple[Verdict, tuple[Kind, ...]], ...]:
    tested = {place: one.smallest.p for place, one in enumerate(tally.tested) if one.smallest is not None}
    passed = benjamini_hochberg(tested, level) if differs else set()
    verdicts: list[tuple[Verdict, tuple[Kind, ...]]] = []
    for place, one in enumerate(tally.tested):
        if place in passed and one.smallest is not None:
            verdicts.append((Verdict.DIFFERS, _kinds(one.smallest, KINDS)))
            continue
        least = max(one.design.least_p, 1 / (MORE_SHUFFLES + 1))
        enough = one.smallest is not None and could_pass(least, len(passed), len(tested), level)
        verdicts.append((Verdict.NO_DIFFERENCE_FOUND if enough else Verdict.CANNOT_TELL, ()))
    return tuple(verdicts)


def _kinds(found: Smallest, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds whose own p is small, and in any case the one with the smallest."""
    small = {kind for kind, p in zip(kinds, found.each, strict=True) if p <= max(ALPHA, min(found.each))}
    return tuple(kind for kind in KINDS if kind in small)
