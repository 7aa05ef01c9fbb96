"""The dispatcher's tables, as SQL. One transaction is one :class:`Work`; a job's row is locked before it moves."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dispatcher.jobs import StoredJob
from dispatcher.progress import Upcoming, codec
from dispatcher.submission import Submission
from dispatcher.tasks import Template
from parallax.contracts.job import Question
from parallax.contracts.messages import JobAccepted, JobFinished
from parallax.contracts.model import read
from parallax.contracts.plan import BatchPlan, BatchRef, Cell
from parallax.db.engine import autocommit, transaction

TEMPLATES_KEPT: Final = 256
"""Templates that stay parsed, which is more than jobs are active by default: a job's never changes."""

_ADMISSION_LOCK: Final = "dispatcher.admission"

_INSERT_JOB = text("""
    INSERT INTO dispatcher.jobs (id, content_sha256, accepted, template, state, phase, accepted_at, changed_at)
    VALUES (:id, :content_sha256, CAST(:accepted AS jsonb), CAST(:template AS jsonb), CAST(:state AS jsonb),
            :phase, :now, :now)
""")
_INSERT_QUESTIONS = text("""
    INSERT INTO dispatcher.questions (job_id, question_index, id, text, tags, metadata)
    SELECT :job_id, q.question_index, q.id, q.text, q.tags, q.metadata
    FROM json_to_recordset(CAST(:rows AS json)) AS q (question_index integer, id text, text text, tags jsonb,
                                                      metadata jsonb)
""")
_INSERT_CHOSEN = text("""
    INSERT INTO dispatcher.chosen_batches (job_id, lane, question_index, size, cells)
    SELECT :job_id, c.lane, c.question_index, jsonb_array_length(c.cells), c.cells
    FROM json_to_recordset(CAST(:rows AS json)) AS c (lane text, question_index integer, cells jsonb)
""")
_UPDATE_JOBS = text("""
    UPDATE dispatcher.jobs
    SET state = CAST(m.state AS jsonb), phase = m.phase, due_at = m.due_at, finished = CAST(m.finished AS jsonb),
        changed_at = :now
    FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), CAST(:phases AS text[]),
                CAST(:due AS timestamptz[]), CAST(:finished AS text[])) AS m (id, state, phase, due_at, finished)
    WHERE jobs.id = m.id
""")
_JOB = "j.id, CAST(j.template AS text), CAST(j.state AS text)"
_QUESTION = "json_build_object('id', q.id, 'text', q.text, 'tags', q.tags, 'metadata', q.metadata)"
_LOCK_JOB = text(f"SELECT {_JOB} FROM dispatcher.jobs j WHERE j.id = :id FOR UPDATE")  # noqa: S608 - made of constants
_JOBS_AT = f"""
    SELECT {_JOB}, w.question_index, ARRAY(
        SELECT CAST({_QUESTION} AS text) FROM dispatcher.questions q
        WHERE q.job_id = j.id AND q.question_index BETWEEN w.question_index AND w.question_index + 1
        ORDER BY q.question_index
    ) AS questions
    FROM unnest(CAST(:ids AS text[]), CAST(:indexes AS integer[])) AS w (id, question_index)
    JOIN dispatcher.jobs j USING (id)
    ORDER BY j.id FOR UPDATE OF j
"""  # noqa: S608 - made of constants
_LOCK_JOBS_AT = text(_JOBS_AT)
_LOCK_FREE_JOBS_AT = text(f"{_JOBS_AT} SKIP LOCKED")
_LOCK_FREE = text(f"""
    SELECT {_JOB} FROM dispatcher.jobs j WHERE j.id = ANY(CAST(:ids AS text[])) ORDER BY j.id FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - made of constants
_LOCK_DUE = text(f"""
    SELECT {_JOB} FROM dispatcher.jobs j WHERE j.id = :id AND j.due_at <= :now FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - made of constants
_LOCK_NEXT_QUEUED = text(f"""
    SELECT j.position, {_JOB} FROM dispatcher.jobs j
    WHERE j.phase = 'queued' AND j.position > :behind
        AND (SELECT count(*) FROM dispatcher.jobs WHERE phase IN ('running', 'ending')) < :most_active
    ORDER BY j.position LIMIT 1 FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - made of constants
_ANY_QUEUED = text("SELECT EXISTS (SELECT FROM dispatcher.jobs WHERE phase = 'queued')")
_DUE = text("SELECT id FROM dispatcher.jobs WHERE due_at <= :now ORDER BY due_at, id LIMIT :limit")
_UNFINISHED = text("SELECT id FROM dispatcher.jobs WHERE phase <> 'finished' ORDER BY position")
_NEWEST_FINISHED = text("""
    SELECT CAST(accepted AS text), CAST(finished AS text) FROM dispatcher.jobs
    WHERE phase = 'finished' ORDER BY changed_at DESC LIMIT :limit
""")
_END = text("SELECT CAST(finished AS text) FROM dispatcher.jobs WHERE id = :id AND phase = 'finished'")
_LAST_WORDS = text("""
    SELECT CAST(accepted AS text), CAST(finished AS text) FROM dispatcher.jobs WHERE id = :id AND phase = 'finished'
""")
_REST = text("UPDATE dispatcher.jobs SET due_at = NULL WHERE id = :id AND phase = 'finished'")
_SUBMITTED = text("""
    SELECT content_sha256, CAST(accepted AS text), CAST(finished AS text) FROM dispatcher.jobs WHERE id = :id
""")
_ONE_QUESTION = text(f"""
    SELECT CAST({_QUESTION} AS text) FROM dispatcher.questions q WHERE q.job_id = :job_id AND q.question_index = :index
""")  # noqa: S608 - made of constants
_CHOSEN = text("""
    SELECT CAST(cells AS text) FROM dispatcher.chosen_batches
    WHERE job_id = :job_id AND lane = :lane AND question_index = :index
""")
_NEXT_CHOSEN = text("""
    SELECT question_index, size FROM dispatcher.chosen_batches
    WHERE job_id = :job_id AND lane = :lane AND question_index > :after
    ORDER BY question_index LIMIT 1
""")
_ADVISORY_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
_BURY = text("""
    INSERT INTO dispatcher.tombstones (job_id, reason, created_at) VALUES (:job_id, :reason, :now)
    ON CONFLICT (job_id) DO NOTHING
""")
_EXHUME = text("DELETE FROM dispatcher.tombstones WHERE job_id = :job_id RETURNING reason")
_FORGET_TOMBSTONES = text("DELETE FROM dispatcher.tombstones WHERE created_at < :before")


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was accepted under a job's id."""

    content_sha256: bytes
    accepted: JobAccepted
    finished: JobFinished | None


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch and its question."""

    plan: BatchPlan
    question: Question


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits for its turn, and its position in the line."""

    position: int
    job: StoredJob


class Work:
    """One transaction on the dispatcher's tables."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.on_commit: list[Callable[[], None]] = []
        """Called once the transaction is committed, for logs and metrics."""
        self._questions: dict[tuple[str, int], Question] = {}

    async def lock_id(self, job_id: str) -> None:
        """Wait for other transactions about a job that may not exist yet."""
        await self._run(_ADVISORY_LOCK, key=f"dispatcher.job.{job_id}")

    async def lock_admission(self) -> None:
        """Wait for other dispatchers that start jobs."""
        await self._run(_ADVISORY_LOCK, key=_ADMISSION_LOCK)

    # --- jobs

    async def submitted(self, job_id: str) -> Submitted | None:
        """What was accepted under an id."""
        row = await self._one(_SUBMITTED, id=job_id)
        return row and Submitted(
            bytes(row.content_sha256),
            read(JobAccepted, row.accepted),
            row.finished and read(JobFinished, row.finished),
        )

    async def insert(self, job: StoredJob, accepted: JobAccepted, submission: Submission) -> None:
        """Store a new job, its rows piece by piece. The caller holds the lock of its id."""
        await self._run(
            _INSERT_JOB,
            id=job.job_id,
            content_sha256=bytes.fromhex(submission.job.content_sha256),
            accepted=accepted.model_dump_json(),
            template=job.template.model_dump_json(),
            state=json.dumps(codec.encode(job.progress)),
            phase=job.progress.phase.value,
            now=accepted.accepted_at,
        )
        for rows in submission.questions:
            await self._run(_INSERT_QUESTIONS, job_id=job.job_id, rows=rows.decode())
        for rows in submission.chosen:
            await self._run(_INSERT_CHOSEN, job_id=job.job_id, rows=rows.decode())

    async def lock(self, job_id: str) -> StoredJob | None:
        """The job, its row locked until the end of the transaction."""
        row = await self._one(_LOCK_JOB, id=job_id)
        return None if row is None else _read(row)

    async def lock_at(self, places: Sequence[tuple[str, int]], *, wait: bool) -> dict[str, StoredJob]:
        """The jobs of some (job, question index), their rows locked in the order of their ids.

        Without ``wait`` those that somebody else works on are left out.

        The same round trip reads each of these questions and the one after it: whoever completes a batch mostly opens
        the next.
        """
        ids, indexes = [job_id for job_id, _ in places], [index for _, index in places]
        statement = _LOCK_JOBS_AT if wait else _LOCK_FREE_JOBS_AT
        found: dict[str, StoredJob] = {}
        for row in await self._connection.execute(statement, {"ids": ids, "indexes": indexes}):
            found[row.id] = _read(row)
            for number, question in enumerate(row.questions, row.question_index):
                self._questions[row.id, number] = read(Question, question)
        return found

    async def lock_free(self, job_ids: Sequence[str]) -> tuple[StoredJob, ...]:
        """Those of some jobs that nobody else works on, their rows locked in the order of their ids."""
        return tuple(_read(row) for row in await self._connection.execute(_LOCK_FREE, {"ids": list(job_ids)}))

    async def lock_due(self, job_id: str, now: datetime) -> StoredJob | None:
        """The job, locked, if it is still due and nobody else works on it."""
        row = await self._one(_LOCK_DUE, id=job_id, now=now)
        return None if row is None else _read(row)

    async def lock_next_queued(self, behind: int, most_active: int) -> WaitingJob | None:
        """The job that waits longest behind a position, locked, if fewer than ``most_active`` are active.

        Passes over one that somebody else works on.
        """
        row = await self._one(_LOCK_NEXT_QUEUED, behind=behind, most_active=most_active)
        return None if row is None else WaitingJob(row.position, _read(row))

    async def save(
        self,
        jobs: Sequence[tuple[StoredJob, JobFinished | None]],
        *,
        inspect_after: timedelta,
        ask_after: timedelta,
        now: datetime,
    ) -> None:
        """Write how far locked jobs are, and how they ended. One that has is due once more, for its last words."""
        await self._run(
            _UPDATE_JOBS,
            ids=[job.job_id for job, _ in jobs],
            states=[json.dumps(codec.encode(job.progress)) for job, _ in jobs],
            phases=[job.progress.phase.value for job, _ in jobs],
            due=[now + inspect_after if end else job.progress.due_at(inspect_after, ask_after) for job, end in jobs],
            finished=[end and end.model_dump_json() for _, end in jobs],
            now=now,
        )

    # --- sets of jobs

    async def due(self, now: datetime, limit: int) -> tuple[str, ...]:
        """Jobs that the reaper has to look at, the most overdue first."""
        return tuple((await self._connection.execute(_DUE, {"now": now, "limit": limit})).scalars())

    async def unfinished(self) -> tuple[str, ...]:
        """Every job that has not ended, in the order of admission."""
        return tuple((await self._connection.execute(_UNFINISHED)).scalars())

    async def newest_finished(self, limit: int) -> tuple[JobAccepted | JobFinished, ...]:
        """What was announced about the jobs that ended last: acceptance and end of each."""
        return _announced(await self._connection.execute(_NEWEST_FINISHED, {"limit": limit}))

    async def end(self, job_id: str) -> JobFinished:
        """What was announced of the end of a job."""
        return read(JobFinished, (await self._one(_END, id=job_id)).finished)

    async def last_words(self, job_id: str) -> tuple[JobAccepted, JobFinished]:
        """How a job that has ended was accepted, and how it ended."""
        row = await self._one(_LAST_WORDS, id=job_id)
        return read(JobAccepted, row.accepted), read(JobFinished, row.finished)

    async def rest(self, job_id: str) -> None:
        """The last words about a job were published: the reaper need not look at it again."""
        await self._run(_REST, id=job_id)

    # --- batches

    async def batch(self, job: StoredJob, lane: str, index: int) -> PlannedBatch:
        """A batch of a job; the cost does not depend on the number of its questions."""
        question = await self._question(job.job_id, index)
        cells: tuple[Cell, ...] = tuple(job.template.plan.cells(lane))
        if job.template.partial:
            chosen = await self._one(_CHOSEN, job_id=job.job_id, lane=lane, index=index)
            assert chosen is not None, "progress names only batches with executions"
            cells = tuple(Cell(*cell) for cell in json.loads(chosen.cells))
        ref = BatchRef(job_id=job.job_id, lane=lane, question_index=index)
        return PlannedBatch(BatchPlan(ref=ref, question_id=question.id, cells=cells), question)

    async def upcoming(self, job: StoredJob, lane: str, after: int) -> Upcoming | None:
        """The next batch of a lane that has executions."""
        if job.template.partial:
            row = await self._one(_NEXT_CHOSEN, job_id=job.job_id, lane=lane, after=after)
            return row and Upcoming(row.question_index, row.size)
        if after + 1 >= job.template.questions:
            return None
        return Upcoming(after + 1, sum(1 for _ in job.template.plan.cells(lane)))

    async def _question(self, job_id: str, index: int) -> Question:
        if (job_id, index) not in self._questions:
            found = await self._connection.execute(_ONE_QUESTION, {"job_id": job_id, "index": index})
            self._questions[job_id, index] = read(Question, found.scalar_one())
        return self._questions[job_id, index]

    # --- tombstones

    async def bury(self, job_id: str, reason: str, now: datetime) -> None:
        """Remember that a job that has not arrived was cancelled."""
        await self._run(_BURY, job_id=job_id, reason=reason, now=now)

    async def exhume(self, job_id: str) -> str | None:
        """Why a job was cancelled before it arrived; the memory of it ends here."""
        row = await self._one(_EXHUME, job_id=job_id)
        return None if row is None else str(row.reason)

    async def forget_tombstones(self, before: datetime) -> None:
        """Forget cancellations whose job never came."""
        await self._run(_FORGET_TOMBSTONES, before=before)

    async def _run(self, statement: Any, **values: Any) -> None:
        await self._connection.execute(statement, values)

    async def _one(self, statement: Any, **values: Any) -> Any:
        return (await self._connection.execute(statement, values)).one_or_none()


class Store:
    """Gives out transactions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Work]:
        """A transaction that commits at the end of the block.

        Raises:
            UnavailableError: See :func:`parallax.db.engine.transaction`.
        """
        async with transaction(self._engine) as connection:
            work = Work(connection)
            yield work
        for committed in work.on_commit:
            committed()

    async def any_queued(self) -> bool:
        """Whether a job waits for its turn."""
        async with autocommit(self._engine) as connection:
            return bool((await connection.execute(_ANY_QUEUED)).scalar_one())

    async def answers(self) -> bool:
        """Whether the database answers."""
        async with transaction(self._engine) as connection:
            return bool((await connection.execute(text("SELECT true"))).scalar_one())


def _read(row: Any) -> StoredJob:
    return StoredJob(row.id, _template(row.template), codec.decode(json.loads(row.state)))


@lru_cache(maxsize=TEMPLATES_KEPT)
def _template(document: str) -> Template:
    return read(Template, document)


def _announced(rows: Iterable[Any]) -> tuple[JobAccepted | JobFinished, ...]:
    return tuple(
        message
        for row in rows
        for message in (
            read(JobAccepted, row.accepted),
            read(JobFinished, row.finished),
        )
    )
