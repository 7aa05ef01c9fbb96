"""The registry of an executor: which task is where, from its delivery until its fact is published and it is acked.

Invariants. Every delivery taken is in exactly one place: held here, or on its way out in the publisher. A fact is
published before its delivery is acked. The calls in flight never exceed the budget. A task from the region's queue is
called, waits for a slot, or is moved to the waiting queue of its model: it never waits here for a model that does not
accept calls, because the region's other models need its delivery. Bus callbacks only touch the registry: no call to a
model runs inside one, so that a lost channel cancels none.
"""

import asyncio
import functools
from collections.abc import Mapping
from datetime import datetime
from random import Random
from uuid import UUID

from pydantic import ValidationError

from executor.admission import BreakerQueue, Slots
from executor.cancellations import Cancellations
from executor.circuit_breaker import CircuitBreaker, EndpointState
from executor.endpoints.port import Endpoint
from executor.error_codes import ErrorCode
from executor.execution import Execution, Phase, Surroundings
from executor.facts import Author, broken_fact, build_fact
from executor.holdings import Holdings
from executor.outcome import Ended, ExecutorStopping, HandedBack, JobStopped, Moved, Outcome
from executor.publishing import Parcel, Publisher
from executor.recent import RecentFacts
from executor.retry import RetryPolicy
from executor.settings import Settings, waiting_prefetch
from parallax.bus.port import Bus, Consumption, Delivery, Following
from parallax.catalog import Catalog, Model
from parallax.clock import Clock
from parallax.contracts.heartbeat import FenceReading, RunningExecution
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, Message, WaitingTask
from parallax.contracts.model import read
from parallax.contracts.outcomes import ErrorInfo, ExecutionStatus, Reason
from parallax.contracts.plan import BatchRef
from parallax.contracts.routing import CANCELLATIONS, executions, waiting
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

ABORT_S = 10.0
"""How long aborts at the provider may take when the executor leaves."""
DRAIN_S = 10.0
"""How long publishing may take when the executor leaves; what is not out by then is delivered again elsewhere."""

LISTED_AFTER_HAND_BACK_S = 60.0
"""How long heartbeats list an execution that was handed back: longer than any inspection of a batch takes."""


class Runner:
    """Runs the tasks of one region against its endpoint."""

    def __init__(
        self,
        *,
        bus: Bus,
        catalog: Catalog,
        endpoint: Endpoint,
        clock: Clock,
        settings: Settings,
        random: Random,
        versions: Mapping[str, str],
    ) -> None:
        self.fence_read = asyncio.Event()
        """Set when somebody waits for a heartbeat."""
        self._holdings = Holdings(clock, settings.region, self.fence_read.set)
        self.cancellations = Cancellations(self._job_stopped, self._holdings.read)
        self.last_error: str | None = None
        self.stopping = False
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._random = random
        self._models: Mapping[str, Model] = catalog.models_in(settings.region)
        self._author = Author(settings.executor_id, endpoint.provider, {**versions, **endpoint.versions})
        self._publisher = Publisher(bus, clock)
        self._recent = RecentFacts(settings.recent_facts)
        self._held: dict[UUID, Execution] = {}
        self._handing_back: dict[UUID, BatchRef] = {}
        """Executions that are on their way back to a queue."""
        self._moving: dict[UUID, list[Delivery]] = {}
        """Deliveries from the region's queue of tasks that are being moved to a waiting queue."""
        self._slots = Slots(settings.budget)
        self._queues = {name: self._breaker_queue(name) for name in self._models}
        self._consumptions: list[Consumption] = []
        self._following: Following | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._around = Surroundings(
            endpoint=endpoint,
            clock=clock,
            random=random,
            retry=RetryPolicy(settings.retry_base_s, settings.retry_cap_s),
            hand_back_after_s=settings.hand_back_after_s,
            cold_start_s=catalog.regions[settings.region].cold_start_s,
            fenced=lambda: self._following is not None and self._following.live,
            makes_room=len(self._models) > 1,
            leaving=lambda: self.stopping,
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The models this executor serves, by catalog name."""
        return tuple(self._models)

    @property
    def live(self) -> bool:
        """Whether tasks and cancellations arrive right now."""
        return bool(
            len(self._consumptions) == 1 + len(self._models)
            and all(consumption.live for consumption in self._consumptions)
            and self._following is not None
            and self._following.live
        )

    @property
    def publishing(self) -> bool:
        """Whether facts get out: nothing else notices when the task that publishes them has died."""
        return self._publishing is not None and not self._publishing.done()

    @property
    def endpoint_state(self) -> EndpointState:
        """The worst state of any model."""
        states = {queue.breaker.endpoint_state for queue in self._queues.values()}
        return "unavailable" if "unavailable" in states else "throttled" if "throttled" in states else "ready"

    def running(self) -> tuple[RunningExecution, ...]:
        """Every execution held here, for people to look at."""
        return tuple(_listed(held) for held in self._held.values())

    def fences(self) -> tuple[FenceReading, ...]:
        """Answers to inspections. None while it is leaving: what arrives then is held without being looked at."""
        if self.stopping:
            return ()
        held = [(held.task.execution_id, held.task.batch) for held in self._held.values()]
        return self._holdings.answers([*held, *self._handing_back.items()])

    async def start(self) -> None:
        """Read the cancellation stream up to now (the fence), then take tasks: those that wait the longest first.

        Raises:
            UnavailableError: The bus cannot be reached.
        """
        self._publishing = asyncio.create_task(self._publisher.run(), name="publisher")
        self._following = await self._bus.follow(CANCELLATIONS, self.cancellations.take)
        region, budget = self._settings.region, self._settings.budget
        for model in self._models:
            consumption = await self._bus.consume(
                waiting(region, model), prefetch=waiting_prefetch(budget), handler=self.deliver_waiting
            )
            self._consumptions.append(consumption)
        self._consumptions.append(await self._bus.consume(executions(region), prefetch=budget, handler=self.deliver))

    def deliver(self, delivery: Delivery) -> None:
        """Take a task from the region's queue.

        Idempotent by execution id: what runs is not run again, what ended is answered from memory.
        """
        self._accept(delivery, from_waiting_queue=False)

    def deliver_waiting(self, delivery: Delivery) -> None:
        """Take a task from the waiting queue of a model; idempotent as ``deliver`` is."""
        self._accept(delivery, from_waiting_queue=True)

    async def stop(self) -> None:
        """Leave: take nothing more, let calls end within the grace, abort and hand back the rest, settle, close."""
        self.stopping = True
        for consumption in self._consumptions:
            await consumption.stop()
        for held in list(self._held.values()):
            if held.phase is Phase.WAITING:
                held.end(ExecutorStopping())
        await self._ended_within(self._settings.grace_s)
        for held in list(self._held.values()):
            held.end(ExecutorStopping())
        await self._ended_within(ABORT_S)
        if not (self.publishing and await self._publisher.drained(DRAIN_S)):
            log.warning("left before everything was published; unsettled tasks are delivered again elsewhere")
        for queue in self._queues.values():
            await queue.close()
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        for consumption in self._consumptions:
            await consumption.close()
        if self._following is not None:
            await self._following.close()

    def _accept(self, delivery: Delivery, *, from_waiting_queue: bool) -> None:
        if self.stopping:
            return  # stays unsettled: it goes back when the consumption closes
        try:
            task = read(ExecutionTask, delivery.body)
        except ValidationError as error:
            self._reject(delivery, f"invalid execution task: {error.error_count()} problems; first: {_first(error)}")
            return
        if task.region != self._settings.region:
            self._reject(delivery, f"wrong region: a task for {task.region} arrived in {self._settings.region}")
        elif (held := self._held.get(task.execution_id)) is not None:
            self._accept_again(held, delivery, from_waiting_queue=from_waiting_queue)
        elif not from_waiting_queue and (moving := self._moving.get(task.execution_id)) is not None:
            moving.append(delivery)
        elif (fact := self._recent.get(task.execution_id)) is not None:
            self._publisher.put(Parcel([delivery], make=lambda: fact, settled=self._left))
        elif task.batch.job_id in self.cancellations:
            self._publisher.put(Parcel([delivery]))
        else:
            self._take(task, delivery, from_waiting_queue=from_waiting_queue)

    def _accept_again(self, held: Execution, delivery: Delivery, *, from_waiting_queue: bool) -> None:
        """Settle a repeated delivery together with the first one.

        Only the original of a task that was moved is settled at once: its copy, which is held here, stands for it, and
        kept until the copy is done it would take the place of another model's task.
        """
        if held.from_waiting_queue and not from_waiting_queue and held.phase is not Phase.ENDED:
            self._publisher.put(Parcel([delivery]))
        else:
            held.deliveries.append(delivery)

    def _take(self, task: ExecutionTask, delivery: Delivery, *, from_waiting_queue: bool) -> None:
        model = self._models.get(task.model)
        queue = self._queues.get(task.model) or self._breaker_queue(task.model)
        held = Execution(task, delivery, model, queue, self._around, from_waiting_queue=from_waiting_queue)
        self._held[task.execution_id] = held
        if model is None:
            known = ", ".join(self._models) or "none"
            message = f"model {task.model!r} does not run in {task.region}; models there: {known}"[:2000]
            error = ErrorInfo(error_class="not_found", code=ErrorCode.UNKNOWN_MODEL, message=message, retryable=False)
            self._ended(held, held.ended(ExecutionStatus.FAILED, error=error))
        elif held.overdue:
            self._ended(held, held.overdue_outcome())
        else:
            held.runner = asyncio.create_task(self._drive(held))

    async def _drive(self, held: Execution) -> None:
        try:
            outcome = await held.run()
        except Exception as error:
            log.exception("an execution broke", execution_id=str(held.task.execution_id))
            message = storable(f"{type(error).__name__}: {error}"[:1500])
            info = ErrorInfo(error_class="internal", code=ErrorCode.UNEXPECTED_ERROR, message=message, retryable=False)
            outcome = held.ended(ExecutionStatus.FAILED, error=info)
        self._ended(held, outcome)

    def _ended(self, held: Execution, outcome: Outcome) -> None:
        held.phase = Phase.ENDED
        match outcome:
            case HandedBack():
                # From here on a delivery of this task is a new task: it may be the very one that is handed back.
                self._handed_back(held.task.execution_id)
                log.info("handed back", execution_id=str(held.task.execution_id), attempts=len(held.attempts))
                task = held.task.model_copy(update={"prior_attempts": tuple(held.attempts), "not_before": None})
                self._publisher.put(Parcel(held.deliveries, make=lambda: task, settled=self._left))
            case Moved(not_before):
                self._handed_back(held.task.execution_id)
                self._move(held, not_before)
            case Ended():
                if outcome.error is not None and outcome.error.error_class != "cancelled":
                    self.last_error = outcome.error.message
                self._publisher.put(
                    Parcel(
                        held.deliveries,
                        make=functools.partial(self._fact, held, outcome),
                        settled=self._settled,
                    )
                )

    def _move(self, held: Execution, not_before: datetime | None) -> None:
        """Publish the task to the waiting queue of its model. From now on the copy there is the task."""
        execution_id = held.task.execution_id
        news = {"prior_attempts": tuple(held.attempts), "not_before": not_before}
        task = WaitingTask.model_validate({**dict(held.task), **news})
        self._moving[execution_id] = held.deliveries

        def settled(message: Message | None) -> None:
            self._moving.pop(execution_id, None)
            self._left(message)

        self._publisher.put(Parcel(held.deliveries, make=lambda: task, settled=settled))

    def _handed_back(self, execution_id: UUID) -> None:
        """Hold it no more; until it is in a queue, and for a while after, it is listed for inspections all the same."""
        self._handing_back[execution_id] = self._held.pop(execution_id).task.batch

    def _fact(self, held: Execution, ended: Ended) -> ExecutionFinished:
        try:
            return build_fact(held, ended, self._author)
        except ValidationError as error:
            log.exception("a fact could not be built", execution_id=str(held.task.execution_id))
            return broken_fact(held, ended, error)

    def _settled(self, message: Message | None) -> None:
        assert isinstance(message, ExecutionFinished)
        del self._held[message.execution_id]
        self._recent.add(message)
        self._left(message)

    def _left(self, message: Message | None) -> None:
        assert isinstance(message, ExecutionFinished | ExecutionTask)
        self._handing_back.pop(message.execution_id, None)
        self._holdings.left(message.execution_id, message.batch)

    def _job_stopped(self, job_id: str, reason: Reason) -> None:
        """Abort every execution of the job: nothing else happens before the streams are closed."""
        for held in self._held.values():
            if held.task.batch.job_id == job_id:
                held.end(JobStopped(reason))

    def _breaker_queue(self, model: str) -> BreakerQueue:
        """One breaker per model: each has containers of its own, and one that is cold says nothing about the others."""
        budget = self._settings.budget
        breaker = CircuitBreaker(
            RetryPolicy(self._settings.breaker_base_s, self._settings.breaker_cap_s),
            budget,
            slowest_pace=max(1, budget // 4) if len(self._models) > 1 else budget,
        )
        on_change = functools.partial(self._endpoint_changed, model)
        return BreakerQueue(breaker, self._slots, self._clock, self._random, on_change)

    def _endpoint_changed(self, model: str, state: EndpointState, reason: str) -> None:
        if state != "ready":
            self.last_error = reason[:2000]
        log.warning("endpoint changed", model=model, state=state, reason=reason[:500], region=self._settings.region)

    def _reject(self, delivery: Delivery, reason: str) -> None:
        log.warning("task rejected", reason=reason)
        self._publisher.put(Parcel([delivery], settle=lambda each: each.reject(reason)))

    async def _ended_within(self, timeout_s: float) -> None:
        runners = [held.runner for held in self._held.values() if held.runner is not None and not held.runner.done()]
        if runners:
            await asyncio.wait(runners, timeout=timeout_s)


def _listed(held: Execution) -> RunningExecution:
    return RunningExecution(
        execution_id=held.task.execution_id,
        job_id=held.task.batch.job_id,
        question_id=held.task.question_id,
        model_id=held.task.model_id,
        since=held.since,
        calling=held.phase is Phase.CALLING,
    )


def _first(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"[:500]
