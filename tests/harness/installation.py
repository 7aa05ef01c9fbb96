"""An installation of real processes that tests may hurt: services, broker, database, models that keep a log."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from sqlalchemy import text

from parallax.bus.amqp import AmqpBus, connect
from parallax.contracts.ids import execution_id
from parallax.contracts.job import JobSpec
from parallax.contracts.messages import CancelJob, Message, SubmitJob
from parallax.contracts.plan import JobPlan
from parallax.contracts.routing import executions
from parallax.db.engine import create_engine, transaction
from parallax.errors import UnavailableError
from parallax_cli.children import Children
from parallax_cli.mock_endpoint import serving
from tests.harness.calls import calls_of, model_server, path_of
from tests.harness.database import HARNESS, Postgres
from tests.harness.duplicates import ModelCall
from tests.harness.proxy import Proxy, proxying
from tests.harness.rabbitmq import Node
from tests.harness.replicas import PATIENCE_S, Replicas
from tests.harness.sources import environment_of, migrated

REGIONS: Final = ("us", "eu", "apac")

__all__ = ["PATIENCE_S", "PRODUCTION", "QUICK", "REGIONS", "Installation", "Timings", "installation"]


@dataclass(frozen=True, slots=True)
class Timings:
    """How patient the services are, in seconds; ``None`` leaves a service its default."""

    lost_after_s: float | None = None
    """When a service that cannot work exits."""
    grace_s: float | None = None
    """How long work at hand may take when a service stops."""
    reconcile_after_s: float | None = None
    """When a batch without progress is looked into."""

    def environment(self) -> dict[str, str]:
        """The variables that say so."""
        named = {
            "PARALLAX_LOST_AFTER_S": self.lost_after_s,
            "PARALLAX_GRACE_S": self.grace_s,
            "PARALLAX_RECONCILE_AFTER_S": self.reconcile_after_s,
        }
        return {name: f"{value:g}" for name, value in named.items() if value is not None}


QUICK: Final = Timings(lost_after_s=20, grace_s=3, reconcile_after_s=5)
"""For tests that are not to take long."""
PRODUCTION: Final = Timings()
"""What users get. Claims about duplicate calls are made for these: short intervals hide races, or make them."""


class Installation(Replicas):
    """The services, and ways to hurt them and what they depend on."""

    def __init__(
        self,
        *,
        node: Node,
        postgres: Postgres,
        broker: Proxy,
        database: Proxy,
        bus: AmqpBus,
        children: Children,
        folder: Path,
        namespace: str,
    ) -> None:
        super().__init__(children, folder)
        self.namespace = namespace
        self.node = node
        self.postgres = postgres
        self.broker = broker
        """Between each replica and the broker; a replica's name is its client name."""
        self.database = database
        """Between each replica and the database."""
        self.began_at = time.time()
        self.endpoints: dict[str, str] = {}
        """The base URL of each region's model server."""
        self._bus = bus
        self._mocks: dict[str, Any] = {}
        self._modules: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._submitted: dict[str, JobSpec] = {}
        self._twins = 0
        self._engine = create_engine(postgres.url, application_name=HARNESS, pool_size=3)

    # --- services

    def add(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        """Start one more replica, with connections of its own that can be hurt alone."""
        target = urlsplit(self.node.url)
        own = {
            "PARALLAX_AMQP_URL": self.node.url.replace(f":{target.port}", f":{self.broker.listen(name)}"),
            "PARALLAX_DATABASE_URL": self.postgres.url_through(self.database.listen(name)),
        }
        self._modules[name] = (module, environment)
        self.start_replica(name, module, {**environment, **own})

    def add_twin(self, name: str) -> str:
        """Start one more replica of the same kind, and give its name."""
        self._twins += 1
        twin = f"{name}-twin-{self._twins}"
        self.add(twin, *self._modules[name])
        return twin

    def add_version(self, name: str, version: str, sources: Path | None) -> str:
        """Start one more replica of the same kind from the sources of another version, and give its name."""
        module, environment = self._modules[name]
        other = f"{name}-{version}"
        self.add(other, module, {**environment, **environment_of(sources)})
        return other

    def environment_of_process(self, name: str, starts: int) -> Mapping[str, str]:
        """A name for each executor process, by which its heartbeats, its facts and its model calls are known."""
        module, environment = self._modules[name]
        if module != "executor":
            return {}
        process = f"{name}.{starts}"
        endpoint = path_of(self.endpoints[environment["PARALLAX_REGION"]], process)
        return {"PARALLAX_EXECUTOR_ID": process, "PARALLAX_ENDPOINT": endpoint}

    async def close(self) -> None:
        """Stop every replica."""
        await self.stop_all()
        await self._engine.dispose()

    # --- users

    async def submit(self, job_id: str, spec: JobSpec) -> None:
        """Publish a job, however long the broker is away."""
        self._submitted[job_id] = spec
        await self._publish(SubmitJob(job_id=job_id, job=spec))

    async def cancel(self, job_id: str) -> None:
        """Publish a cancellation, however long the broker is away."""
        await self._publish(CancelJob(job_id=job_id))

    async def _publish(self, message: Message) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self._bus.publish(message)
                except UnavailableError:
                    await asyncio.sleep(0.2)
                else:
                    return

    # --- looking

    async def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query, however long the database is away."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with transaction(self._engine) as connection:
                        return [dict(row) for row in (await connection.execute(text(sql), parameters)).mappings()]
                except UnavailableError:
                    await asyncio.sleep(0.2)

    async def wait_for(self, sql: str, *, patience_s: float = PATIENCE_S, **parameters: Any) -> None:
        """Wait until a query gives a first column that is true."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    rows = await self.rows(sql, **parameters)
                    if rows and next(iter(rows[0].values())):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise TimeoutError(f"still not: {sql} {parameters}\n{self.describe()}") from error

    def calls(self) -> list[ModelCall]:
        """Every call that a model server saw."""
        return calls_of(self._mocks)

    def calls_of(self, job_id: str) -> list[ModelCall]:
        """The calls for one of the jobs submitted here."""
        spec = self._submitted[job_id]
        plan = JobPlan.of(spec)
        own = {
            execution_id(job_id, question.id, *cell)
            for lane in plan.lanes()
            for question in spec.questions
            for cell in plan.cells(lane)
        }
        return [call for call in self.calls() if call.execution_id in own]

    async def drained(self, region: str) -> None:
        """Wait until no task waits in a region's queue."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._bus.depth(executions(region)):  # noqa: ASYNC110 - the broker sets no event
                await asyncio.sleep(0.05)

    async def serve_models(self, stack: AsyncExitStack) -> dict[str, str]:
        """Start a model server for each region, and give the endpoints for a catalog."""
        for region in REGIONS:
            app = self._mocks[region] = model_server()
            self.endpoints[region] = f"openai+{await stack.enter_async_context(serving(app))}"
        return self.endpoints


@asynccontextmanager
async def installation(
    folder: Path,
    node: Node,
    *,
    namespace: str,
    dispatchers: int = 1,
    results: int = 1,
    executors: int = 1,
    concurrency: int = 10,
    timings: Timings = QUICK,
    sources: Path | None = None,
) -> AsyncIterator[Installation]:
    """Every service as a process of its own, ready; broker and database are behind proxies that can be hurt.

    ``sources`` are those of another version to begin with, see ``tests.harness.sources``.
    """
    async with AsyncExitStack() as stack:
        postgres = Postgres()
        stack.callback(postgres.close)
        await migrated(postgres.url, sources=sources)
        bus = await connect(node.url, namespace=namespace, regions=REGIONS, name="harness")
        stack.push_async_callback(bus.close)
        children = Children()
        stack.callback(children.close)
        made = Installation(
            node=node,
            postgres=postgres,
            broker=await stack.enter_async_context(proxying(_dial(node))),
            database=await stack.enter_async_context(proxying(postgres.dial)),
            bus=bus,
            children=children,
            folder=folder,
            namespace=namespace,
        )
        stack.push_async_callback(made.close)
        endpoints = await made.serve_models(stack)
        shared = {
            **os.environ,
            **timings.environment(),
            "PARALLAX_NAMESPACE": namespace,
            "PARALLAX_CATALOG": str(_catalog(folder, endpoints)),
            "PARALLAX_LOG": "json",
            "PARALLAX_CONCURRENCY": str(concurrency),
            **environment_of(sources),
        }
        for module, count in (("dispatcher", dispatchers), ("results", results)):
            for number in range(count):
                made.add(f"{module}-{number}", module, shared)
        for region in REGIONS:
            for number in range(executors):
                made.add(f"executor-{region}-{number}", "executor", {**shared, "PARALLAX_REGION": region})
        await made.ready()
        supervising = asyncio.create_task(made.supervise())
        try:
            yield made
        finally:
            supervising.cancel()


def _dial(node: Node) -> Any:
    target = urlsplit(node.url)

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(str(target.hostname), target.port or 5672)

    return dial


def _catalog(folder: Path, endpoints: Mapping[str, str]) -> Path:
    catalog = folder / "catalog.yaml"
    catalog.write_text(
        yaml.safe_dump(
            {
                "regions": {r: {"name": r, "endpoint": url, "simulated": True} for r, url in endpoints.items()},
                "models": {"mock": {"upstream": "mock", "regions": list(REGIONS)}},
            }
        )
    )
    return catalog
