"""What the dispatcher does with each message. Every handler may be run again with the same message.

Each commits first and publishes afterwards, so that a message is acknowledged when all that follows it is published
or is the timer's business.
"""

from functools import partial
from typing import Final

from dispatcher.admission import Admission
from dispatcher.advancing import Advancing
from dispatcher.intake import Intake
from dispatcher.jobs import accept
from dispatcher.outgoing import Outgoing
from dispatcher.progress import Cancel, Inspected
from dispatcher.publishing import Publisher
from dispatcher.regions import waiting_tasks
from dispatcher.steps import Moved, Steps
from dispatcher.store import Store
from dispatcher.submission import Refusal, Submission
from parallax.bus.letters import REASON_HEADER
from parallax.bus.port import Bus, Delivery
from parallax.catalog import Catalog, offer_of
from parallax.clock import Clock
from parallax.contracts import messages
from parallax.contracts.messages import JobRejected, Problem
from parallax.contracts.model import read
from parallax.contracts.outcomes import ErrorInfo, Reason
from parallax.contracts.plan import Cell
from parallax.errors import PoisonError
from parallax.telemetry import get_logger
from parallax.text import storable
from parallax.worker.process import Worker

log = get_logger(__name__)

MAX_REASON_CHARS: Final = 2_000
"""What ``parallax.contracts.outcomes.Text`` holds."""


class Handlers:
    """One method per message."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        steps: Steps,
        publisher: Publisher,
        admission: Admission,
        catalog: Catalog,
        clock: Clock,
        worker: Worker | None = None,
    ) -> None:
        self._bus = bus
        self._store = store
        self._steps = steps
        self._publisher = publisher
        self._advancing = Advancing(store, steps, publisher)
        self._admission = admission
        self._catalog = catalog
        self._offer = offer_of(catalog)
        self._intake = Intake(self._offer, worker=worker)
        self._clock = clock

    # --- submissions

    async def submit(self, delivery: Delivery) -> None:
        """Accept a job or refuse it, and tell the sender.

        Idempotent: a repetition finds the job stored and announces the same acceptance again, and its end if it has
        ended, which may have been lost after its commit.

        Raises:
            PoisonError: The message names no usable job id, so that nobody could ever find the refusal.
        """
        submission = await self._intake.read(delivery.body)
        if isinstance(submission, Refusal):
            await self._refuse(delivery, submission)
            return
        await self._accept(delivery, submission)
        await self._admission.fill()

    async def _refuse(self, delivery: Delivery, refusal: Refusal) -> None:
        """Refuse in public, unless the id belongs to a job that is none of the sender's business."""
        count = len(refusal.problems)
        reason = Reason(code="invalid", message=f"the job has {count} problem{'' if count == 1 else 's'}")
        rejected = self._rejected(refusal.job_id, reason, refusal.problems)
        if refusal.job_id is None:
            await self._bus.reply(delivery, rejected)
            raise PoisonError(
                "; ".join(f"{p.pointer or '/'}: {p.message}" for p in refusal.problems)[:MAX_REASON_CHARS]
            )
        async with self._store.work() as work:
            await work.lock_id(refusal.job_id)
            known = await work.submitted(refusal.job_id)
        if known is None:
            await self._publisher.announce(rejected)
        log.info("job_rejected", job_id=refusal.job_id, problems=count)
        await self._bus.reply(delivery, rejected)

    async def _accept(self, delivery: Delivery, submission: Submission) -> None:
        answer: messages.JobAccepted | JobRejected
        follows = Outgoing(submission.job_id)
        async with self._store.work() as work:
            await work.lock_id(submission.job_id)
            known = await work.submitted(submission.job_id)
            content = bytes.fromhex(submission.job.content_sha256)
            if known is not None and known.content_sha256 != content:
                answer = self._conflict(submission.job_id)
            elif known is not None:
                answer = known.accepted
                follows = Outgoing(submission.job_id, () if known.finished is None else (known.finished,))
            else:
                job, answer = accept(submission, self._catalog, self._clock.now())
                await work.insert(job, answer, submission)
                cancelled = await work.exhume(job.job_id)
                if cancelled is not None:
                    follows = (await self._steps.take(work, job, Cancel(cancelled))).outgoing
                work.on_commit.append(partial(_log_accepted, answer))
        if isinstance(answer, messages.JobAccepted):
            await self._publisher.announce(answer)
        await self._publisher.publish(follows)
        await self._bus.reply(delivery, answer)

    def _conflict(self, job_id: str) -> JobRejected:
        log.info("job_conflict", job_id=job_id)
        reason = Reason(code="conflict", message="the id belongs to a job with other content")
        problem = Problem(pointer="/job_id", message="is already used by another job", allowed="an id of its own")
        return self._rejected(job_id, reason, (problem,))

    def _rejected(self, job_id: str | None, reason: Reason, problems: tuple[Problem, ...]) -> JobRejected:
        return JobRejected(job_id=job_id, reason=reason, problems=problems, rejected_at=self._clock.now())

    # --- progress

    async def cancel(self, message: messages.CancelJob) -> None:
        """Stop a job, or remember to when it has not arrived.

        Idempotent: a job that is ending or has ended stays as it is; a tombstone is made once.
        """
        reason = storable(message.reason)
        async with self._store.work() as work:
            job = await work.lock(message.job_id)
            if job is None:
                await work.lock_id(message.job_id)  # it may be arriving just now
                job = await work.lock(message.job_id)
            if job is None:
                await work.bury(message.job_id, reason, self._clock.now())
                log.info("unknown_job_cancelled", job_id=message.job_id)
                return
            moved = await self._steps.take(work, job, Cancel(reason))
        await self._publisher.publish(moved.outgoing)
        await self._make_room(moved)

    async def batch_completed(self, message: messages.BatchCompleted) -> None:
        """Move a lane on.

        Idempotent: the completion of a batch that is not open any more, or not yet, changes nothing.
        """
        if await self._advancing.advance(message):
            await self._admission.fill()

    async def batch_incomplete(self, message: messages.BatchIncomplete) -> None:
        """Publish what a batch lacks, if its inspection goes on; where tasks wait by now, they may be just those.

        Idempotent: the answer to a round is taken once, and a job that moved on is left alone.

        Raises:
            PoisonError: It names a region or executions that do not exist.
        """
        ref = message.batch
        if unknown_regions := set(_regions(message.missing)) - self._offer.regions:
            raise PoisonError(f"batch {ref} is said to lack executions in unknown regions: {sorted(unknown_regions)}")
        idle = [region for region in _regions(message.missing) if await self._nothing_waits(region)]
        missing = tuple(cell for cell in message.missing if cell.region in idle)
        async with self._store.work() as work:
            job = await work.lock(ref.job_id)
            batch = None if job is None else job.progress.open_batch(ref.lane)
            if job is None or batch is None or batch.index != ref.question_index:
                return
            planned = await work.batch(job, ref.lane, ref.question_index)
            if unknown := set(message.missing) - set(planned.plan.cells):
                raise PoisonError(f"batch {ref} is said to lack executions it does not consist of: {sorted(unknown)}")
            if message.token is None:  # from a version that inspects without a fence
                return
            undecided = message.undecided + len(message.missing) - len(missing)
            found = Inspected(ref.lane, ref.question_index, message.token, missing, undecided)
            moved = await self._steps.take(work, job, found)
        for opening in moved.outgoing.openings:
            executions = len(opening.cells)
            log.warning("executions_republished", job_id=ref.job_id, lane=ref.lane, executions=executions, regions=idle)
        await self._publisher.publish(moved.outgoing)

    async def _nothing_waits(self, region: str) -> bool:
        return await waiting_tasks(self._bus, region, self._catalog.models_in(region)) == 0

    async def dead_execution(self, delivery: Delivery) -> None:
        """Turn a task that no executor could handle into a failed fact, so that its batch can complete.

        Idempotent: the ledger takes the first fact of an execution.

        Raises:
            ValidationError: It is not a task.
        """
        task = read(messages.ExecutionTask, delivery.body)
        reason = storable(str(delivery.headers.get(REASON_HEADER, "no reason was given")))[:MAX_REASON_CHARS]
        error = ErrorInfo(error_class="dead_letter", code="dead_letter", message=reason, retryable=False)
        await self._bus.publish(
            messages.ExecutionFinished.failed(
                task,
                error,
                observed=False,
                completed_at=self._clock.now(),
                messages=task.messages,
                attempts=task.prior_attempts,
            )
        )
        log.warning("execution_dead", job_id=task.batch.job_id, execution_id=str(task.execution_id), reason=reason)

    async def _make_room(self, moved: Moved) -> None:
        if moved.ended:
            await self._admission.fill()


def _log_accepted(accepted: messages.JobAccepted) -> None:
    log.info("job_accepted", job_id=accepted.job_id, batches=accepted.batches, executions=accepted.executions)


def _regions(cells: tuple[Cell, ...]) -> list[str]:
    return list(dict.fromkeys(cell.region for cell in cells))
