"""Steps that are carried out: effects published, state written, both inside the caller's transaction.

The order is *publish, then commit, then ack*. A crash before the commit leaves the state unmoved and the input
unacknowledged: the same step is taken again and publishes the same messages with the same ids.

The end of a job alone is published after the commit. Said before it, it could be contradicted: another input, such as a
cancellation, may be taken before the one that ended the job comes again, and end it in another way. What is lost with a
crash between the two is said when the input comes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, assert_never

from prometheus_client import Counter

from dispatcher.jobs import StoredJob
from dispatcher.progress import (
    AnnounceAbort,
    AnnounceStart,
    CloseBatch,
    Cut,
    Effect,
    Event,
    Finish,
    GiveUp,
    ImpossibleEventError,
    InspectBatch,
    OpenBatch,
    Phase,
    ReportBatch,
    Tally,
    step,
)
from dispatcher.store import Work
from dispatcher.tasks import make_tasks
from parallax.bus.port import Bus
from parallax.clock import Clock
from parallax.contracts import messages
from parallax.contracts.messages import Message
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus, JobOutcome, Reason
from parallax.errors import PoisonError, UnroutableError
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

BATCHES_OPENED: Final = Counter("parallax_dispatcher_batches_opened", "Batches whose executions were published")
BATCHES_COMPLETED: Final = Counter("parallax_dispatcher_batches_completed", "Batches whose executions all ended")
JOBS_FINISHED: Final = Counter("parallax_dispatcher_jobs_finished", "Jobs that ended", ["outcome", "reason"])


@dataclass(frozen=True, slots=True)
class _Move:
    """What one event does to one job."""

    job: StoredJob
    """As it is afterwards."""
    changed: bool
    announced: Sequence[Message] = ()
    finished: messages.JobFinished | None = None
    """How it ended, just now or before; for after the commit."""


class Steps:
    """Takes steps of jobs."""

    def __init__(self, bus: Bus, clock: Clock, *, inspect_after_s: float) -> None:
        self._bus = bus
        self._clock = clock
        self._inspect_after = timedelta(seconds=inspect_after_s)

    @property
    def inspect_after(self) -> timedelta:
        """How long a batch may be silent."""
        return self._inspect_after

    async def take(self, work: Work, job: StoredJob, event: Event) -> StoredJob:
        """Move a locked job; an event that changes nothing writes and publishes nothing.

        The end of a job that has ended is told again: it may have been lost after its commit.

        A job whose executions no queue takes is given up: its region has left the installation, and neither
        waiting nor another region may stand in for it.

        Raises:
            PoisonError: The event cannot have happened to this job.
            UnavailableError: The bus or the database is away; the caller's transaction must not commit.
        """
        notes = len(work.on_commit)
        try:
            (moved,) = await self.take_all(work, [(job, event)])
        except UnroutableError as error:
            log.warning("job_undeliverable", job_id=job.job_id, error=str(error))
            del work.on_commit[notes:]
            (moved,) = await self.take_all(work, [(job, GiveUp(storable(str(error))))])
        return moved

    async def take_all(self, work: Work, taken: Sequence[tuple[StoredJob, Event]]) -> list[StoredJob]:
        """The same for several locked jobs, one event each.

        Raises:
            UnroutableError: No queue takes an execution of one of them.
            PoisonError: See :meth:`take`.
            UnavailableError: See :meth:`take`.
        """
        now = self._clock.now()
        moves = [await self._move(work, job, event, now) for job, event in taken]
        await self._bus.publish(*[message for move in moves for message in move.announced])
        changed = [(move.job, move.finished) for move in moves if move.changed]
        if changed:
            await work.save(changed, inspect_after=self._inspect_after, now=now)
        for move in moves:
            if move.finished is not None:
                work.afterwards.append(partial(self._bus.publish, move.finished))
        return [move.job for move in moves]

    async def _move(self, work: Work, job: StoredJob, event: Event, now: datetime) -> _Move:
        if job.progress.phase is Phase.FINISHED:
            return _Move(job, changed=False, finished=await work.end(job.job_id))
        try:
            progress, effects = step(job.progress, event, now)
        except ImpossibleEventError as error:
            raise PoisonError(f"job {job.job_id}: {error}") from error
        moved = job.moved(progress)
        if progress == job.progress:
            return _Move(moved, changed=False)
        outgoing = [message for effect in effects for message in await self._carry_out(work, moved, effect, now)]
        finished = next((message for message in outgoing if isinstance(message, messages.JobFinished)), None)
        announced = [message for message in outgoing if message is not finished]
        return _Move(moved, changed=True, announced=announced, finished=finished)

    async def _carry_out(  # noqa: PLR0911 - one flat table
        self, work: Work, job: StoredJob, effect: Effect, now: datetime
    ) -> list[Message]:
        match effect:
            case OpenBatch():
                return await _open(work, job, effect)
            case CloseBatch():
                return [await _close(work, job, effect, now)]
            case InspectBatch(lane, index):
                log.info("batch_inspected", job_id=job.job_id, lane=lane, question_index=index)
                return [messages.InspectBatch(batch=(await work.batch(job, lane, index)).plan)]
            case ReportBatch():
                await _report(work, job, effect, now)
                return []
            case AnnounceStart(started_at):
                return [messages.JobStarted(job_id=job.job_id, started_at=started_at)]
            case AnnounceAbort(code, message):
                reason = Reason(code=code, message=message)
                return [messages.JobCancelled(job_id=job.job_id, reason=reason, cancelled_at=now)]
            case Finish():
                return [_finish(work, job, effect, now)]
            case _:
                assert_never(effect)


async def _open(work: Work, job: StoredJob, effect: OpenBatch) -> list[Message]:
    batch = await work.batch(job, effect.lane, effect.index)
    opened = messages.BatchOpened(
        batch=batch.plan.ref,
        question_id=batch.plan.question_id,
        question=batch.question,
        executions=len(batch.plan.cells),
        opened_at=effect.opened_at,
        deadline_at=effect.deadline,
    )

    def note() -> None:
        BATCHES_OPENED.inc()
        log.info(
            "batch_opened",
            job_id=job.job_id,
            question_id=batch.plan.question_id,
            lane=effect.lane,
            executions=len(batch.plan.cells),
        )

    work.on_commit.append(note)
    made = make_tasks(
        job.template,
        batch.plan,
        batch.question.text,
        published_at=effect.opened_at,
        deadline_at=effect.deadline,
    )
    return [*made, opened]  # nobody waits for the announcement


async def _close(work: Work, job: StoredJob, effect: CloseBatch, now: datetime) -> messages.CloseBatch:
    batch = (await work.batch(job, effect.lane, effect.index)).plan
    closing = effect.closing
    log.info("batch_closed", job_id=job.job_id, question_id=batch.question_id, lane=effect.lane, reason=closing.code)
    return messages.CloseBatch(
        batch=batch,
        status=ExecutionStatus(closing.cut.value),
        error=ErrorInfo(
            error_class="deadline" if closing.cut is Cut.TIMED_OUT else "cancelled",
            code=closing.code,
            message=closing.message,
            retryable=False,
        ),
        closed_at=now,
    )


async def _report(work: Work, job: StoredJob, effect: ReportBatch, now: datetime) -> None:
    batch = await work.batch(job, effect.lane, effect.index)

    def note() -> None:
        BATCHES_COMPLETED.inc()
        log.info(
            "batch_completed",
            job_id=job.job_id,
            question_id=batch.plan.question_id,
            lane=effect.lane,
            counts=_counts(effect.tally).model_dump(),
            duration_s=round((now - effect.opened_at).total_seconds(), 3),
            cut_off_by=None if effect.closing is None else effect.closing.code,
        )

    work.on_commit.append(note)


def _finish(work: Work, job: StoredJob, effect: Finish, now: datetime) -> messages.JobFinished:
    def note() -> None:
        JOBS_FINISHED.labels(outcome=effect.outcome.value, reason=effect.code).inc()
        log.info("job_finished", job_id=job.job_id, outcome=effect.outcome.value, reason=effect.code)

    work.on_commit.append(note)
    return messages.JobFinished(
        job_id=job.job_id,
        outcome=JobOutcome(effect.outcome.value),
        reason=Reason(code=effect.code, message=effect.message),
        counts=_counts(effect.tally),
        not_started=effect.not_started,
        finished_at=now,
    )


def _counts(tally: Tally) -> Counts:
    return Counts(
        completed=tally.completed,
        failed=tally.failed,
        timed_out=tally.timed_out,
        cancelled=tally.cancelled,
    )
