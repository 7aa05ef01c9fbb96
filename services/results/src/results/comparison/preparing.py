"""What is worked out once for every answer of a question, however many pairs it belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from parallax.contracts.rates import Outcome
from results.comparison.choices import choice_of
from results.comparison.distances import Grams, Matrix, closed_distances, grams_of, open_distances
from results.comparison.subjects import NO_TEXT, Answer, AskedQuestion, CellKey
from results.comparison.texts import dominant_script

SAYS_NOTHING = -1
"""Stands where an answer to a closed question made no choice because it says nothing at all."""


class Prepared(NamedTuple):
    """An answer that can be compared."""

    answer: Answer
    grams: Grams | None
    """``None`` for an answer that says nothing."""
    choice: int
    """The index of the choice it names, in a closed question."""
    script: str | None


class Cells(NamedTuple):
    """The answers of a question that can be compared, by cell, in the order of their samples."""

    question: AskedQuestion
    prepared: Mapping[CellKey, Sequence[Prepared]]


def prepare(question: AskedQuestion, cells: Iterable[CellKey]) -> Cells:
    """Everything that came to an end with an answer; what failed is missing."""
    return Cells(
        question,
        {
            cell: [_prepared(question, each) for each in _in_order(question.cells.get(cell, ()))]
            for cell in dict.fromkeys(cells)
        },
    )


def _in_order(answers: Sequence[Answer]) -> list[Answer]:
    return sorted((each for each in answers if each.outcome is not Outcome.FAILED), key=lambda each: each.sample)


def _prepared(question: AskedQuestion, answer: Answer) -> Prepared:
    silent = answer.outcome in NO_TEXT
    if question.choices:
        choice = SAYS_NOTHING if silent else choice_of(answer.text, question.choices)
        return Prepared(answer, None, choice, None)
    if silent:
        return Prepared(answer, None, SAYS_NOTHING, None)
    return Prepared(answer, grams_of(answer.text), SAYS_NOTHING, dominant_script(answer.text))


def distances_of(cells: Cells, chosen: Sequence[CellKey]) -> tuple[Matrix, dict[CellKey, slice]]:
    """The distances between all answers of these cells, and where each cell stands."""
    places: dict[CellKey, slice] = {}
    everything: list[Prepared] = []
    for cell in chosen:
        places[cell] = slice(len(everything), len(everything) + len(cells.prepared[cell]))
        everything += cells.prepared[cell]
    if cells.question.choices:
        return closed_distances([each.choice for each in everything]), places
    return open_distances([each.grams for each in everything]), places
