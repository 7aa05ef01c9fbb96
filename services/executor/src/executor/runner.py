"""The registry of an executor: which task is where, from its delivery until its fact is published and it is acked.

Invariants. Every delivery taken is in exactly one place: held here, or on its way out in the publisher. A fact is
published before its delivery is acked. The calls in flight never exceed the budget. Bus callbacks only touch the
registry: no call to a model runs inside one, so that a lost channel cancels none.
"""

import asyncio
import functools
from collections.abc import Mapping
from random import Random
from uuid import UUID

from pydantic import ValidationError

from executor.cancellations import Cancellations
from executor.endpoints.port import Endpoint
from executor.execution import (
    Ended,
    Execution,
    ExecutorStopping,
    HandedBack,
    JobStopped,
    Outcome,
    Phase,
    Surroundings,
)
from executor.facts import Author, broken_fact, build_fact
from executor.gate import EndpointState, Gate, Turnstile
from executor.holdings import Holdings
from executor.publishing import Parcel, Publisher
from executor.recent import RecentFacts
from executor.retry import RetryPolicy
from executor.settings import Settings
from parallax.bus.port import Bus, Consumption, Delivery, Following
from parallax.catalog import Catalog, Model
from parallax.clock import Clock
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, FenceReading, Message, RunningExecution
from parallax.contracts.outcomes import ErrorInfo, ExecutionStatus, Reason
from parallax.contracts.plan import BatchRef
from parallax.contracts.routing import CANCELLATIONS, executions
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

ABORT_S = 10.0
"""How long aborts at the provider may take when the executor leaves."""
DRAIN_S = 10.0
"""How long publishing may take when the executor leaves; what is not out by then is delivered again elsewhere."""


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
        self._turnstiles = {name: self._turnstile(name) for name in self._models}
        self._consumption: Consumption | None = None
        self._following: Following | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._around = Surroundings(
            endpoint=endpoint,
            clock=clock,
            random=random,
            slots=asyncio.Semaphore(settings.budget),
            retry=RetryPolicy(settings.retry_base_s, settings.retry_cap_s),
            hand_back_after_s=settings.hand_back_after_s,
            cold_start_s=catalog.regions[settings.region].cold_start_s,
            fenced=lambda: self._following is not None and self._following.live,
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
            self._consumption is not None
            and self._consumption.live
            and self._following is not None
            and self._following.live
        )

    @property
    def endpoint_state(self) -> EndpointState:
        """The worst state of any model's gate."""
        states = {turnstile.gate.state for turnstile in self._turnstiles.values()}
        return "unavailable" if "unavailable" in states else "throttled" if "throttled" in states else "ready"

    def running(self) -> tuple[RunningExecution, ...]:
        """Every execution held here: results takes none of them for missing."""
        return tuple(
            RunningExecution(
                execution_id=held.task.execution_id,
                job_id=held.task.batch.job_id,
                question_id=held.task.question_id,
                model_id=held.task.model_id,
                since=held.since,
            )
            for held in self._held.values()
        )

    def fences(self) -> tuple[FenceReading, ...]:
        """Answers to inspections. None while it is leaving: what arrives then is held without being looked at."""
        if self.stopping:
            return ()
        held = [(held.task.execution_id, held.task.batch) for held in self._held.values()]
        return self._holdings.answers([*held, *self._handing_back.items()])

    async def start(self) -> None:
        """Read the cancellation stream up to now (the fence), then take tasks.

        Raises:
            UnavailableError: The bus cannot be reached.
        """
        self._publishing = asyncio.create_task(self._publisher.run(), name="publisher")
        self._following = await self._bus.follow(CANCELLATIONS, self.cancellations.take)
        self._consumption = await self._bus.consume(
            executions(self._settings.region), prefetch=self._settings.budget, handler=self.deliver
        )

    def deliver(self, delivery: Delivery) -> None:
        """Take a task. Idempotent by execution id: what runs is not run again, what ended is answered from memory."""
        if self.stopping:
            return  # stays unsettled: it goes back when the consumption closes
        try:
            task = ExecutionTask.model_validate_json(delivery.body)
        except ValidationError as error:
            self._reject(delivery, f"invalid execution task: {error.error_count()} problems; first: {_first(error)}")
            return
        if task.region != self._settings.region:
            self._reject(delivery, f"wrong region: a task for {task.region} arrived in {self._settings.region}")
        elif (held := self._held.get(task.execution_id)) is not None:
            held.deliveries.append(delivery)
        elif (fact := self._recent.get(task.execution_id)) is not None:
            self._publisher.put(Parcel([delivery], make=lambda: fact, settled=self._left))
        elif task.batch.job_id in self.cancellations:
            self._publisher.put(Parcel([delivery]))
        else:
            self._take(task, delivery)

    async def stop(self) -> None:
        """Leave: take nothing more, let calls end within the grace, abort and hand back the rest, settle, close."""
        self.stopping = True
        if self._consumption is not None:
            await self._consumption.stop()
        for held in list(self._held.values()):
            if held.phase is Phase.WAITING:
                held.end(ExecutorStopping())
        await self._ended_within(self._settings.grace_s)
        for held in list(self._held.values()):
            held.end(ExecutorStopping())
        await self._ended_within(ABORT_S)
        if not await self._publisher.drained(DRAIN_S):
            log.warning("left before everything was published; unsettled tasks are delivered again elsewhere")
        for turnstile in self._turnstiles.values():
            await turnstile.close()
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        if self._consumption is not None:
            await self._consumption.close()
        if self._following is not None:
            await self._following.close()

    def _take(self, task: ExecutionTask, delivery: Delivery) -> None:
        model = self._models.get(task.model)
        turnstile = self._turnstiles.get(task.model) or self._turnstile(task.model)
        held = Execution(task, delivery, model, turnstile, self._around)
        self._held[task.execution_id] = held
        if model is None:
            known = ", ".join(self._models) or "none"
            message = f"model {task.model!r} does not run in {task.region}; models there: {known}"[:2000]
            error = ErrorInfo(error_class="not_found", code="unknown_model", message=message, retryable=False)
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
            info = ErrorInfo(error_class="internal", code=type(error).__name__, message=message, retryable=False)
            outcome = held.ended(ExecutionStatus.FAILED, error=info)
        self._ended(held, outcome)

    def _ended(self, held: Execution, outcome: Outcome) -> None:
        held.phase = Phase.ENDED
        match outcome:
            case HandedBack():
                # From here on a delivery of this task is a new task: it may be the very one that is handed back.
                del self._held[held.task.execution_id]
                log.info("handed back", execution_id=str(held.task.execution_id), attempts=len(held.attempts))
                task = held.task.model_copy(update={"prior_attempts": tuple(held.attempts)})
                self._handing_back[task.execution_id] = task.batch
                self._publisher.put(Parcel(held.deliveries, make=lambda: task, settled=self._left))
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

    def _turnstile(self, model: str) -> Turnstile:
        """One gate per model: each has containers of its own, and one that is cold says nothing about the others."""
        gate = Gate(RetryPolicy(self._settings.gate_base_s, self._settings.gate_cap_s), self._settings.budget)
        return Turnstile(gate, self._clock, self._random, functools.partial(self._gate_changed, model))

    def _gate_changed(self, model: str, state: EndpointState, reason: str) -> None:
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


def _first(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"[:500]
