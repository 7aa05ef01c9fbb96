"""Between the commit of a batch and its publication: crashes, stops, slow brokers, and the largest legal batch."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.handlers import Handlers
from dispatcher.pace import Pace
from dispatcher.progress import LEASE
from dispatcher.settings import Settings
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.bus.port import Bus
from parallax.contracts.job import MAX_BATCH_EXECUTIONS, MAX_QUESTION_CHARS, MAX_SAMPLES
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    BatchOpened,
    CancelJob,
    ExecutionTask,
    InspectBatch,
    InspectionFence,
    JobFinished,
    Message,
    decode,
)
from parallax.contracts.outcomes import Counts, ExecutionStatus
from parallax.contracts.plan import BatchRef, Cell
from parallax.contracts.routing import CANCELLATIONS, executions, waiting
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from parallax.errors import UnavailableError, UnconfirmedError
from tests.fakes.clock import ManualClock
from tests.integration.dispatcher_stage import (
    CATALOG,
    BusInBetween,
    Stage,
    bare_handlers,
    dispatching,
    job_document,
    staged,
    submit_by_hand,
)

LEASE_S = LEASE.total_seconds()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


class StuckBus(BusInBetween):
    """Stops before the n-th publish that holds a task, until it is told to go on, and then fails if asked."""

    def __init__(self, bus: Bus, *, before: int) -> None:
        super().__init__(bus)
        self._before = before
        self._publishes = 0
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def publish(self, *messages: Message) -> None:
        if any(isinstance(message, ExecutionTask) for message in messages):
            self._publishes += 1
            if self._publishes == self._before:
                self.reached.set()
                await self.go_on.wait()
                if self.error is not None:
                    raise self.error
        await super().publish(*messages)


def times_published(stage: Stage, job_id: str = "job") -> Counter[int]:
    """How many executions were published how often."""
    return Counter(Counter(task.execution_id for task in stage.heard(ExecutionTask, job_id)).values())


async def test_a_crash_between_commit_and_publish_loses_and_doubles_nothing(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        await stage.run_executors()
        bus = StuckBus(MemoryBus(stage.broker), before=2)
        async with dispatching(stage, bus=bus, settings=Settings(grace_s=0.01)):
            await stage.submit("job")
            await bus.reached.wait()  # the second batch is committed; the process ends here
        async with dispatching(stage):
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
    assert stage.heard(JobFinished, "job")[0].counts == Counts(completed=6)
    assert times_published(stage) == {1: 6}
    assert {opened.batch.question_index for opened in stage.heard(BatchOpened, "job")} == {0, 1, 2}


@pytest.mark.parametrize("error", [UnavailableError("away"), UnconfirmedError("silent")], ids=["away", "silent"])
async def test_what_was_not_sent_is_published_once(engine: AsyncEngine, error: Exception) -> None:
    """At once when that is known, after an inspection when it is not."""
    async with staged(engine) as stage:
        await stage.run_executors()
        bus = StuckBus(MemoryBus(stage.broker), before=2)
        bus.error = error
        bus.go_on.set()
        async with dispatching(stage, bus=bus):
            await stage.submit("job")
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
    assert times_published(stage) == {1: 6}
    assert bool(stage.heard(InspectBatch, "job")) == isinstance(error, UnconfirmedError)


async def test_a_dispatcher_that_was_stopped_does_not_go_on(engine: AsyncEngine) -> None:
    """Another one has inspected the batch meanwhile, and has published what it lacked."""
    async with staged(engine) as stage:
        bus = StuckBus(MemoryBus(stage.broker), before=2)
        bus.error = UnavailableError("the broker has closed the connection")
        async with (
            dispatching(stage, bus=bus, settings=Settings(pace=Pace(chunk=2))),
            dispatching(stage),
        ):
            await stage.run_executors()
            await stage.submit("job", job_document(questions=1, samples=5))
            await bus.reached.wait()
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
            bus.go_on.set()
            await stage.submit("next", job_document(questions=1))
            await stage.finished("next")
    assert times_published(stage) == {1: 10}


async def test_a_slow_dispatcher_renews_its_lease(engine: AsyncEngine) -> None:
    """Each chunk takes eight seconds: the batch takes longer than three leases, and nobody interferes."""

    class SlowBus(BusInBetween):
        async def publish(self, *messages: Message) -> None:
            if any(isinstance(message, ExecutionTask) for message in messages):
                stage.clock.advance(8)
                await asyncio.sleep(0.02)
            await super().publish(*messages)

    async with staged(engine) as stage:
        stage.outcome = lambda _task: None
        await stage.run_executors()
        bus = SlowBus(MemoryBus(stage.broker))
        began = stage.clock.monotonic()
        async with (
            dispatching(stage, bus=bus, settings=Settings(pace=Pace(chunk=1))),
            dispatching(stage, settings=Settings(timer_s=0.1, reconcile_after_s=10_000)),
        ):
            await stage.submit("job", job_document(questions=1, samples=8))
            await stage.until(lambda: len(stage.heard(ExecutionTask, "job")) == 16)
            assert stage.clock.monotonic() - began > 3 * LEASE_S
            assert stage.heard(InspectBatch) == []
    assert times_published(stage) == {1: 16}


async def test_a_batch_that_stays_open_is_marked_as_published(engine: AsyncEngine) -> None:
    """So its lease is never missed, and a dispatcher that starts later has nothing to inspect."""
    async with staged(engine) as stage:
        async with dispatching(stage, settings=Settings(reconcile_after_s=10_000)):
            await stage.submit("job")
            await stage.until_rows("dispatcher.jobs", 1, where=OPENING.format(of="NOT NULL"))
            await stage.until_rows("dispatcher.jobs", 1, where=OPENING.format(of="NULL"), turning_s=1)
        stage.clock.advance(10 * LEASE_S)
        async with dispatching(stage, settings=Settings(reconcile_after_s=10_000)):
            await stage.submit("other", job_document(questions=1))
            await stage.until_turning(lambda: bool(stage.heard(BatchOpened, "other")))
            assert stage.heard(InspectBatch) == []


OPENING = "id = 'job' AND (state #>> '{{lanes,0,batch,opening_until}}') IS {of} AND phase = 'running'"


async def test_an_answer_to_an_inspection_counts_once(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        stage.outcome = lambda _task: None
        async with dispatching(stage, settings=Settings(reconcile_after_s=10)):
            await stage.run_executors()
            await stage.submit("job", job_document(questions=1, regions=["us"]))
            await stage.until_turning(lambda: len(stage.heard(ExecutionTask, "job")) == 2)
            (asked, *_) = stage.heard(InspectBatch, "job")
            answer = BatchIncomplete(
                batch=asked.batch.ref, recorded=0, running=0, missing=asked.batch.cells, token=asked.token
            )
            await stage.bus.publish(answer, answer, answer.model_copy(update={"token": None}))
            await stage.submit("other", job_document(questions=1, regions=["us"]))
            await stage.until(lambda: bool(stage.heard(ExecutionTask, "other")))
            assert len(stage.heard(ExecutionTask, "job")) == 2


async def test_a_fence_names_the_regions_in_which_nothing_waits(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(reconcile_after_s=10)):
        await stage.run_executors("us")
        entries: list[Message] = []
        await stage.bus.follow(CANCELLATIONS, lambda body: entries.append(decode(body)))
        await stage.submit("job", job_document(questions=1))
        await stage.until_turning(lambda: bool(stage.heard(InspectBatch, "job")))
        (fence, *_) = [entry for entry in entries if isinstance(entry, InspectionFence)]
        assert fence.regions == ("us",)
        assert [batch.job_id for batch in fence.batches] == ["job"]
        assert fence.token == stage.heard(InspectBatch, "job")[0].token


# --- nothing is held while a broker thinks


class CheckedBus(BusInBetween):
    """Counts the database connections that are in use while something is published."""

    def __init__(self, bus: Bus, engine: AsyncEngine) -> None:
        super().__init__(bus)
        self._engine = engine
        self.in_use: list[int] = []
        self.kinds: set[str] = set()

    async def published(self, message: Message) -> None:
        self.in_use.append(self._engine.sync_engine.pool.checkedout())  # type: ignore[attr-defined]
        self.kinds.add(message.kind)


async def test_nothing_is_published_inside_a_transaction(engine: AsyncEngine) -> None:
    await migrate(engine, package="dispatcher", schema="dispatcher")
    memory, clock = MemoryBus(MemoryBroker(CATALOG.regions)), ManualClock()
    bus = CheckedBus(memory, engine)
    handlers = bare_handlers(bus, engine, clock)
    await submit_by_hand(memory, handlers, "job", job_document())
    await submit_by_hand(memory, handlers, "job", job_document())
    await submit_by_hand(memory, handlers, "refused", job_document(samples=0))
    await handlers.batch_completed(_completed("job", 0))
    await _repair(engine, memory, handlers)
    await handlers.cancel(CancelJob(job_id="job"))
    await handlers.batch_completed(_completed("job", 1))
    await handlers.cancel(CancelJob(job_id="job"))
    assert bus.kinds == {
        "job_accepted", "job_started", "job_rejected", "batch_opened", "execution_task", "job_cancelled", "close_batch",
        "job_finished",
    }  # fmt: skip
    assert set(bus.in_use) == {0}


def _completed(job_id: str, index: int) -> BatchCompleted:
    return BatchCompleted(batch=BatchRef(job_id=job_id, lane="all", question_index=index), counts=Counts(completed=2))


async def _repair(engine: AsyncEngine, bus: MemoryBus, handlers: Handlers) -> None:
    """Let results answer that an execution of the second batch is missing."""
    fence = '{"token": "t", "at": "2026-01-01T00:00:00+00:00"}'
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE dispatcher.jobs SET state = jsonb_set(state, '{lanes,0,batch,fence}', CAST(:fence AS jsonb))"),
            {"fence": fence},
        )
    consumption = await bus.consume(executions("us"), prefetch=99, handler=lambda _delivery: None)
    missing = (Cell("tiny", "us", 0),)
    ref = BatchRef(job_id="job", lane="all", question_index=1)
    await handlers.batch_incomplete(BatchIncomplete(batch=ref, recorded=1, running=0, missing=missing, token="t"))
    await consumption.close()


async def test_the_largest_legal_batch_opens_on_a_slow_broker(engine: AsyncEngine) -> None:
    """5,000 executions with the longest prompts that fit, in chunks that each take a while; no chunk is large."""
    chunks: list[int] = []
    tasks: Counter[str] = Counter()

    class SlowBus(BusInBetween):
        async def publish(self, *messages: Message) -> None:
            published = [message for message in messages if isinstance(message, ExecutionTask)]
            if not published:
                await super().publish(*messages)
                return
            clock.advance(4)
            chunks.append(sum(len(task.messages[-1].content) for task in published))
            tasks.update(str(task.execution_id) for task in published)

    await migrate(engine, package="dispatcher", schema="dispatcher")
    memory, clock = MemoryBus(MemoryBroker(CATALOG.regions)), ManualClock()
    handlers = bare_handlers(SlowBus(memory), engine, clock, pace=Pace(direct=MAX_BATCH_EXECUTIONS))
    question = "x" * min(MAX_QUESTION_CHARS, 50_000)
    models = [{"id": f"m{number}", "model": "tiny"} for number in range(MAX_BATCH_EXECUTIONS // (2 * MAX_SAMPLES))]
    document = job_document(1, models=models, samples=MAX_SAMPLES) | {"questions": [{"id": "q", "text": question}]}
    await submit_by_hand(memory, handlers, "job", document)
    assert Counter(tasks.values()) == {1: MAX_BATCH_EXECUTIONS}
    assert max(chunks) <= 1024 * 1024
    assert clock.monotonic() > 10 * LEASE_S, "ten times as long as a lease"


# --- fairness


async def test_a_short_job_waits_behind_few_tasks_of_a_long_one(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(pace=Pace(direct=10))):
        await stage.submit("long", job_document(questions=1, samples=100, regions=["us"]))
        await stage.until_turning(lambda: stage.broker.depth(executions("us")) >= 5, seconds=0.1)
        await stage.submit("short", job_document(questions=1, regions=["us"]))
        await stage.until(lambda: bool(stage.heard(BatchOpened, "short")))
        assert stage.broker.depth(executions("us")) <= 11
        await stage.run_executors("us")
        await stage.until_turning(lambda: len(stage.heard(JobFinished)) == 2, seconds=0.1)
    order = [task.batch.job_id for task in stage.heard(ExecutionTask)]
    assert order.index("short") <= 10
    assert stage.heard(JobFinished, "long")[0].counts == Counts(completed=100)
    assert times_published(stage, "long") == {1: 100}


async def test_a_model_that_accepts_no_calls_holds_back_its_own_tasks_alone(engine: AsyncEngine) -> None:
    """Its tasks wait in a queue of their own, which nobody drains for now."""
    settings = Settings(pace=Pace(direct=10))
    async with staged(engine) as stage, dispatching(stage, settings=settings):
        for _ in range(20):
            await stage.bus.publish_raw(waiting("us", "large"), b"of another job")
        await stage.run_executors("us")
        models = [{"id": "slow", "model": "large"}, {"id": "tiny"}]
        await stage.submit("long", job_document(questions=1, models=models, samples=50, regions=["us"]))
        await stage.until_turning(lambda: len(stage.heard(ExecutionTask, "long")) == 50, seconds=0.1)
    assert {task.model for task in stage.heard(ExecutionTask, "long")} == {"tiny"}


async def test_what_was_not_fed_yet_when_the_dispatcher_stopped_is_published_by_the_next(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        async with dispatching(stage, settings=Settings(pace=Pace(direct=10), grace_s=0.01)):
            await stage.submit("long", job_document(questions=1, samples=50, regions=["us"]))
            await stage.until_turning(lambda: stage.broker.depth(executions("us")) >= 5, seconds=0.1)
        await stage.run_executors("us")
        stage.outcome = lambda _task: ExecutionStatus.COMPLETED
        async with dispatching(stage, settings=Settings(pace=Pace(direct=10))):
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "long")))
    assert times_published(stage, "long") == {1: 50}
