"""A whole comparison: questions go in one after the other, the document comes out at the end."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from parallax.contracts.comparison import Across, Comparison, PairComparison, Unmatched, Verdict
from results.comparison.outcomes import RULES_VERSION
from results.comparison.power import samples_needed
from results.comparison.preparing import Cells, distances_of, prepare
from results.comparison.questions import compare_question
from results.comparison.sentences import (
    cell_warnings,
    headlines,
    missing_sentence,
    names_of,
    pair_sentences,
    question_sentence,
    repeated_warning,
    script_sentence,
)
from results.comparison.shuffles import seed_of
from results.comparison.significance import ALPHA
from results.comparison.subjects import AskedQuestion, CellKey, Pair, groups_of
from results.comparison.tallies import CellTally, PairTally
from results.comparison.verdicts import PAIR_STATISTICS, Judged, judge


def one_thread() -> AbstractContextManager[object]:
    """Keep linear algebra on one core: its matrices are small, and threads that wait for each other by spinning make
    them twenty times slower on a busy machine.
    """
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


class Subject(NamedTuple):
    """What a comparison is about, as its document names it."""

    job_id: str
    cells: tuple[CellKey, ...]
    pairs: tuple[Pair, ...]
    """Of these cells; some may be in none."""
    across: Across
    with_job_id: str | None = None
    against: str | None = None
    final: bool = True
    """Whether every answer is there: without them there are sizes and no verdicts."""
    unmatched: tuple[Unmatched, ...] = ()
    corrections: int = 0
    warnings: tuple[str, ...] = ()


class Comparer:
    """Takes in questions and keeps numbers. Not safe for several threads at once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._groups = groups_of(subject.pairs)
        self._pairs = {pair: PairTally(pair) for pair in subject.pairs}
        self._cells = {cell: CellTally(cell) for cell in subject.cells}
        self._questions = 0
        self._answers = 0

    def add(self, question: AskedQuestion) -> None:
        """Compare every pair in one question. Questions may come in any order; each comes once."""
        cells = prepare(question, self._cells)
        self._questions += 1
        for cell, tally in self._cells.items():
            answers = question.cells.get(cell, ())
            self._answers += len(answers)
            tally.add(answers)
            tally.add_scripts(each.script for each in cells.prepared[cell])
        measured: set[CellKey] = set()
        for group in self._groups:
            chosen = list(dict.fromkeys(cell for pair in group for cell in (pair.a, pair.b)))
            self._add_group(cells, group, chosen, measured)
            measured.update(chosen)

    def _add_group(
        self, cells: Cells, group: Sequence[Pair], chosen: Sequence[CellKey], measured: set[CellKey]
    ) -> None:
        distances, places = distances_of(cells, chosen)
        for cell in chosen:
            if cell not in measured:
                self._cells[cell].add_distances(distances[places[cell], places[cell]])
        for pair in group:
            a, b = places[pair.a], places[pair.b]
            rows = np.r_[a, b]
            seed = seed_of(*pair.a, *pair.b, cells.question.id)
            sides = cells.prepared[pair.a], cells.prepared[pair.b]
            tested = compare_question(pair, cells.question, sides, distances[np.ix_(rows, rows)], seed)
            self._pairs[pair].add(tested)

    def document(self) -> Comparison:
        """Everything that can be said about the questions that came in."""
        subject = self._subject
        controls = self._told([tally for pair, tally in self._pairs.items() if pair.control])
        pairs = self._told([tally for pair, tally in self._pairs.items() if not pair.control])
        cells = [tally.told() for tally in self._cells.values()]
        several = subject.with_job_id is not None
        samples = max((pair.samples for pair in (*controls, *pairs)), default=0)
        repeated = [repeated_warning(cell, samples, several_jobs=several) for cell in cells]
        return Comparison(
            job_id=subject.job_id,
            with_job_id=subject.with_job_id,
            across=subject.across,
            against=subject.against,
            final=subject.final,
            questions=self._questions,
            answers=self._answers,
            rules_version=RULES_VERSION,
            corrections=subject.corrections,
            level=ALPHA,
            headlines=headlines(controls, pairs, final=subject.final),
            warnings=(
                *subject.warnings,
                *cell_warnings(cells, several_jobs=several),
                *(warning for warning in repeated if warning is not None),
            ),
            cells=tuple(cells),
            controls=controls,
            pairs=pairs,
            unmatched=subject.unmatched,
        )

    def _told(self, tallies: Sequence[PairTally]) -> tuple[PairComparison, ...]:
        judged = judge(tallies)
        return tuple(self._pair(tally, one, len(tallies)) for tally, one in zip(tallies, judged, strict=True))

    def _pair(self, tally: PairTally, judged: Judged, family: int) -> PairComparison:
        final = self._subject.final
        first, second, label = names_of(tally.pair, self._subject.across)
        questions = [
            question.model_copy(update={"verdict": verdict, "kinds": kinds} if final else {"p": None, "verdict": None})
            for question, (verdict, kinds) in zip(tally.questions, judged.questions, strict=True)
        ]
        questions = [q.model_copy(update={"sentence": question_sentence(q, (first, second))}) for q in questions]
        questions.sort(key=lambda q: (q.verdict is not Verdict.DIFFERS, -(q.separation or 0.0), q.question_index))
        separation, noise, visible = tally.sizes()
        within_a, within_b, between = tally.means()
        a, b = self._cells[tally.pair.a], self._cells[tally.pair.b]
        smallest = judged.smallest if final else None
        unable = judged.verdict is Verdict.CANNOT_TELL
        paired = any(design.paired for design in tally.designs)
        told = PairComparison(
            a=a.told(),
            b=b.told(),
            label=label,
            control=tally.pair.control,
            verdict=judged.verdict if final else None,
            p=None if smallest is None else smallest.p,
            p_by_kind={} if smallest is None else dict(zip(PAIR_STATISTICS, smallest.each, strict=True)),
            kinds=judged.kinds if final else (),
            separation=separation,
            noise=noise,
            visible=visible,
            samples=tally.samples(),
            samples_to_tell=samples_needed(ALPHA / family, max(1, len(questions)), shared_seeds=paired)
            if unable
            else None,
            within_a=within_a,
            within_b=within_b,
            between=between,
            questions_different=sum(q.verdict is Verdict.DIFFERS for q in questions),
            questions_unknown=sum(q.verdict is Verdict.CANNOT_TELL for q in questions),
            accuracy=tally.accuracy(),
            same_seed=tally.same_seed(),
            sentences=(),
            questions=tuple(questions),
        )
        names = first, second
        also = (script_sentence(a.scripts, b.scripts, names), missing_sentence(told.a, told.b, names))
        sentences = pair_sentences(told, names, self._subject.across)
        # Another script and missing answers explain the rest, so they come right behind the verdict.
        said = (sentences[0], *(one for one in also if one is not None), *sentences[1:])
        return told.model_copy(update={"sentences": said})
