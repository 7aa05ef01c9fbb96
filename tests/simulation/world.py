"""The simulated installation: its broker, its services, its users, and the scheduler that decides what happens next."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from random import Random
from typing import Any, Final, cast
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

import dispatcher.app
import executor.app
import results.app
from dispatcher.pace import Pace
from dispatcher.settings import Settings as DispatcherSettings
from executor.settings import Settings as ExecutorSettings
from parallax.bus.memory import Choice, MemoryBroker, MemoryBus
from parallax.catalog import Catalog, Model, Region
from parallax.contracts.messages import (
    BatchCompleted,
    CancelJob,
    ExecutionFinished,
    ExecutionTask,
    JobCancelled,
    JobFinished,
    Message,
    SubmitJob,
    decode,
)
from parallax.contracts.routing import CANCELLATIONS
from parallax.health import Health
from results.settings import Settings as ResultsSettings
from tests.simulation.disturbances import Disturbances
from tests.simulation.endpoint import Answer, Call, SimEndpoint
from tests.simulation.fairness import Throttling
from tests.simulation.faults import Faults
from tests.simulation.loop import SimClock, VirtualLoop
from tests.simulation.nodes import OWNER, Node, ViolationError
from tests.simulation.workload import HEALTHY, REGIONS, THROTTLED, Planned, SimJob

CATALOG: Final = Catalog(
    regions={region: Region(name=region, endpoint="simulated://", simulated=True) for region in REGIONS},
    models={name: Model(upstream=name, regions=REGIONS) for name in (HEALTHY, THROTTLED)},
)
PRODUCTION_SHARE: Final = 0.6
"""Of the seeds, with the timings that installations have."""
PRODUCTION: Final = DispatcherSettings(max_active_jobs=2, prefetch=4)
HASTY: Final = replace(PRODUCTION, reconcile_after_s=20.0, timer_s=2.0, grace_s=5.0)
STUCK_SPINS: Final = 20_000
"""Rounds of the event loop without coming to rest after which the simulation gives up."""


class World:
    """One run. Everything random comes from ``random``."""

    def __init__(
        self, loop: VirtualLoop, engine: AsyncEngine, random: Random, jobs: Sequence[SimJob], faults: Faults
    ) -> None:
        self.loop = loop
        self.engine = engine
        self.random = random
        self.faults = faults
        self.clock = SimClock(loop)
        self.broker = MemoryBroker(REGIONS, clock=self.clock, wake=lambda _: None)
        self.users = MemoryBus(self.broker)
        self.jobs = {job.job_id: job for job in jobs}
        self.planned: dict[UUID, Planned] = {i: p for job in jobs for i, p in job.executions().items()}
        self.batch_sizes = Counter((p.job_id, p.lane, p.index) for p in self.planned.values())
        hurried = random.random() >= PRODUCTION_SHARE
        pace = Pace(chunk=random.choice((2, 5, 256)), direct=random.choice((2, 6, 100)))
        self.dispatcher = replace(HASTY if hurried else PRODUCTION, pace=pace)
        self.heartbeat_s = 1.0 if hurried else 5.0
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.pending: list[Call] = []
        self.full: set[tuple[str, str, int]] = set()
        """Batches that results has called complete."""
        self.answered: set[UUID] = set()
        """Executions whose fact was published, or whose task an executor handed back."""
        self.answered_by: set[tuple[str, UUID]] = set()
        """Executors and the executions whose facts they published."""
        self.unchecked: list[BatchCompleted] = []
        self.finished: dict[str, list[JobFinished]] = {}
        self.aborted: dict[str, str] = {}
        """Why jobs were told to have been stopped."""
        self.owners: dict[UUID, Node] = {}
        """The executor that called first, unless it handed the task back."""
        self.excused: set[UUID] = set()
        """Executions that the broker delivered twice, or whose facts it lost: those may be called twice."""
        self.wakers: set[asyncio.Task[None]] = set()
        self.transactions: set[asyncio.Task[Any]] = set()
        """Tasks inside a transaction, or waiting for the connection."""
        self.holder: asyncio.Task[Any] | None = None
        """The task that has the connection."""
        self.frozen: set[asyncio.Task[Any]] = set()
        """Tasks of dying services that came to their next side effect."""
        self.stir = asyncio.Event()
        self.story: list[str] = []
        self.digest = hashlib.sha256()
        self._born = 0
        self.disturbances = Disturbances(self)
        self.violation: str | None = None
        self.throttling = Throttling(random)

    # --- telling

    def tell(self, what: str, node: Node | None = None) -> None:
        """Add a line to the story."""
        line = f"{self.loop.time():9.2f} {node.name if node else '-':<14} {what}"
        self.story.append(line)
        self.digest.update(line.encode())

    def published(self, node: Node, message: Message) -> None:
        """A service publishes a message."""
        self.tell(f"publishes {message.kind} {brief(message)}", node)
        if isinstance(message, BatchCompleted):
            self.unchecked.append(message)
            self.full.add((message.batch.job_id, message.batch.lane, message.batch.question_index))
        if isinstance(message, JobFinished):
            self.finished.setdefault(message.job_id, []).append(message)
        if isinstance(message, JobFinished | JobCancelled):
            self._check_told(message)
        if isinstance(message, ExecutionFinished) or (isinstance(message, ExecutionTask) and node.region is not None):
            self.answered.add(message.execution_id)
        if isinstance(message, ExecutionTask) and self.owners.get(message.execution_id) is node:
            del self.owners[message.execution_id]
        if isinstance(message, ExecutionFinished) and node.region is not None:
            self.answered_by.add((node.name, message.execution_id))

    def _check_told(self, message: JobFinished | JobCancelled) -> None:
        """What users are told never moves backwards: a job that was stopped ends stopped, and for that reason."""
        code = message.reason.code
        if isinstance(message, JobCancelled):
            self.aborted[message.job_id] = code
        ends = {finished.reason.code for finished in self.finished.get(message.job_id, ())}
        if ends - {self.aborted.get(message.job_id, code)} or len(ends) > 1:
            self.violated(f"{message.job_id} is told to be {self.aborted.get(message.job_id)} and {sorted(ends)}")

    def excuse(self, task: bytes) -> None:
        """The broker may have delivered a task to two executors."""
        try:
            self.excused.add(ExecutionTask.model_validate_json(task).execution_id)
        except ValidationError:
            return

    def violated(self, what: str) -> None:
        """Something happened inside a service that must not: told at the next step, for services survive errors."""
        self.violation = self.violation or what

    def task_acked(self, node: Node, body: bytes) -> None:
        """An executor lets go of a task for good."""
        task = ExecutionTask.model_validate_json(body)
        if task.execution_id not in self.answered and task.batch.job_id not in node.cancelled_jobs:
            self.violated(f"{node.name} acks the task of {task.execution_id} before its fact is published")

    def call_started(self, call: Call) -> None:
        """An executor calls its endpoint: the moment of most of the promises."""
        self.calls.append(call)
        self.pending.append(call)
        node, planned = call.node, self.planned.get(call.execution_id)
        if planned is None:
            self.violated(f"{node.name} calls for an execution that no job has: {call.execution_id}")
            return
        self.tell(f"calls {planned.job_id} {planned.lane}/{planned.index} as call {call.number}", node)
        owner = self.owners.setdefault(call.execution_id, node)
        if owner is not node and call.execution_id not in self.excused:
            self.violated(f"{node.name} calls for {planned.job_id} what {owner.name} has called: {call.execution_id}")
        if planned.region != node.region:
            self.violated(f"{node.name} of {node.region} runs an execution of {planned.region}")
        if not node.fenced:
            self.violated(f"{node.name} starts work before it has read the cancellation stream")
        if sum(1 for other in self.pending if other.node is node) > node.budget:
            self.violated(f"{node.name} has more calls in flight than its budget of {node.budget}")
        if (node.name, call.execution_id) in self.answered_by:
            self.violated(f"{node.name} calls again for an execution that it has answered: {call.execution_id}")
        if any(
            other is not call and (other.node, other.execution_id) == (node, call.execution_id)
            for other in self.pending
        ):
            self.violated(f"{node.name} makes two calls at once for execution {call.execution_id}")
        if planned.job_id in node.cancelled_jobs:
            self.violated(f"{node.name} starts work of {planned.job_id}, which it knows to be cancelled")
        for job_id, lane, index in self.batch_sizes:
            earlier = (job_id, lane) == (planned.job_id, planned.lane) and index < planned.index
            if earlier and (job_id, lane, index) not in self.full:
                self.violated(f"batch {planned.index} of {job_id}/{lane} runs before batch {index} was full")

    def cancellations(self) -> set[str]:
        """The jobs in the cancellation stream."""
        entries = self.broker._streams[CANCELLATIONS.name].entries
        messages = (decode(entry.body) for entry in entries)
        return {message.job_id for message in messages if isinstance(message, JobCancelled)}

    def check(self) -> None:
        """Nothing forbidden has happened, and no call goes on once its executor knows that the job was stopped."""
        if self.violation is not None:
            raise ViolationError(self.violation)
        for call in self.pending:
            job_id = self.planned[call.execution_id].job_id
            if job_id in call.node.cancelled_jobs and not (call.node.dying or call.node.ended):
                raise ViolationError(f"{call.node.name} goes on with call {call.number} of the stopped {job_id}")

    # --- services

    def spawn(self, kind: str) -> Node:
        """Start a replica of a service: ``dispatcher``, ``results``, or ``executor-REGION``."""
        self._born += 1
        region = kind.removeprefix("executor-") if kind.startswith("executor-") else None
        node = Node(self, f"{kind}.{self._born}", region, budget=self.random.choice((2, 3, 5)))
        self.nodes.append(node)
        self.tell("starts", node)
        node.start(self._running(kind))
        return node

    def _running(self, kind: str) -> Callable[[Node], AbstractAsyncContextManager[Health]]:
        if kind == "dispatcher":
            return lambda node: dispatcher.app.running(
                bus=node.bus,
                engine=cast("AsyncEngine", node.engine),
                catalog=CATALOG,
                clock=self.clock,
                settings=self.dispatcher,
            )
        if kind == "results":
            return lambda node: results.app.running(
                bus=node.bus, engine=cast("AsyncEngine", node.engine), clock=self.clock, settings=ResultsSettings()
            )
        return self._executor

    def _executor(self, node: Node) -> AbstractAsyncContextManager[Health]:
        assert node.region is not None
        settings = ExecutorSettings(
            region=node.region,
            executor_id=node.name,
            budget=node.budget,
            grace_s=5.0,
            hand_back_after_s=90.0,
            heartbeat_s=self.heartbeat_s,
        )
        return executor.app.running(
            bus=node.bus,
            catalog=CATALOG,
            endpoint=SimEndpoint(node),
            clock=self.clock,
            settings=settings,
            random=Random(self.random.random()),
        )

    def living(self, kind: str) -> list[Node]:
        """The replicas of a service that are not gone."""
        return [node for node in self.nodes if not node.ended and not node.dying and node.name.startswith(f"{kind}.")]

    async def bury(self) -> None:
        """Carry out crashes: nothing of a dying service may go on."""
        for node in self.nodes:
            if node.dying and not node.dead:
                node.dead = True
                self.tell("is dead", node)
                node.bus.excuse()
                await node.bus.close()
                await self.end_tasks(node)

    async def end_tasks(self, node: Node) -> None:
        """Cancel every task of a service until none is left."""
        for _ in range(100):
            if not node.tasks:
                return
            for task in node.tasks - self.transactions:
                task.cancel()
            for task in node.tasks & self.transactions:
                task.cancel()
                while task in self.transactions:  # its rollback must not be cancelled too
                    self.stir.clear()
                    await self.stir.wait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        raise RuntimeError(f"tasks of {node.name} survive their cancellation: {node.tasks}")

    # --- coming to rest

    async def settle(self) -> None:
        """Run until nothing can happen without the scheduler."""
        for _ in range(STUCK_SPINS):
            await asyncio.sleep(0)
            self._check_roots()
            dying = [node for node in self.nodes if node.dying and not node.dead]
            moving = self.holder not in self.frozen and bool(self.transactions - self.frozen)
            if dying and not moving:
                await self.bury()
            elif moving:
                self.stir.clear()
                await self.stir.wait()
            elif self.loop.quiet:
                return
        raise RuntimeError("the simulation does not come to rest")

    def _check_roots(self) -> None:
        for node in self.nodes:
            if node.root is not None and node.root.done() and not node.dead and not node.root.cancelled():
                error = node.root.exception()
                if error is not None:
                    node.dead = True
                    self.tell(f"gave up: {error}", node)

    # --- what the scheduler may do

    def deliver(self, choice: Choice) -> None:
        """Deliver a message."""
        self.digest.update(choice.queue.encode())
        choice.deliver()

    def answer(self, call: Call) -> None:
        """End a call at the provider."""
        weights = {
            Answer.OK: 80,
            Answer.EMPTY: 4,
            Answer.SERVER_ERROR: 8,
            Answer.BAD_REQUEST: 3,
            Answer.NOT_READY: 5,
        }
        answer = Answer.OK
        if not self.faults.calm:
            answer = self.random.choices(list(weights), weights=list(weights.values()))[0]
        if call.model == THROTTLED and self.throttling.refuses(self.loop.time()):
            answer = Answer.THROTTLED
        self.tell(f"answers call {call.number}: {answer.value}")
        if not call.done.done():
            call.done.set_result(answer)

    def pass_time(self, *, at_most: float) -> None:
        """Let time pass to the next timer, but not further than ``at_most`` seconds."""
        due = self.loop.next_timer()
        self.loop.advance_to(min(due if due is not None else self.loop.time() + at_most, self.loop.time() + at_most))

    async def submit(self, job: SimJob) -> None:
        """A user publishes a job."""
        self.tell(f"submits {job.job_id}: {len(job.executions())} executions")
        await self.users.publish(SubmitJob(job_id=job.job_id, job=job.spec))

    async def cancel(self, job: SimJob) -> None:
        """A user cancels a job."""
        self.tell(f"cancels {job.job_id}")
        await self.users.publish(CancelJob(job_id=job.job_id))


def task_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Makes tasks that belong to the service whose code makes them."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    context = options.get("context")
    owner = OWNER.get() if context is None else context.get(OWNER)
    if owner is not None:
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task


def brief(message: Message) -> str:
    """What of a message makes its line in a story worth reading."""
    batch = getattr(message, "batch", None)
    batch = getattr(batch, "ref", batch)
    parts = [f"{batch.job_id} {batch.lane}/{batch.question_index}"] if batch else []
    parts += [
        str(getattr(message, name))
        for name in ("job_id", "region", "model_id", "sample", "status", "outcome")
        if hasattr(message, name)
    ]
    return " ".join(parts)
