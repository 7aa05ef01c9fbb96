"""Every service on the memory bus and a real database, with an endpoint per region that follows a script."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

import dispatcher.app
import executor.app
import results.app
from dispatcher.settings import Settings as DispatcherSettings
from executor.endpoints.port import Endpoint
from parallax.bus.memory import MemoryBroker, MemoryBus, Reply
from parallax.catalog import Catalog, parse_catalog
from parallax.clock import SystemClock
from parallax.contracts.messages import Message, decode
from parallax.contracts.routing import SUBMISSIONS, Queue
from parallax.db.engine import create_engine
from parallax.health import Health
from parallax_cli.schemas import migrate_all
from results.settings import Settings as ResultsSettings
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.executor_stage import QUICK
from tests.harness.results import eventually, rows

REGIONS: Final = ("us", "eu", "apac")
MODELS: Final = ("one", "two", "three")
PATIENCE_S: Final = 120.0
"""How long a test waits for what must happen; only a failing one waits that long."""

CATALOG: Final[Catalog] = parse_catalog(
    {
        "regions": {name: {"name": name.upper(), "endpoint": "openai+http://127.0.0.1:1/v1"} for name in REGIONS},
        "models": {name: {"upstream": f"upstream/{name}", "regions": list(REGIONS)} for name in MODELS},
    },
    source="test",
)


def job(questions: int = 1, **changes: Any) -> dict[str, Any]:
    """A job of every model in every region: nine executions for each question."""
    return {
        "name": "test",
        "questions": [{"id": f"q{index}", "text": f"Question {index}?"} for index in range(questions)],
        "models": [{"id": name} for name in MODELS],
        "regions": list(REGIONS),
        **changes,
    }


class Whole:
    """An installation in one process."""

    def __init__(self, engine: AsyncEngine, endpoints: Mapping[str, Endpoint], stack: AsyncExitStack) -> None:
        self.engine = engine
        self.broker = MemoryBroker(REGIONS)
        self.bus = MemoryBus(self.broker)
        self.health: dict[str, Health] = {}
        self._endpoints = endpoints
        self._stack = stack
        self._requests = 0

    def _client(self) -> MemoryBus:
        client = MemoryBus(self.broker)
        self._stack.push_async_callback(client.close)
        return client

    async def start_services(self) -> None:
        """Start everything but the executors."""
        clock = SystemClock()
        self.health["results"] = await self._stack.enter_async_context(
            results.app.running(bus=self._client(), engine=self.engine, clock=clock, settings=ResultsSettings())
        )
        self.health["dispatcher"] = await self._stack.enter_async_context(
            dispatcher.app.running(
                bus=self._client(),
                engine=self.engine,
                catalog=CATALOG,
                clock=clock,
                settings=DispatcherSettings(reconcile_after_s=1.0, timer_s=0.1),
            )
        )

    async def start_executors(self) -> None:
        """Start an executor in each region that has an endpoint."""
        for region, endpoint in self._endpoints.items():
            settings = dataclasses.replace(QUICK, region=region, executor_id=f"{region}-1", budget=20)
            self.health[region] = await self._stack.enter_async_context(
                executor.app.running(
                    bus=self._client(), catalog=CATALOG, endpoint=endpoint, clock=SystemClock(), settings=settings
                )
            )

    async def submit(self, job_id: str, document: dict[str, Any]) -> Message:
        """Submit a job and return the answer."""
        return await self.submit_raw(json.dumps({"job_id": job_id, "job": document}).encode())

    async def submit_raw(self, body: bytes) -> Message:
        """Submit any bytes and return the answer."""
        self._requests += 1
        reply_to = f"replies.{self._requests}"
        replies: asyncio.Queue[Reply] = self.bus.replies(reply_to)
        await self.bus.publish_raw(SUBMISSIONS, body, reply_to=reply_to)
        async with asyncio.timeout(PATIENCE_S):
            return decode((await replies.get()).body)

    async def until_status(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """The job's row, once its status is one of those."""
        return await self._until(
            "jobs", "job_id = :job_id AND status = ANY(:statuses)", job_id=job_id, statuses=[*statuses]
        )

    async def finished(self, job_id: str) -> dict[str, Any]:
        """The job's row, once all has been said about it."""
        return await self._until("jobs", "job_id = :job_id AND finished_at IS NOT NULL", job_id=job_id)

    async def until_heard_of(self, executor_id: str) -> None:
        """Wait for a heartbeat of an executor that is recorded from now on."""
        since = datetime.now(UTC)
        condition = "executor_id = :executor_id AND received_at > :since"
        await self._until("executors", condition, executor_id=executor_id, since=since)

    async def until_taken(self, queue: Queue) -> None:
        """Wait until nothing waits in a queue; what was taken may still be held."""

        async def empty() -> bool:
            return self.broker.depth(queue) == 0

        await eventually(empty)

    async def executions(self, job_id: str) -> list[dict[str, Any]]:
        """The job's rows in the ledger."""
        order = (
            "SELECT * FROM results.executions WHERE job_id = :job_id ORDER BY question_index, model_id, region, sample"
        )
        return await rows(self.engine, order, job_id=job_id)

    async def _until(self, table: str, condition: str, **values: Any) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await rows(self.engine, f"SELECT * FROM results.{table} WHERE {condition}", **values)
                if found:
                    return found[0]
                await asyncio.sleep(0.02)

    async def assert_healthy(self) -> None:
        """Every probe of every service says that it works."""
        checks = {name: await health.check() for name, health in self.health.items()}
        assert all(all(probes.values()) for probes in checks.values()), checks


def endpoints() -> dict[str, FakeEndpoint]:
    """One for each region, that answers everything."""
    return {region: FakeEndpoint() for region in REGIONS}


@asynccontextmanager
async def whole(
    database_url: str, served: Mapping[str, Endpoint] | None = None, *, executors: bool = True
) -> AsyncIterator[Whole]:
    """An installation at work; its executors are started by the test where ``executors`` is false."""
    engine = create_engine(database_url, application_name="test", pool_size=12)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await migrate_all(database_url)
        made = Whole(engine, endpoints() if served is None else served, stack)
        await made.start_services()
        if executors:
            await made.start_executors()
        yield made
