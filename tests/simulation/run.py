"""One seed, from an empty database to the last invariant."""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import create_engine
from parallax_cli.schemas import migrate_all
from tests.simulation.endpoint import REFUSALS
from tests.simulation.fairness import Starvation
from tests.simulation.faults import Faults
from tests.simulation.loop import VirtualLoop
from tests.simulation.nodes import ViolationError
from tests.simulation.workload import REGIONS, draw_jobs
from tests.simulation.world import World, task_factory

STORM_STEPS: Final = 900
"""Choices of the scheduler while faults strike."""
MOST_FAULTS: Final = 40
MOST_STEPS: Final = 40_000
CALM_LIMIT_S: Final = 7_200.0
"""Virtual time in which every job must end once nothing disturbs any more."""
LET_GO_S: Final = 40.0
"""Longer than any attempt of the workload."""
LET_GO_LIMIT_S: Final = 300.0
"""Longer than a process is stopped, and than any batch may take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed."""

    seed: int
    executions: int
    faults: int
    steps: int
    virtual_s: float
    calls: int
    duplicate_calls: int
    digest: str
    violation: str | None = None
    story: list[str] = field(default_factory=list)


def run_seed(seed: int, database_url: str) -> Outcome:
    """Run one seed against an empty database of the newest schema; violations are part of the outcome."""
    structlog.configure(processors=[_say_nothing])
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    loop.set_task_factory(task_factory)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_run(seed, database_url, loop))
    finally:
        logging.disable(logging.NOTSET)
        asyncio.set_event_loop(None)
        loop.close()


def _say_nothing(*_: object) -> str:
    raise structlog.DropEvent


async def _run(seed: int, database_url: str, loop: VirtualLoop) -> Outcome:
    random = Random(seed)
    jobs = draw_jobs(random)
    faults = Faults(random, rate=random.choice((0.01, 0.02, 0.04)), most=MOST_FAULTS)
    engine = create_engine(database_url, application_name="simulation", pool_size=1)
    await empty(engine)
    world = World(loop, engine, random, jobs, faults)
    violation: str | None = None
    steps = 0
    try:
        steps = await Scheduler(world).run()
        await check_end(world)
    except ViolationError as error:
        violation = str(error)
        world.tell(f"VIOLATION: {violation}")
    finally:
        world.faults.calm = True
        for waker in tuple(world.wakers):
            waker.cancel()
        for node in world.nodes:
            node.dead = True
            await node.bus.close()
            with contextlib.suppress(RuntimeError):
                await world.end_tasks(node)
        await engine.dispose()
    return Outcome(
        seed=seed,
        executions=len(world.planned),
        faults=faults.struck.total(),
        steps=steps,
        virtual_s=loop.time(),
        calls=len(world.calls),
        duplicate_calls=duplicate_calls(world),
        digest=world.digest.hexdigest()[:16],
        violation=violation,
        story=world.story,
    )


class Scheduler:
    """Decides what happens next: a storm of faults first, then calm until every job has ended."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._calm_since = 0.0
        self._starvation = Starvation()
        self._due = sorted(
            [(job.submit_at_s, 0, job.job_id) for job in world.jobs.values()]
            + [(job.cancel_at_s, 1, job.job_id) for job in world.jobs.values() if job.cancel_at_s is not None]
        )

    async def run(self) -> int:
        """Run to the end and say how many steps it took."""
        world = self._world
        for kind in ("dispatcher", "results", *(f"executor-{region}" for region in REGIONS)):
            world.spawn(kind)
        for step in range(MOST_STEPS):
            await world.settle()
            world.check()
            await check_batches(world)
            if world.faults.calm:
                self._restore()
                self._starvation.check(
                    world.broker,
                    world.loop.time(),
                    called={call.execution_id for call in world.pending},
                    stopped={node.region for node in world.nodes if node.region and not node.awake.is_set()},
                )
                if step % 20 == 0 and await self._over():
                    await self._let_go()
                    return step
                if world.loop.time() > self._calm_since + CALM_LIMIT_S:
                    raise ViolationError(f"not every job has ended {CALM_LIMIT_S:g} s after the last fault")
            elif step >= STORM_STEPS:
                world.tell("the storm is over")
                world.faults.calm = True
                self._calm_since = world.loop.time()
            await self._next()
        raise ViolationError(f"not every job has ended after {MOST_STEPS} steps")

    async def _let_go(self) -> None:
        """Let executors end what they still hold of batches that were closed without them; some were stopped."""
        world = self._world
        until = world.loop.time() + LET_GO_S
        last = until + LET_GO_LIMIT_S
        while world.loop.time() < until or (unsettled(world) and world.loop.time() < last):
            await self._next()
            await world.settle()

    async def _next(self) -> None:
        world = self._world
        if self._due and self._due[0][0] <= world.loop.time():
            _, cancels, job_id = self._due.pop(0)
            job = world.jobs[job_id]
            await (world.cancel(job) if cancels else world.submit(job))
            return
        choices = world.broker.choices()
        options = ["deliver"] * min(len(choices), 6) + ["answer"] * min(len(world.pending), 3)
        if not world.faults.calm:
            options += ["time", "disturb"] if world.random.random() < 0.15 else []
            options += ["scale"] if world.random.random() < 0.05 else []
        match world.random.choice(options or ["time"]):
            case "deliver":
                world.deliver(world.random.choice(choices))
            case "answer":
                world.answer(world.random.choice(world.pending))
            case "disturb":
                world.disturbances.strike()
            case "scale":
                self._scale()
            case _:
                world.pass_time(at_most=5.0 if world.faults.calm else world.random.choice((0.2, 1.0, 5.0)))

    def _scale(self) -> None:
        """Start a replica of something, up to two of each; what died comes back this way."""
        world = self._world
        kinds = ("dispatcher", "results", *(f"executor-{region}" for region in REGIONS))
        missing = [kind for kind in kinds if len(world.living(kind)) < 2]
        if missing:
            world.spawn(world.random.choice(missing))

    def _restore(self) -> None:
        for kind in ("dispatcher", "results", *(f"executor-{region}" for region in REGIONS)):
            if not self._world.living(kind):
                self._world.spawn(kind)

    async def _over(self) -> bool:
        world = self._world
        if self._due or any(state.ready for n, state in world.broker._queues.items() if n != "results.heartbeats"):
            return False
        async with world.engine.connect() as connection:
            ended = await connection.scalar(text("SELECT count(*) FROM dispatcher.jobs WHERE phase = 'finished'"))
            seen = await connection.scalar(text("SELECT count(*) FROM results.jobs WHERE outcome IS NOT NULL"))
        return bool(ended == seen == len(world.jobs))


# --- invariants ----------------------------------------------------------------------------------------------


async def check_batches(world: World) -> None:
    """A batch that results calls complete has every execution in the ledger."""
    while world.unchecked:
        message = world.unchecked.pop()
        ref = message.batch
        async with world.engine.connect() as connection:
            recorded = await connection.scalar(
                text(
                    "SELECT count(*) FROM results.executions"
                    " WHERE job_id = :job AND lane = :lane AND question_index = :index"
                ),
                {"job": ref.job_id, "lane": ref.lane, "index": ref.question_index},
            )
        expected = world.batch_sizes[ref.job_id, ref.lane, ref.question_index]
        if not recorded == expected == message.counts.total:
            story = f"{recorded} recorded, {message.counts.total} counted, {expected} planned"
            raise ViolationError(f"batch {ref.job_id} {ref.lane}/{ref.question_index} is called complete with {story}")


async def check_end(world: World) -> None:
    """Everything that must hold when the last job has ended."""
    async with world.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT * FROM results.executions"))).mappings().all()
        batches = (await connection.execute(text("SELECT * FROM results.batches"))).mappings().all()
        jobs = (await connection.execute(text("SELECT * FROM results.jobs"))).mappings().all()
    check_facts(world, [dict(row) for row in rows])
    check_counts(world, rows, batches)
    check_jobs(world, {job["job_id"]: dict(job) for job in jobs}, [dict(row) for row in rows])
    check_broker(world)


def check_broker(world: World) -> None:
    """Whoever works has settled what it took, and every stopped job is in the cancellation stream."""
    if left := unsettled(world):
        raise ViolationError(f"deliveries of {sorted(left)} were never settled")
    told = world.cancellations()
    for job_id in world.jobs:
        if ended_early(world, job_id) and job_id not in told:
            raise ViolationError(f"{job_id} was stopped, and no executor was told")


def unsettled(world: World) -> set[str]:
    """The queues of which somebody holds deliveries."""
    return {
        name
        for name, queue in world.broker._queues.items()
        if name != "results.heartbeats" and any(consumer._unsettled for consumer in queue.consumers)
    }


def check_facts(world: World, rows: list[dict[str, Any]]) -> None:
    """No fact without a call or a synthetic reason, and each answer from its own call."""
    for row in rows:
        planned = world.planned.get(row["execution_id"])
        if planned is None or planned.region != row["region"]:
            raise ViolationError(f"the ledger holds an execution that no job has: {dict(row)}")
        if not row["observed"]:
            if row["error"] is None:
                raise ViolationError(f"a synthetic fact gives no reason: {row['execution_id']}")
            continue
        own = {call.text for call in world.calls if call.execution_id == row["execution_id"]} | {""}
        if row["status"] == "completed" and as_json(row["output"])["text"] not in own:
            raise ViolationError(f"execution {row['execution_id']} holds another call's answer: {row['output']}")
        if row["status"] == "completed" and len(own) == 1:
            raise ViolationError(f"execution {row['execution_id']} is completed without a call")


def check_counts(world: World, rows: Any, batches: Any) -> None:
    """The counters of each batch say what the ledger holds, and a batch that was opened is full."""
    held = Counter((row["job_id"], row["lane"], row["question_index"], row["status"]) for row in rows)
    for batch in batches:
        key = (batch["job_id"], batch["lane"], batch["question_index"])
        counted = {s: batch[s] for s in ("completed", "failed", "timed_out", "cancelled")}
        if any(held[*key, status] != count for status, count in counted.items()):
            raise ViolationError(f"the counters of batch {key} are off: {counted}")
        if sum(counted.values()) != batch["expected"]:
            raise ViolationError(f"batch {key} is left with {sum(counted.values())} of {batch['expected']} executions")


def check_jobs(world: World, jobs: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Each job ends, says how in the same words each time, and has every execution it opened."""
    for job_id, job in world.jobs.items():
        ends = {(f.outcome, f.reason, f.not_started, f.counts.total) for f in world.finished.get(job_id, ())}
        if len(ends) != 1:
            raise ViolationError(f"{job_id} ended in {len(ends)} ways: {ends}")
        ((outcome, reason, not_started, total),) = ends
        planned = len(job.executions())
        recorded = sum(1 for row in rows if row["job_id"] == job_id)
        if total != planned - not_started or recorded != total:
            raise ViolationError(f"{job_id}: {recorded} recorded, {total} told, {not_started} of {planned} not started")
        if reason.code in ("all_batches_completed", "below_min_success_rate") and not_started:
            raise ViolationError(f"{job_id} ran to its end without {not_started} of its executions")
        if job_id not in jobs or jobs[job_id]["status"] != outcome.value:
            raise ViolationError(f"{job_id} ended as {outcome.value}, users see {jobs.get(job_id, {}).get('status')}")


def ended_early(world: World, job_id: str) -> bool:
    """Whether a job was stopped before its last batch."""
    codes = {end.reason.code for end in world.finished.get(job_id, ())}
    return bool(codes & {"cancelled", "job_deadline", "stopped_early"})


def duplicate_calls(world: World) -> int:
    """Calls beyond the one that gave each execution's answer: neither refused ones nor retries of one executor."""
    executors: dict[object, set[str]] = {}
    for call in (call for call in world.calls if call.answered not in REFUSALS):
        executors.setdefault(call.execution_id, set()).add(call.node.name)
    return sum(len(names) - 1 for names in executors.values())


def as_json(value: Any) -> Any:
    """A JSON column, however the driver hands it out."""
    return json.loads(value) if isinstance(value, str) else value


# --- the database --------------------------------------------------------------------------------------------


async def prepare(database_url: str) -> None:
    """Create the newest schema in a new database."""
    await migrate_all(database_url)


async def empty(engine: AsyncEngine) -> None:
    """Forget the run before."""
    async with engine.begin() as connection:
        tables = await connection.scalars(
            text(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname IN ('dispatcher', 'results') AND tablename <> 'alembic_version'"
            )
        )
        await connection.execute(text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE"))
