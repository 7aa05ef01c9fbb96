"""A comparison as lines for people. Pure: a document in, text out.

Lines are never cut and ids never broken; where a terminal is narrow, it wraps them itself.
"""

from collections.abc import Iterator
from typing import Final

from parallax.contracts.comparison import Comparison, PairComparison, Verdict
from parallax_cli.text import one_line

MAX_QUESTIONS: Final = 12
"""Questions listed below a pair; the other formats hold every one."""
MAX_CELLS: Final = 30
MAX_UNMATCHED: Final = 10
_WORD: Final = {
    None: "not finished",
    Verdict.DIFFERS: "differs",
    Verdict.NO_DIFFERENCE_FOUND: "no difference found",
    Verdict.CANNOT_TELL: "cannot tell",
}


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The comparison as it is told: headlines, warnings, controls, pairs, and what came of the cells."""
    for line in (*found.headlines, *(f"Warning: {warning}" for warning in found.warnings)):
        yield one_line(line)
    for pair in (*found.controls, *found.pairs):
        yield ""
        yield from _pair(pair)
    if found.unmatched:
        yield ""
        yield "Without a partner:"
        for one in found.unmatched[:MAX_UNMATCHED]:
            yield f"  {one.kind} {one_line(one.name)} of {one_line(one.job_id)}: {one.reason}"
        if len(found.unmatched) > MAX_UNMATCHED:
            yield f"  and {len(found.unmatched) - MAX_UNMATCHED} more (--format json lists them)"
    yield ""
    yield "Refused, empty or cut off (95 % intervals):"
    yield from map(_cell, _cells(found))
    if len(found.cells) > MAX_CELLS:
        yield f"  and {len(found.cells) - MAX_CELLS} more cells (--format json lists them)"


def _pair(pair: PairComparison) -> Iterator[str]:
    yield f"{one_line(pair.label)}: {_WORD[pair.verdict]}"
    for sentence in pair.sentences:
        yield f"  {one_line(sentence)}"
    different = [question for question in pair.questions if question.verdict is Verdict.DIFFERS]
    for question in different[:MAX_QUESTIONS]:
        yield f"    {one_line(question.question_id)}: {one_line(question.sentence)}"
    if len(different) > MAX_QUESTIONS:
        yield f"    and {len(different) - MAX_QUESTIONS} more (--format csv lists every question)"


def _cells(found: Comparison) -> Iterator[tuple[str, ...]]:
    several = found.with_job_id is not None
    for cell in found.cells[:MAX_CELLS]:
        name = f"{cell.model_id} in {cell.region}" + (f" of {cell.job_id}" if several else "")
        rates = (
            f"{what} {rate.count} of {rate.total} ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)"
            for what, rate in (("refused", cell.outcomes.refused), ("cut off", cell.outcomes.cut))
        )
        yield name, *rates, f"empty {cell.outcomes.empty}", f"missing {cell.outcomes.failed}"


def _cell(parts: tuple[str, ...]) -> str:
    return f"  {one_line(parts[0])}: {', '.join(parts[1:])}"
