"""One pair of cells in one question: sizes, shuffles, and what each side said."""

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from parallax.contracts.comparison import Accuracy, Choice, Kind, QuestionComparison, Side
from parallax.contracts.rates import Outcome, Rate
from results.comparison.choices import OTHER, choice_of
from results.comparison.distances import Matrix
from results.comparison.intervals import newcombe
from results.comparison.preparing import SAYS_NOTHING, Prepared
from results.comparison.rates import REFUSED, rate
from results.comparison.shuffles import (
    SHUFFLES,
    Design,
    Measured,
    Traits,
    Values,
    labels_of,
    many_labels,
    measure,
)
from results.comparison.significance import POWER_Z, Smallest, smallest_p
from results.comparison.subjects import NO_TEXT, Answer, AskedQuestion, Pair
from results.comparison.texts import normalised
from results.comparison.words import telling_words, typical

TYPICAL_CHARS: Final = 300
LOOK_AGAIN: Final = 5 / (SHUFFLES + 1)
"""A p this small is worked out with more shuffles."""
KINDS: Final = (Kind.WORDING, Kind.REFUSALS, Kind.CUT_OFF, Kind.LENGTH)
"""In the order of the statistics of a question."""


class Matched(NamedTuple):
    """Which answers of both sides are compared, and how: places in the answers of each side."""

    a: list[int]
    b: list[int]
    design: Design


class Tested(NamedTuple):
    """A pair in a question as far as one question can say; a verdict needs all of them."""

    comparison: QuestionComparison
    design: Design
    smallest: Smallest | None
    measured: Measured | None


def matched(a: Sequence[Prepared], b: Sequence[Prepared]) -> Matched:
    """By seed where both sides were called with the same ones, else all of both sides."""
    by_seed_a, by_seed_b = ({each.answer.seed: at for at, each in enumerate(side)} for side in (a, b))
    shared = sorted(seed for seed in by_seed_a.keys() & by_seed_b.keys() if seed is not None)
    unambiguous = len(by_seed_a) == len(a) and len(by_seed_b) == len(b)
    if unambiguous and len(shared) >= 2 and 2 * len(shared) >= min(len(a), len(b)):
        places_a, places_b = [by_seed_a[seed] for seed in shared], [by_seed_b[seed] for seed in shared]
        return Matched(places_a, places_b, Design(len(shared), len(shared), paired=True))
    return Matched(list(range(len(a))), list(range(len(b))), Design(len(a), len(b), paired=False))


def compare_question(
    pair: Pair, question: AskedQuestion, sides: tuple[Sequence[Prepared], Sequence[Prepared]], whole: Matrix, seed: int
) -> Tested:
    """Everything about one pair in one question. ``whole``: the distances of all answers of a, then of all of b."""
    a, b = sides
    chosen = matched(a, b)
    design = chosen.design
    places = [*chosen.a, *(len(a) + place for place in chosen.b)]
    measured: Measured | None = None
    smallest: Smallest | None = None
    if design.testable:
        distances = whole[np.ix_(places, places)]
        traits = _traits([a[at] for at in chosen.a] + [b[at] for at in chosen.b], closed=bool(question.choices))
        measured = measure(design, distances, traits, labels_of(design, SHUFFLES, seed))
        smallest = smallest_p(_statistics(measured))
        if smallest.p <= LOOK_AGAIN:
            smallest = smallest_p(_statistics(measure(design, distances, traits, many_labels(design))))
    inside_a, inside_b = whole[: len(a), : len(a)], whole[len(a) :, len(a) :]
    words = ((), ()) if question.choices else telling_words(_texts(a), _texts(b))
    comparison = QuestionComparison(
        question_index=question.index,
        question_id=question.id,
        tags=question.tags,
        closed=bool(question.choices),
        verdict=None,
        p=None if smallest is None else smallest.p,
        kinds=(),
        **_sizes(measured),
        between=float(whole[: len(a), len(a) :].mean()) if a and b else None,
        a=_side(question.cells.get(pair.a, ()), a, inside_a),
        b=_side(question.cells.get(pair.b, ()), b, inside_b),
        words_a=words[0],
        words_b=words[1],
        choices=_choices(question, a, b),
        accuracy=_accuracy(question, a, b),
        same_seed=_same_seed(chosen, a, b),
        sentence="",
    )
    return Tested(comparison, design, smallest, measured)


def _statistics(measured: Measured) -> list[Values]:
    return [measured.wording, np.abs(measured.silent), np.abs(measured.cut), np.abs(measured.length)]


def _traits(both: Sequence[Prepared], *, closed: bool) -> Traits:
    outcomes = [each.answer.outcome for each in both]
    length = np.log1p([each.answer.chars for each in both])
    spread = length.std()
    # How long the answer to a closed question is says nothing: only the choice counts.
    usable = spread > 0 and not closed
    return Traits(
        silent=np.array([outcome in REFUSED or outcome is Outcome.EMPTY for outcome in outcomes], dtype=np.float64),
        cut=np.array([each.answer.cut_off for each in both], dtype=np.float64),
        length=length / spread if usable else np.zeros(len(both)),
    )


def separation(wording: Values, between: Values) -> Values:
    """The energy distance as a share of the most it could be."""
    return np.divide(wording, 2 * between, out=np.zeros_like(wording), where=between > 0)


def _sizes(measured: Measured | None) -> dict[str, float | None]:
    if measured is None:
        return {"separation": None, "noise": None, "visible": None}
    shares = separation(measured.wording, measured.between)
    spread, mean = float(measured.wording.std()), float(measured.between.mean())
    return {
        "separation": float(shares[0]),
        "noise": max(0.0, float(np.quantile(shares, 0.95))),
        "visible": min(1.0, POWER_Z * spread / (2 * mean)) if spread > 0 and mean > 0 else None,
    }


def mean_within(distances: Matrix) -> float | None:
    """The mean distance between two different answers."""
    size = len(distances)
    return float(distances.sum() / (size * (size - 1))) if size > 1 else None


def _side(answers: Sequence[Answer], compared: Sequence[Prepared], inside: Matrix) -> Side:
    outcomes = [each.answer.outcome for each in compared]
    middle = typical(inside)
    scripts = [each.script for each in compared if each.script is not None]
    return Side(
        answers=len(compared),
        refused=sum(outcome in REFUSED for outcome in outcomes),
        empty=sum(outcome is Outcome.EMPTY for outcome in outcomes),
        cut_off=sum(each.answer.cut_off for each in compared),
        missing=len(answers) - len(compared),
        within=mean_within(inside),
        median_chars=int(statistics.median(each.answer.chars for each in compared)) if compared else 0,
        typical_sample=None if middle is None else compared[middle].answer.sample,
        typical=None if middle is None else compared[middle].answer.text[:TYPICAL_CHARS],
        script=max(sorted(set(scripts)), key=scripts.count) if scripts else None,
    )


def _texts(side: Sequence[Prepared]) -> list[str]:
    return [each.answer.text for each in side if each.answer.outcome not in NO_TEXT]


def _choices(question: AskedQuestion, a: Sequence[Prepared], b: Sequence[Prepared]) -> tuple[Choice, ...]:
    if not question.choices:
        return ()
    chosen_a, chosen_b = [each.choice for each in a], [each.choice for each in b]
    named = [*enumerate(question.choices), (len(question.choices), OTHER), (SAYS_NOTHING, "no answer")]
    return tuple(
        Choice(choice=name, a=rate(chosen_a.count(at), len(a)), b=rate(chosen_b.count(at), len(b)))
        for at, name in named
        if 0 <= at < len(question.choices) or at in chosen_a or at in chosen_b
    )


def _accuracy(question: AskedQuestion, a: Sequence[Prepared], b: Sequence[Prepared]) -> Accuracy | None:
    if question.expected is None or not a or not b:
        return None
    right = choice_of(question.expected, question.choices)
    right_a, right_b = (sum(each.choice == right for each in side) for side in (a, b))
    low, high = newcombe(right_a, len(a), right_b, len(b))
    return Accuracy(
        a=rate(right_a, len(a)), b=rate(right_b, len(b)), difference=right_a / len(a) - right_b / len(b),
        low=low, high=high, questions=1,
    )  # fmt: skip


def _same_seed(chosen: Matched, a: Sequence[Prepared], b: Sequence[Prepared]) -> Rate | None:
    if not chosen.design.paired:
        return None
    alike = sum(
        normalised(a[left].answer.text) == normalised(b[right].answer.text)
        for left, right in zip(chosen.a, chosen.b, strict=True)
    )
    return rate(alike, len(chosen.a))
