"""Comparisons of one application: computed one at a time, beside the event loop, and kept until something changes."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.contracts.comparison import Across, Comparison, ComparisonProgress, Unmatched
from results.api.comparing import MAX_UNMATCHED, Asked, Prepared, prepared, question_of
from results.api.problems import RETRY_AFTER_S, ApiError, Kind
from results.api.queries import comparison
from results.api.queries.comparison import AskedHere
from results.api.queries.reading import reading
from results.api.queries.summaries import ledger_version
from results.comparison.subjects import AskedQuestion

if TYPE_CHECKING:
    from results.comparison.engine import Comparer

CHUNK_ANSWERS: Final = 1_000
"""Answers that are read at once, rounded up to whole questions: some MB of texts at most."""
PATIENCE_S: Final = 10.0
"""How long a request waits for a comparison before it is told how far it is; clients give up after 30 s."""
MAX_WAITING: Final = 8
"""Different comparisons that wait for their turn: each takes up to two minutes."""
KEPT_ROWS: Final = 40_000
"""Rows (pairs x questions) of all kept documents: about 100 MB."""


class Comparisons:
    """What was compared and what is being compared. Belongs to one event loop."""

    def __init__(self, engine: AsyncEngine, *, patience_s: float = PATIENCE_S) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._turn = asyncio.Lock()
        self._kept: dict[object, Comparison] = {}
        self._running: dict[object, _Computation] = {}

    async def of(self, asked: Asked) -> Comparison | ComparisonProgress:
        """The comparison as of now, or how far it is: ask again.

        Raises:
            ApiError: As ``prepared``; or too many others wait.
        """
        async with reading(self._engine) as connection:
            subject = await prepared(connection, asked)
            names = [job_id for family in subject.families for job_id in family]
            versions = [await ledger_version(connection, job_id) for job_id in names]
        key = (asked, subject.final, tuple(zip(names, versions, strict=True)))
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # the one used last is given up last
            return self._kept[key]
        running = self._running.get(key) or self._start(key, subject, sum(v.judged for v in versions if v))
        done, _ = await asyncio.wait([running.task], timeout=self._patience_s)
        return running.task.result() if done else running.progress

    def _start(self, key: object, subject: Prepared, corrections: int) -> "_Computation":
        if len(self._running) >= MAX_WAITING:
            detail = f"{len(self._running)} comparisons wait for their turn, and no more are taken"
            raise ApiError(Kind.TOO_MANY_COMPARISONS, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
        computation = _Computation(self._engine, subject, corrections)
        computation.task = asyncio.get_running_loop().create_task(computation.run(self._turn))
        computation.task.add_done_callback(lambda task: self._ended(key, task))
        self._running[key] = computation
        return computation

    def _ended(self, key: object, task: asyncio.Task[Comparison]) -> None:
        del self._running[key]
        if task.cancelled() or task.exception() is not None:
            return  # who waits for it is told; who asks again starts it again
        self._kept[key] = task.result()
        while sum(map(_rows, self._kept.values())) > KEPT_ROWS and len(self._kept) > 1:
            del self._kept[next(iter(self._kept))]


class _Computation:
    """One comparison on its way."""

    task: asyncio.Task[Comparison]

    def __init__(self, engine: AsyncEngine, subject: Prepared, corrections: int) -> None:
        self._engine = engine
        self._subject = subject
        self._corrections = corrections
        self._done = 0
        self._unmatched = list(subject.unmatched)

    @property
    def progress(self) -> ComparisonProgress:
        return ComparisonProgress(
            job_id=self._subject.asked.job_id, questions_done=self._done, questions=len(self._subject.questions)
        )

    async def run(self, turn: asyncio.Lock) -> Comparison:
        async with turn:
            comparer = await asyncio.to_thread(_comparer, self._subject, self._corrections)
            for chunk in _chunks(self._subject.questions):
                await asyncio.to_thread(_add, comparer, await self._read(chunk))
                self._done += len(chunk)
            found = await asyncio.to_thread(comparer.document)
            return found.model_copy(update={"unmatched": tuple(self._unmatched[:MAX_UNMATCHED])})

    async def _read(self, chunk: Sequence[AskedHere]) -> list[AskedQuestion]:
        subject = self._subject
        ids = [question.id for question in chunk]
        found = []
        async with reading(self._engine) as connection:
            for family in subject.families:
                cells = [cell for cell in subject.cells if cell.job_id == family[0]]
                found.append(await comparison.answers(connection, family, ids, cells))
        whole: list[AskedQuestion] = []
        for question in chunk:
            said = {cell: some for one in found for cell, some in one[question.id].items()}
            made, left_out = question_of(question, subject.asked.across, said)
            if left_out:
                reason = "the prompt is the same" if subject.asked.across is Across.PROMPT else "the prompt differs"
                self._unmatched.append(
                    Unmatched(job_id=subject.asked.job_id, kind="question", name=question.id, reason=reason)
                )
            whole.append(made)
        return whole


def _chunks(questions: Sequence[AskedHere]) -> list[list[AskedHere]]:
    chunks: list[list[AskedHere]] = []
    size = CHUNK_ANSWERS
    for question in questions:
        if size + question.recorded > CHUNK_ANSWERS:
            chunks.append([])
            size = 0
        chunks[-1].append(question)
        size += question.recorded
    return chunks


def _comparer(subject: Prepared, corrections: int) -> "Comparer":
    """Runs in a thread, because the first one loads numpy."""
    from results.comparison.engine import Comparer, Subject  # noqa: PLC0415 - numpy, for those who compare

    return Comparer(
        Subject(
            job_id=subject.asked.job_id,
            cells=subject.cells,
            pairs=subject.pairs,
            across=subject.asked.across,
            with_job_id=subject.asked.with_job_id,
            against=subject.against,
            final=subject.final,
            corrections=corrections,
            warnings=subject.warnings,
        )
    )


def _add(comparer: "Comparer", questions: Sequence[AskedQuestion]) -> None:
    from results.comparison.engine import one_thread  # noqa: PLC0415

    with one_thread():
        for question in questions:
            comparer.add(question)


def _rows(document: Comparison) -> int:
    return sum(len(pair.questions) for pair in (*document.controls, *document.pairs)) + 1
