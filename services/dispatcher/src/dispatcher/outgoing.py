"""What is to be published once a step is committed, made from the state that was written.

Announcements may be repeated at will: whoever reads them keeps the first, or does the same again. The executions of an
opening may not: each is published at most once, by the dispatcher that holds the lease.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

from prometheus_client import Counter

from dispatcher.jobs import StoredJob
from dispatcher.progress import (
    AnnounceAbort,
    AnnounceStart,
    CloseBatch,
    ConfirmBatch,
    Cut,
    Effect,
    FenceBatch,
    Finish,
    InspectBatch,
    OpenBatch,
    ReopenBatch,
    ReportBatch,
    Tally,
)
from dispatcher.store import PlannedBatch, Work
from dispatcher.tasks import make_tasks
from parallax.contracts import messages
from parallax.contracts.messages import ExecutionTask, Message
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus, JobOutcome, Reason
from parallax.contracts.plan import BatchRef, Cell
from parallax.telemetry import get_logger

log = get_logger(__name__)

BATCHES_COMPLETED: Final = Counter("parallax_dispatcher_batches_completed", "Batches whose executions all ended")
JOBS_FINISHED: Final = Counter("parallax_dispatcher_jobs_finished", "Jobs that ended", ["outcome", "reason"])


@dataclass(frozen=True, slots=True)
class Opening:
    """A committed batch, or some cells of it, that this dispatcher has the lease to publish."""

    job: StoredJob
    batch: PlannedBatch
    cells: tuple[Cell, ...]
    opened_at: datetime
    published_at: datetime
    deadline: datetime
    lease: datetime
    """Names this opening of the batch."""
    leased_s: float
    """On the monotonic clock: not after the lease was committed."""

    @property
    def ref(self) -> BatchRef:
        """The batch."""
        return self.batch.plan.ref

    def announcement(self) -> messages.BatchOpened:
        """Tells that the batch is open; the same words each time."""
        return _opened(self.batch, self.opened_at, self.deadline)

    def tasks(self, cells: Iterable[Cell] | None = None) -> Iterator[ExecutionTask]:
        """The tasks of some of the cells, or of all; made one by one, because all may take hundreds of megabytes."""
        return make_tasks(
            self.job.template,
            self.batch.plan,
            self.batch.question.text,
            published_at=self.published_at,
            deadline_at=self.deadline,
            cells=self.cells if cells is None else cells,
        )


@dataclass(frozen=True, slots=True)
class FencedBatch:
    """A batch whose inspection begins."""

    ref: BatchRef
    regions: frozenset[str]
    token: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Everything that follows one step of one job."""

    job_id: str
    announcements: tuple[Message, ...] = ()
    openings: tuple[Opening, ...] = ()
    fences: tuple[FencedBatch, ...] = ()

    @property
    def aborts(self) -> bool:
        """Whether it tells the executors to stop."""
        return any(isinstance(each, messages.JobCancelled) for each in self.announcements)


@dataclass(frozen=True, slots=True)
class _Step:
    """What carrying out an effect takes."""

    work: Work
    job: StoredJob
    now: datetime
    leased_s: float


async def outgoing(work: Work, job: StoredJob, effects: Iterable[Effect], now: datetime, leased_s: float) -> Outgoing:
    """What follows a step, read inside its transaction; logs and metrics wait for the commit."""
    step = _Step(work, job, now, leased_s)
    announcements: list[Message] = []
    openings: list[Opening] = []
    fences: list[FencedBatch] = []
    for effect in effects:
        for made in await _made(step, effect):
            match made:
                case Opening():
                    openings.append(made)
                case FencedBatch():
                    fences.append(made)
                case _:
                    announcements.append(made)
    return Outgoing(job.job_id, tuple(announcements), tuple(openings), tuple(fences))


async def _made(step: _Step, effect: Effect) -> list[Message | Opening | FencedBatch]:  # noqa: PLR0911 - one flat table
    match effect:
        case AnnounceStart(started_at):
            return [messages.JobStarted(job_id=step.job.job_id, started_at=started_at)]
        case OpenBatch():
            return [await _opening(step, effect, None)]
        case ReopenBatch():
            cells = tuple(Cell(*cell) for cell in effect.missing)
            return [*_started(step.job), await _opening(step, effect, cells)]
        case ConfirmBatch():
            batch = await step.work.batch(step.job, effect.lane, effect.index)
            return [*_started(step.job), _opened(batch, effect.opened_at, effect.deadline)]
        case CloseBatch():
            return [await _closing(step, effect)]
        case FenceBatch(lane, index, token):
            plan = (await step.work.batch(step.job, lane, index)).plan
            return [FencedBatch(plan.ref, frozenset(cell.region for cell in plan.cells), token)]
        case InspectBatch(lane, index, token):
            log.info("batch_inspected", job_id=step.job.job_id, lane=lane, question_index=index)
            return [messages.InspectBatch(batch=(await step.work.batch(step.job, lane, index)).plan, token=token)]
        case ReportBatch():
            await _report(step, effect)
            return []
        case AnnounceAbort():
            return [abort(step.job, step.now)]
        case Finish():
            return [_finished(step, effect)]
        case _:
            assert_never(effect)


def abort(job: StoredJob, now: datetime) -> messages.JobCancelled:
    """Tells executors and users that no work of the job may start or go on; the same words each time."""
    ending = job.progress.ending
    assert ending is not None, "only a job that ends early is aborted"
    reason = Reason(code=ending.closing.code, message=ending.closing.message)
    return messages.JobCancelled(job_id=job.job_id, reason=reason, cancelled_at=ending.at or now)


def _started(job: StoredJob) -> list[Message]:
    """The start of the job once more: a crash that kept a batch from being published may have lost it too."""
    started_at = job.progress.started_at
    return [] if started_at is None else [messages.JobStarted(job_id=job.job_id, started_at=started_at)]


async def _opening(step: _Step, effect: OpenBatch | ReopenBatch, cells: tuple[Cell, ...] | None) -> Opening:
    batch = await step.work.batch(step.job, effect.lane, effect.index)
    return Opening(
        job=step.job,
        batch=batch,
        cells=batch.plan.cells if cells is None else cells,
        opened_at=effect.opened_at,
        published_at=step.now,
        deadline=effect.deadline,
        lease=effect.lease,
        leased_s=step.leased_s,
    )


def _opened(batch: PlannedBatch, opened_at: datetime, deadline: datetime) -> messages.BatchOpened:
    return messages.BatchOpened(
        batch=batch.plan.ref,
        question_id=batch.plan.question_id,
        question=batch.question,
        executions=len(batch.plan.cells),
        opened_at=opened_at,
        deadline_at=deadline,
    )


async def _closing(step: _Step, effect: CloseBatch) -> messages.CloseBatch:
    batch = (await step.work.batch(step.job, effect.lane, effect.index)).plan
    closing, job_id = effect.closing, step.job.job_id
    log.info("batch_closed", job_id=job_id, question_id=batch.question_id, lane=effect.lane, reason=closing.code)
    return messages.CloseBatch(
        batch=batch,
        status=ExecutionStatus(closing.cut.value),
        error=ErrorInfo(
            error_class="deadline" if closing.cut is Cut.TIMED_OUT else "cancelled",
            code=closing.code,
            message=closing.message,
            retryable=False,
        ),
        closed_at=step.now,
    )


async def _report(step: _Step, effect: ReportBatch) -> None:
    batch = await step.work.batch(step.job, effect.lane, effect.index)

    def note() -> None:
        BATCHES_COMPLETED.inc()
        log.info(
            "batch_completed",
            job_id=step.job.job_id,
            question_id=batch.plan.question_id,
            lane=effect.lane,
            counts=_counts(effect.tally).model_dump(),
            duration_s=round((step.now - effect.opened_at).total_seconds(), 3),
            cut_off_by=None if effect.closing is None else effect.closing.code,
        )

    step.work.on_commit.append(note)


def _finished(step: _Step, effect: Finish) -> messages.JobFinished:
    def note() -> None:
        JOBS_FINISHED.labels(outcome=effect.outcome.value, reason=effect.code).inc()
        log.info("job_finished", job_id=step.job.job_id, outcome=effect.outcome.value, reason=effect.code)

    step.work.on_commit.append(note)
    return messages.JobFinished(
        job_id=step.job.job_id,
        outcome=JobOutcome(effect.outcome.value),
        reason=Reason(code=effect.code, message=effect.message),
        counts=_counts(effect.tally),
        not_started=effect.not_started,
        finished_at=step.now,
    )


def _counts(tally: Tally) -> Counts:
    return Counts(
        completed=tally.completed,
        failed=tally.failed,
        timed_out=tally.timed_out,
        cancelled=tally.cancelled,
    )
