"""Publishes of unknown outcome, lost messages, a lost bus, and two dispatchers at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.app import running
from dispatcher.settings import Settings
from parallax.bus.letters import REASON_HEADER
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    BatchOpened,
    ExecutionFinished,
    ExecutionTask,
    InspectBatch,
    JobAccepted,
    JobFinished,
    JobStarted,
    Message,
)
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus, JobOutcome
from parallax.contracts.plan import BatchRef, Cell
from parallax.contracts.routing import DEAD_EXECUTIONS, DEAD_LETTERS, executions
from parallax.db.engine import create_engine
from tests.harness.results import Inbox
from tests.integration.dispatcher_stage import (
    CATALOG,
    BreakingBus,
    HesitantBus,
    dispatching,
    job_document,
    staged,
)

IN_A_TRANSACTION = "state = 'idle in transaction' AND datname = current_database()"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("kind", [JobAccepted, JobStarted, JobFinished], ids=lambda kind: kind.__name__)
async def test_an_announcement_of_unknown_outcome_is_repeated(engine: AsyncEngine, kind: type[Message]) -> None:
    async with staged(engine) as stage:
        bus = BreakingBus(MemoryBus(stage.broker), kind)
        async with dispatching(stage, bus=bus):
            await stage.run_executors()
            submitting = asyncio.create_task(stage.submit("job"))
            await stage.until_turning(lambda: len(stage.heard(kind, "job")) >= 2)
            await submitting
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
    assert bus.failures == 1
    assert len({message.model_dump_json() for message in stage.heard(kind, "job")}) == 1, "in the same words"
    assert Counter(Counter(task.execution_id for task in stage.heard(ExecutionTask, "job")).values()) == {1: 6}
    assert stage.heard(JobFinished, "job")[-1].counts == Counts(completed=6)


async def test_executions_of_unknown_outcome_are_not_repeated(engine: AsyncEngine) -> None:
    """They had arrived: each batch completes without a word, and every execution was published once."""
    async with staged(engine) as stage:
        bus = BreakingBus(MemoryBus(stage.broker), ExecutionTask)
        async with dispatching(stage, bus=bus):
            await stage.run_executors()
            await stage.submit("job")
            end = await stage.finished("job")
    assert bus.failures == 3
    assert end.counts == Counts(completed=6)
    assert Counter(Counter(task.execution_id for task in stage.heard(ExecutionTask, "job")).values()) == {1: 6}


async def test_the_end_is_told_once_it_is_committed(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        bus = HesitantBus(MemoryBus(stage.broker), JobFinished)
        async with dispatching(stage, bus=bus):
            await stage.run_executors()
            await stage.submit("job")
            await bus.waiting.wait()
            await stage.until_rows("dispatcher.jobs", 1, where="phase = 'finished'")
            bus.go_on.set()
            assert (await stage.finished("job")).counts == Counts(completed=6)


async def test_a_completion_that_runs_ahead_of_its_opening_is_harmless(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage):
        await stage.submit("job")
        await stage.until(lambda: bool(stage.heard(BatchOpened, "job")))
        ahead = BatchRef(job_id="job", lane="all", question_index=1)
        await stage.bus.publish(BatchCompleted(batch=ahead, counts=Counts(completed=2)))
        await stage.bus.publish(
            BatchCompleted(batch=BatchRef(job_id="nobody", lane="all", question_index=0), counts=Counts())
        )
        await stage.run_executors()
        assert (await stage.finished("job")).counts == Counts(completed=6)
        assert stage.broker.depth(DEAD_LETTERS) == 0


async def test_no_transaction_is_open_while_the_broker_thinks(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        async with dispatching(stage):
            await stage.submit("job", job_document(questions=2, barrier="region"))
            await stage.until(lambda: len(stage.heard(BatchOpened, "job")) == 2)
        bus = HesitantBus(MemoryBus(stage.broker), BatchOpened)
        async with dispatching(stage, bus=bus, replicas=2):
            await stage.run_executors()
            await bus.waiting.wait()
            await stage.until_rows("pg_stat_activity", 0, where=IN_A_TRANSACTION)
            bus.go_on.set()
            assert (await stage.finished("job")).counts == Counts(completed=4)


async def test_two_dispatchers_do_everything_once(engine: AsyncEngine) -> None:
    jobs = [f"job{number}" for number in range(12)]
    settings = Settings(max_active_jobs=3, prefetch=4)
    async with staged(engine) as stage, dispatching(stage, settings=settings, replicas=2):
        await note_active_jobs(engine)
        await stage.run_executors()
        await asyncio.gather(*(stage.submit(job) for job in jobs), *(stage.submit(job) for job in jobs))
        await stage.until_turning(lambda: {end.job_id for end in stage.heard(JobFinished)} == set(jobs))
    assert {end.job_id: end.counts for end in stage.heard(JobFinished)} == dict.fromkeys(jobs, Counts(completed=6))
    opened = Counter((o.batch.job_id, o.batch.question_index) for o in stage.heard(BatchOpened))
    assert opened == dict.fromkeys(((job, index) for job in jobs for index in range(3)), 1)
    assert set(Counter(task.execution_id for task in stage.heard(ExecutionTask)).values()) == {1}
    assert {started.job_id for started in stage.heard(JobStarted)} == set(jobs)
    assert await most_active(engine) == 3


async def note_active_jobs(engine: AsyncEngine) -> None:
    """Keep how many jobs are active whenever one begins; what is announced lags behind what is committed."""
    async with engine.begin() as connection:
        for statement in (
            "CREATE TABLE activity (jobs bigint)",
            """
            CREATE FUNCTION note_activity() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO activity
                SELECT count(*) FROM dispatcher.jobs WHERE phase IN ('running', 'ending');
                RETURN NULL;
            END $$
            """,
            "CREATE TRIGGER note AFTER UPDATE ON dispatcher.jobs EXECUTE FUNCTION note_activity()",
        ):
            await connection.execute(text(statement))


async def most_active(engine: AsyncEngine) -> int:
    """The largest number of jobs that were active at once."""
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT max(jobs) FROM activity"))).scalar_one())


async def test_a_region_whose_queue_was_lost_gets_just_what_is_missing(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(reconcile_after_s=60)):
        lost = set[str]()

        def lose_first(task: ExecutionTask) -> ExecutionStatus | None:
            if task.region == "eu" and task.question_id not in lost:
                lost.add(task.question_id)
                return None
            return ExecutionStatus.COMPLETED

        stage.outcome = lose_first
        await stage.run_executors()
        await stage.submit("job")
        await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
        assert stage.heard(JobFinished, "job")[0].counts == Counts(completed=6)
        runs = Counter((task.region, task.question_id) for task in stage.heard(ExecutionTask, "job"))
        assert runs == {(region, f"q{i}"): 1 + (region == "eu") for region in ("us", "eu") for i in range(3)}
        first, again = [t for t in stage.heard(ExecutionTask, "job") if (t.region, t.question_id) == ("eu", "q0")]
        assert (again.execution_id, again.deadline_at) == (first.execution_id, first.deadline_at)
        assert (again.published_at - first.published_at).total_seconds() >= 60


async def test_what_waits_in_a_queue_is_not_published_again(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(reconcile_after_s=10)):
        await stage.run_executors("us")
        await stage.submit("job", job_document(questions=1))
        await stage.until_turning(lambda: len(stage.heard(InspectBatch, "job")) >= 3)
        assert stage.broker.depth(executions("eu")) == 1
        await stage.run_executors("eu")
        await stage.finished("job")
        assert len(stage.heard(ExecutionTask, "job")) == 2


async def test_a_lack_of_executions_that_do_not_exist_is_a_dead_letter(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage):
        await stage.submit("job", job_document(regions=["us"]))
        await stage.until(lambda: bool(stage.heard(BatchOpened, "job")))
        ref = BatchRef(job_id="job", lane="all", question_index=0)
        dead = await Inbox.of(stage.broker, DEAD_LETTERS)
        for missing in (Cell("tiny", "eu", 0), Cell("tiny", "mars", 0)):
            await stage.bus.publish(BatchIncomplete(batch=ref, recorded=0, running=0, missing=(missing,)))
            letter = await dead.next_delivery()
            assert missing.region in str(letter.headers[REASON_HEADER])


async def test_a_dead_task_becomes_a_failed_fact(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage):
        stage.outcome = lambda _task: None
        await stage.run_executors()
        await stage.submit("job", job_document(questions=1))
        await stage.until(lambda: len(stage.heard(ExecutionTask, "job")) == 2)
        for task in stage.heard(ExecutionTask, "job"):
            headers = {REASON_HEADER: "delivered 20 times\0"}
            await stage.bus.publish_raw(DEAD_EXECUTIONS, task.model_dump_json().encode(), headers=headers)
        await stage.bus.publish_raw(DEAD_EXECUTIONS, b"not a task")
        end = await stage.finished("job")
        assert (end.outcome, end.counts) == (JobOutcome.FAILED, Counts(failed=2))
        fact = stage.heard(ExecutionFinished, "job")[0]
        assert (fact.observed, fact.status) == (False, ExecutionStatus.FAILED)
        assert fact.error == ErrorInfo(
            error_class="dead_letter", code="dead_letter", message="delivered 20 times\ufffd", retryable=False
        )
        await stage.until_turning(lambda: stage.broker.depth(DEAD_LETTERS) == 1)


async def test_a_job_goes_on_where_its_process_stopped(engine: AsyncEngine) -> None:
    """As in standalone: the bus is lost with the process, the ledger is not."""
    async with staged(engine) as stage, dispatching(stage):
        stage.outcome = lambda task: (
            None if task.question_id == "q1" and task.region == "eu" else ExecutionStatus.COMPLETED
        )
        await stage.run_executors()
        await stage.submit("short", job_document(questions=1))
        await stage.finished("short")
        await stage.submit("job")
        await stage.until(lambda: sum(map(len, stage.facts.values())) == 5)
        ledger = stage.facts
    async with staged(engine) as stage:
        stage.facts = ledger
        stage.clock.advance(60)
        async with dispatching(stage, settings=Settings(resume_on_start=True)):
            await stage.run_executors()
            await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
    assert stage.heard(JobFinished, "job")[0].counts == Counts(completed=6)
    assert [(task.question_id, task.region) for task in stage.heard(ExecutionTask, "job")] == [
        ("q1", "eu"), ("q2", "us"), ("q2", "eu"),
    ]  # fmt: skip
    assert len(set(stage.heard(JobStarted, "job"))) == len(stage.heard(JobAccepted, "job")) == 1
    assert stage.heard(JobFinished, "short")[0].counts == Counts(completed=2), "what may have been lost is said again"


async def test_the_end_of_a_job_is_said_once_more(engine: AsyncEngine) -> None:
    """A broker that lost its disk may have lost it, and no other message follows the last one."""
    async with staged(engine) as stage, dispatching(stage):
        await stage.run_executors()
        await stage.submit("job")
        await stage.finished("job")
        stage.clock.advance(Settings().reconcile_after_s + 1)
        await stage.until(lambda: len(stage.heard(JobFinished, "job")) == 2)
        stage.clock.advance(10 * Settings().reconcile_after_s)
        await stage.submit("other", job_document(questions=1))
        await stage.finished("other")
    first, second = stage.heard(JobFinished, "job")
    assert first == second
    assert len(stage.heard(JobAccepted, "job")) == 2, "a user who lost the acceptance too sees the whole job"


async def test_messages_outlast_the_dispatcher(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        async with dispatching(stage):
            await stage.submit("job")
            await stage.until(lambda: bool(stage.heard(BatchOpened, "job")))
        await stage.run_executors()
        await stage.until(lambda: len(stage.heard(ExecutionTask, "job")) == 2)
        async with dispatching(stage):
            assert (await stage.finished("job")).counts == Counts(completed=6)
        assert len(stage.heard(ExecutionTask, "job")) == 6


async def test_health_says_when_a_part_does_not_work(engine: AsyncEngine) -> None:
    async with staged(engine) as stage:
        bus = MemoryBus(MemoryBroker(CATALOG.regions))
        async with running(
            bus=bus, engine=engine, catalog=CATALOG, clock=stage.clock, settings=Settings(timer_s=1)
        ) as health:
            async with asyncio.timeout(30):
                while not all((await health.check()).values()):
                    stage.clock.advance(1)
                    await asyncio.sleep(0.01)
            await bus.close()
            assert await health.check() == {"broker": False, "consumers": False, "database": True, "timer": True}
