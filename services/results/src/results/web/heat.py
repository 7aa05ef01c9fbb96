"""How a comparison is drawn: colours as classes, pairs as a square, questions as rows. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from parallax.contracts.comparison import (
    Across,
    Cell,
    Comparison,
    Kind,
    PairComparison,
    QuestionComparison,
    Verdict,
)

STEPS: Final = 10
LETTERS: Final = {Kind.WORDING: "w", Kind.REFUSALS: "r", Kind.CUT_OFF: "c", Kind.LENGTH: "l"}
"""What differs, in a small letter."""
MAX_ROWS: Final = 200
"""Questions of the heat map; a table of more is read in the exports."""

Sized = PairComparison | QuestionComparison


@dataclass(frozen=True, slots=True)
class Group:
    """Pairs that are drawn together: those of one model across regions, or of one region across models."""

    name: str
    parts: tuple[str, ...]
    """What the square has rows and columns for."""
    pairs: tuple[PairComparison, ...]
    cells: dict[str, Cell]
    by_parts: dict[tuple[str, str], PairComparison]
    rows: tuple["Row", ...]
    more: int
    """Questions that are not drawn."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question in the heat map: what it is in each pair of the group."""

    index: int
    question_id: str
    tags: tuple[str, ...]
    cells: tuple[QuestionComparison | None, ...]


def shade(sized: Sized) -> str:
    """The class of a cell: ``none`` without a size, ``calm`` within the noise of repeats, else ``s0`` to ``s9``.

    The steps are even in the square root of the separation, because most of what differs is small.
    """
    if sized.separation is None:
        return "none"
    if sized.separation <= max(sized.noise or 0.0, 0.0) and sized.verdict is not Verdict.DIFFERS:
        return "calm"
    step = min(STEPS - 1, int(STEPS * math.sqrt(max(sized.separation, 0.0))))
    return f"s{step}" + (" differs" if sized.verdict is Verdict.DIFFERS else "")


def letters(sized: Sized) -> str:
    """What differs, in letters; a question mark where the samples do not suffice."""
    if sized.verdict is Verdict.CANNOT_TELL:
        return "?"
    return "".join(LETTERS[kind] for kind in sized.kinds)


def groups_of(found: Comparison) -> list[Group]:
    """The groups of a comparison, in the order of its pairs."""
    names = list(dict.fromkeys(_group(pair, found.across) for pair in found.pairs))
    return [_made(name, [p for p in found.pairs if _group(p, found.across) == name], found) for name in names]


def _made(name: str, pairs: Sequence[PairComparison], found: Comparison) -> Group:
    sides = [(part_of(pair.a, found.across), part_of(pair.b, found.across), pair) for pair in pairs]
    cells = {part_of(cell, found.across): cell for pair in pairs for cell in (pair.a, pair.b)}
    order = [part_of(cell, found.across) for cell in found.cells if _of(cell, found.across) == name]
    rows = _rows(pairs)
    return Group(
        name=name,
        parts=tuple(dict.fromkeys(part for part in order if part in cells)),
        pairs=tuple(pairs),
        cells=cells,
        by_parts={(a, b): pair for a, b, pair in sides} | {(b, a): pair for a, b, pair in sides},
        rows=tuple(rows[:MAX_ROWS]),
        more=max(0, len(rows) - MAX_ROWS),
    )


def _rows(pairs: Sequence[PairComparison]) -> list[Row]:
    by_pair = [{question.question_index: question for question in pair.questions} for pair in pairs]
    known = {question.question_index: question for pair in pairs for question in pair.questions}
    rows = [
        Row(index, question.question_id, question.tags, tuple(found.get(index) for found in by_pair))
        for index, question in known.items()
    ]
    return sorted(rows, key=_weight)


def _weight(row: Row) -> tuple[bool, float, int]:
    """What differs first, then the largest separation."""
    cells = [cell for cell in row.cells if cell is not None]
    differs = any(cell.verdict is Verdict.DIFFERS for cell in cells)
    return (not differs, -max((cell.separation or 0.0 for cell in cells), default=0.0), row.index)


def _of(cell: Cell, across: Across) -> str:
    match across:
        case Across.REGION:
            return cell.model_id
        case Across.MODEL:
            return cell.region
        case Across.JOB | Across.PROMPT:
            return f"{cell.model_id} in {cell.region}"


def _group(pair: PairComparison, across: Across) -> str:
    return _of(pair.a, across)


def part_of(cell: Cell, across: Across) -> str:
    """What a side is called inside its group."""
    match across:
        case Across.REGION:
            return cell.region
        case Across.MODEL:
            return cell.model_id
        case Across.JOB | Across.PROMPT:
            return cell.job_id
