"""One held task, from its delivery to its outcome: circuit breaker, slot, attempts, limits, retries.

Nothing here publishes or acknowledges: the outcome is handed to the runner, so that what is written about an
execution never depends on the scope in which it was cancelled.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Final

from executor.admission import BreakerQueue
from executor.circuit_breaker import EndpointState, Permit
from executor.endpoints.port import CallTrace, Endpoint, EndpointError, ModelAnswer, ModelRequest
from executor.error_codes import ErrorCode
from executor.limits import Limit, after_first_byte, before_first_byte, cold_budget_s, hold_s
from executor.outcome import Ended, ExecutorStopping, HandedBack, JobStopped, Moved, Outcome
from executor.retry import RetryPolicy, decide
from parallax.bus.port import Delivery
from parallax.catalog import Model
from parallax.clock import Clock
from parallax.contracts.messages import ExecutionTask
from parallax.contracts.outcomes import Attempt, AttemptOutcome, ErrorInfo, ExecutionStatus
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

REFUSALS: Final = frozenset({"rate_limited", "unavailable"})
"""Error classes of calls that the endpoint did not take: they use up no attempt."""

MAX_RECORDED_ATTEMPTS: Final = 50
"""A long wait for the circuit breaker is recorded by its first refusals and its last one."""

FENCE_POLL_S: Final = 0.05

BACK_OFF_IN_PLACE_S: Final = 5.0
"""A task that backs off for longer before its next call leaves the region's queue to other models. Most waits are
shorter: to publish the task again for a second's wait would cost more than the place that it takes."""


class Phase(StrEnum):
    """What an executor does with a task."""

    WAITING = "waiting"
    CALLING = "calling"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all executions of one executor share."""

    endpoint: Endpoint
    clock: Clock
    random: Random
    retry: RetryPolicy
    hand_back_after_s: float
    cold_start_s: float
    fenced: Callable[[], bool]
    """Whether every cancellation written so far is known here."""
    makes_room: bool
    """Whether tasks from the region's queue leave when their model accepts no calls: other models need their place."""
    leaving: Callable[[], bool]
    """Whether no further call may start here."""


class Execution:
    """One held task. Runs in an asyncio task of its own, which ``end`` cancels."""

    def __init__(
        self,
        task: ExecutionTask,
        delivery: Delivery,
        model: Model | None,
        queue: BreakerQueue,
        around: Surroundings,
        *,
        from_waiting_queue: bool = False,
    ) -> None:
        self.task = task
        self.deliveries = [delivery]
        """Every delivery of this task that is still to be settled; redeliveries are added while it runs."""
        self.model = model
        self.from_waiting_queue = from_waiting_queue
        self.phase = Phase.WAITING
        self.stop: JobStopped | ExecutorStopping | None = None
        self.since = around.clock.now()
        self.attempts = list(task.prior_attempts)
        self.runner: asyncio.Task[None] | None = None
        self._around = around
        self._queue = queue
        self._tries = max((attempt.number for attempt in self.attempts), default=0)
        self._burned = sum(_burns(attempt) for attempt in self.attempts)
        now = around.clock.monotonic()
        self._deadline = now + (task.deadline_at - self.since).total_seconds()
        self._hold_until = now + hold_s(task.limits, around.hand_back_after_s)
        self._begun = False
        self._trace: CallTrace | None = None
        self._limit: Limit | None = None
        self._timer: asyncio.Timeout | None = None
        self._cold_s = 0.0
        self._started = now
        self._first_byte_s: float | None = None

    @property
    def overdue(self) -> bool:
        """Whether the batch's deadline has passed."""
        return self._around.clock.monotonic() >= self._deadline

    @property
    def _may_wait(self) -> bool:
        """Whether it keeps its delivery while its model accepts no calls."""
        return self.from_waiting_queue or not self._around.makes_room

    def end(self, stop: JobStopped | ExecutorStopping) -> None:
        """Make it end soon; a stopped job outweighs a leaving executor. Idempotent, and too late once it has ended."""
        if self.phase is Phase.ENDED:
            return
        first = self.stop is None
        if first or isinstance(stop, JobStopped):
            self.stop = stop
        if first and self._begun and self.runner is not None:
            self.runner.cancel()

    def ended(
        self, status: ExecutionStatus, *, error: ErrorInfo | None = None, answer: ModelAnswer | None = None
    ) -> Ended:
        """The outcome as of now, with what the last call left behind."""
        called = self._trace is not None
        return Ended(
            status=status,
            ended_at=self._around.clock.now(),
            answer=answer,
            error=error,
            trace=self._trace,
            first_byte_s=self._first_byte_s if called else None,
            total_s=self._around.clock.monotonic() - self._started if called else None,
        )

    def overdue_outcome(self) -> Ended:
        """The deadline struck while no call was running."""
        value = self.task.limits.batch_deadline_s
        waited = f"batch_deadline_s of {value:g} s struck while the execution waited for its call"
        message = (waited + self._cause())[:2000]
        log.warning("cut off", limit="batch_deadline_s", value_s=value, execution_id=str(self.task.execution_id))
        error = ErrorInfo(error_class="deadline", code=ErrorCode.BATCH_DEADLINE, message=message, retryable=False)
        return self.ended(ExecutionStatus.TIMED_OUT, error=error)

    def _cause(self) -> str:
        """Why the execution got no further before its batch's deadline, as far as is known."""
        last = next((attempt.error for attempt in reversed(self.attempts) if attempt.error is not None), None)
        if last is not None:
            return f"; the last attempt ended with: {last.message}"
        return "" if self._queue.trouble is None else f"; the model accepted no calls: {self._queue.trouble}"

    async def run(self) -> Outcome:
        """Do everything up to the outcome.

        Raises:
            asyncio.CancelledError: Somebody other than ``end`` cancelled the task.
        """
        self._begun = True
        try:
            if self.stop is not None:
                return self._stopped(self.stop)
            return await self._before_its_time() or await self._until_ended()
        except asyncio.CancelledError:
            if self.stop is None:
                raise
            return self._stopped(self.stop)

    async def _until_ended(self) -> Outcome:
        while not self._around.leaving():
            if self.overdue:
                return self.overdue_outcome()
            try:
                async with asyncio.timeout(self._patience_s()):
                    while not self._around.fenced():
                        await self._around.clock.sleep(FENCE_POLL_S)
                    permit = await self._queue.enter(may_wait=self._may_wait)
            except TimeoutError:
                return self._out_of_patience()
            if permit is None:
                return Moved()
            if not self._around.fenced():  # lost while waiting for the turn: a cancellation may have been missed
                self._queue.released(permit)
                continue
            self.phase = Phase.CALLING
            verdict = await self._attempt(permit)
            if isinstance(verdict, Ended):
                return verdict
            self.phase = Phase.WAITING
            if verdict > 0 and (left := await self._back_off(verdict)) is not None:
                return left
        return HandedBack()

    async def _before_its_time(self) -> Outcome | None:
        """Wait until the next call may start, when another executor moved the task while it backed off."""
        if self.task.not_before is None:
            return None
        return await self._back_off((self.task.not_before - self._around.clock.now()).total_seconds())

    async def _back_off(self, seconds: float) -> Outcome | None:
        """Wait before the next call; in the waiting queue, when that takes long and other models need the place."""
        if not self._may_wait and seconds > BACK_OFF_IN_PLACE_S:
            return Moved(not_before=self._around.clock.now() + timedelta(seconds=seconds))
        try:
            async with asyncio.timeout(self._patience_s()):
                await self._around.clock.sleep(seconds)
        except TimeoutError:
            return self._out_of_patience()
        return None

    async def _attempt(self, permit: Permit) -> Ended | float:
        """One call: the outcome, or how long to wait for the next one."""
        clock = self._around.clock
        started_at = clock.now()
        request = self._begin_call()
        assert self._trace is not None
        assert self._timer is not None
        try:
            async with self._timer:
                answer = await self._around.endpoint.call(request, self._trace)
        except EndpointError as error:
            return self._failed(permit, started_at, error)
        except asyncio.CancelledError:
            try:
                await asyncio.sleep(0)  # whoever else is aborted in the same moment goes first
            finally:
                self._queue.released(permit)
            self._record(started_at, AttemptOutcome.CANCELLED, None, self._trace.http_status)
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and self._timer.expired():
                return self._failed(permit, started_at, self._cut_off())
            log.exception("the endpoint broke its contract", execution_id=str(self.task.execution_id))
            message = storable(f"{type(error).__name__}: {error}"[:1500])
            info = ErrorInfo(error_class="internal", code=ErrorCode.UNEXPECTED_ERROR, message=message, retryable=False)
            return self._failed(permit, started_at, EndpointError(info))
        self._queue.answered(permit)
        self._record(started_at, AttemptOutcome.OK, None, self._trace.http_status)
        return self.ended(ExecutionStatus.COMPLETED, answer=answer)

    def _begin_call(self) -> ModelRequest:
        """Start the clocks of one attempt and say what to ask."""
        around, task = self._around, self.task
        assert self.model is not None
        self._tries += 1
        self._started = around.clock.monotonic()
        self._first_byte_s = None
        self._cold_s = cold_budget_s(
            task.limits, around.cold_start_s, warm=around.cold_start_s == 0 or self._queue.breaker.warm(self._started)
        )
        self._limit = before_first_byte(
            task.limits,
            cold_s=self._cold_s,
            remaining_s=self._deadline - self._started,
            reports_first_byte=around.endpoint.reports_first_byte,
        )
        self._timer = asyncio.timeout(max(0.0, self._limit.strikes_s))
        self._trace = CallTrace(on_first_byte=self._on_first_byte)
        return ModelRequest(
            execution_id=task.execution_id,
            attempt=self._tries,
            model=task.model,
            upstream=self.model.upstream,
            revision=self.model.revision,
            messages=task.messages,
            parameters=task.parameters,
        )

    def _on_first_byte(self) -> None:
        """The answer has begun: from here on its own limits apply."""
        elapsed_s = self._around.clock.monotonic() - self._started
        self._first_byte_s = elapsed_s
        limit = after_first_byte(
            self.task.limits,
            cold_s=self._cold_s,
            first_byte_s=elapsed_s,
            remaining_s=self._deadline - self._started,
        )
        if self._timer is not None and self._limit is not None and limit.strikes_s != self._limit.strikes_s:
            self._timer.reschedule(asyncio.get_running_loop().time() + limit.strikes_s - elapsed_s)
        self._limit = limit

    def _cut_off(self) -> EndpointError:
        assert self._limit is not None
        limit, elapsed_s = self._limit, self._around.clock.monotonic() - self._started
        deadline = limit.name == "batch_deadline_s"
        log.warning(
            "cut off",
            limit=limit.name,
            value_s=limit.value_s,
            elapsed_s=round(elapsed_s, 3),
            execution_id=str(self.task.execution_id),
            job_id=self.task.batch.job_id,
        )
        info = ErrorInfo(
            error_class="deadline" if deadline else "timeout",
            code=limit.name,
            message=(limit.message(elapsed_s) + (self._cause() if deadline else ""))[:2000],
            retryable=not deadline,
        )
        return EndpointError(info, http_status=self._trace.http_status if self._trace else None)

    def _failed(self, permit: Permit, started_at: datetime, error: EndpointError) -> Ended | float:
        """Record a failed attempt and decide what follows."""
        around, info = self._around, error.info
        timed_out = info.error_class in ("timeout", "deadline")
        self._record(
            started_at, AttemptOutcome.TIMED_OUT if timed_out else AttemptOutcome.ERROR, info, error.http_status
        )
        if error.not_ready:
            state: EndpointState = "throttled" if info.error_class == "rate_limited" else "unavailable"
            self._queue.refused(permit, state=state, retry_after_s=error.retry_after_s, reason=info.message)
            return 0.0
        if error.http_status is not None and error.http_status < 500 and not timed_out:
            self._queue.answered(permit)
        else:
            self._queue.failed(permit, info.message)
        self._burned += 1
        decision = decide(
            around.retry,
            info,
            burned=self._burned,
            max_attempts=self.task.limits.max_attempts,
            remaining_s=self._deadline - around.clock.monotonic(),
            retry_after_s=error.retry_after_s,
            draw=around.random.random(),
        )
        if decision.delay_s is not None:
            return max(decision.delay_s, 0.0)
        return self.ended(ExecutionStatus.TIMED_OUT if timed_out else ExecutionStatus.FAILED, error=info)

    def _record(
        self, started_at: datetime, outcome: AttemptOutcome, error: ErrorInfo | None, http_status: int | None
    ) -> None:
        call_id = self._trace.provider_call_id if self._trace else None
        attempt = Attempt(
            number=self._tries,
            started_at=started_at,
            duration_s=max(0.0, self._around.clock.monotonic() - self._started),
            outcome=outcome,
            http_status=http_status,
            error=error,
            provider_call_id=storable(call_id)[:2000] if call_id else None,
        )
        if len(self.attempts) >= MAX_RECORDED_ATTEMPTS and not _burns(self.attempts[-1]):
            self.attempts[-1] = attempt
        else:
            self.attempts.append(attempt)

    def _patience_s(self) -> float:
        return max(0.0, min(self._deadline, self._hold_until) - self._around.clock.monotonic())

    def _out_of_patience(self) -> Outcome:
        return self.overdue_outcome() if self._deadline <= self._hold_until else HandedBack()

    def _stopped(self, stop: JobStopped | ExecutorStopping) -> Outcome:
        match stop:
            case ExecutorStopping():
                return HandedBack()
            case JobStopped(reason):
                deadline = reason.code == "job_deadline"
                error = ErrorInfo(
                    error_class="deadline" if deadline else "cancelled",
                    code=reason.code,
                    message=reason.message,
                    retryable=False,
                )
                return self.ended(ExecutionStatus.TIMED_OUT if deadline else ExecutionStatus.CANCELLED, error=error)


def _burns(attempt: Attempt) -> bool:
    """Whether an attempt counts against ``max_attempts``: refused calls and aborted ones do not."""
    failed = attempt.outcome in (AttemptOutcome.ERROR, AttemptOutcome.TIMED_OUT)
    return failed and not (attempt.error is not None and attempt.error.error_class in REFUSALS)
