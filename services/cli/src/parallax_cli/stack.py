"""The whole installation as local processes: what ``make up`` runs.

Broker and database are started unless their URLs are given. A service that ends by itself is started again, as
a container runtime would; one that keeps ending is given up on.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import yaml

from parallax.catalog import Catalog
from parallax.db.embedded import embedded_postgres
from parallax.errors import UnavailableError
from parallax_cli.children import Children, free_port, wait_for_port
from parallax_cli.local_model import LOCAL_ENDPOINT
from parallax_cli.rabbitmq_node import rabbitmq_node
from parallax_cli.schemas import migrate_all

READY_TIMEOUT_S: Final = 120.0
RESTARTS: Final = 5
"""A service that ended so often is not started again: something is wrong that a restart does not mend."""
RESTART_PAUSE_S: Final = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the stack."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    http_port: int


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything is."""

    api: str
    amqp: str
    database: str
    model: str | None
    logs: Path
    services: tuple[Service, ...]


@asynccontextmanager
async def running(
    folder: Path, catalog: Catalog, environment: Mapping[str, str], *, executors: int, api_port: int, say: Say
) -> AsyncIterator["Stack"]:
    """Start everything, wait until every service is ready, and stop all of it at the end of the block.

    Raises:
        UnavailableError: Something did not start; the message names it and its log.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        children = Children()
        stack.callback(children.close)
        say("starting the broker and the database")
        amqp, database = environment.get("PARALLAX_AMQP_URL", ""), environment.get("PARALLAX_DATABASE_URL", "")
        if not amqp:
            amqp = await stack.enter_async_context(rabbitmq_node(folder / "rabbitmq", children))
        if not database:
            database = stack.enter_context(embedded_postgres(folder / "postgres"))
        say("migrating the schemas")
        await migrate_all(database)
        model = await _local_model(stack, children, catalog, logs)
        shared = _shared_environment(environment, folder, catalog, model, amqp)
        services = _services(catalog, shared, database, executors=executors, api_port=api_port)
        addresses = Addresses(f"http://127.0.0.1:{services[1].http_port}", amqp, database, model, logs, services)
        running_stack = Stack(addresses, children, say)
        stack.push_async_callback(running_stack.stop)
        say("starting the services")
        await running_stack.start()
        yield running_stack


class Stack:
    """The services at work."""

    def __init__(self, addresses: Addresses, children: Children, say: Say) -> None:
        self.addresses = addresses
        self._children = children
        self._say = say
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts: dict[str, int] = {}

    async def start(self) -> None:
        """Start every service and wait until all are ready."""
        for service in self.addresses.services:
            self._spawn(service)
        async with httpx.AsyncClient(timeout=2.0) as client:
            await asyncio.gather(*(self._ready(client, service) for service in self.addresses.services))

    async def supervise(self) -> None:
        """Start again what ends by itself, until cancelled.

        Raises:
            UnavailableError: A service keeps ending.
        """
        while True:
            for service in self.addresses.services:
                if self._running[service.name].poll() is not None:
                    await self._restart(service)
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Stop every service: all are asked at once, and each has its grace period."""
        self._say("stopping the services")
        await asyncio.gather(*(self._children.stop(child) for child in self._running.values()))
        self._say("stopping the broker and the database")

    def _spawn(self, service: Service) -> None:
        self._running[service.name] = self._children.spawn(
            service.command, environment=service.environment, log=self._log(service)
        )

    async def _restart(self, service: Service) -> None:
        child = self._running[service.name]
        self._restarts[service.name] = self._restarts.get(service.name, 0) + 1
        if self._restarts[service.name] > RESTARTS:
            raise UnavailableError(f"{service.name} ended {RESTARTS + 1} times; see {self._log(service)}")
        self._say(f"{service.name} ended with {child.returncode} and is started again; see {self._log(service)}")
        self._children.kill(child)
        await asyncio.sleep(RESTART_PAUSE_S)
        self._spawn(service)

    async def _ready(self, client: httpx.AsyncClient, service: Service) -> None:
        until = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while asyncio.get_running_loop().time() < until:
            if (code := self._running[service.name].poll()) is not None:
                raise UnavailableError(f"{service.name} ended with {code} while it started; see {self._log(service)}")
            try:
                if (await client.get(f"http://127.0.0.1:{service.http_port}/readyz")).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
        raise UnavailableError(f"{service.name} is not ready after {READY_TIMEOUT_S:g} s; see {self._log(service)}")

    def _log(self, service: Service) -> Path:
        return self.addresses.logs / f"{service.name}.log"


async def _local_model(stack: AsyncExitStack, children: Children, catalog: Catalog, logs: Path) -> str | None:
    """Start the local model as a process when the catalog names it."""
    if all(region.endpoint != LOCAL_ENDPOINT for region in catalog.regions.values()):
        return None
    port, log = free_port(8001), logs / "model.log"
    child = children.spawn([*_parallax(), "local-model", "--port", str(port)], log=log)
    stack.push_async_callback(children.stop, child)
    await wait_for_port(port, child, what="the local model", log=log, timeout_s=READY_TIMEOUT_S)
    return f"http://127.0.0.1:{port}/v1"


def _shared_environment(
    environment: Mapping[str, str], folder: Path, catalog: Catalog, model: str | None, amqp: str
) -> dict[str, str]:
    """What every service gets; the catalog is written with the local model's address in its place."""
    document = catalog.model_dump(mode="json", exclude_none=True)
    for region in document["regions"].values():
        if region["endpoint"] == LOCAL_ENDPOINT and model is not None:
            region["endpoint"] = f"openai+{model}"
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return {
        **os.environ,
        **environment,
        "PARALLAX_AMQP_URL": amqp,
        "PARALLAX_CATALOG": str(path),
        "PARALLAX_LOG": environment.get("PARALLAX_LOG", "json"),
    }


def _services(
    catalog: Catalog, shared: Mapping[str, str], database: str, *, executors: int, api_port: int
) -> tuple[Service, ...]:
    with_database = {**shared, "PARALLAX_DATABASE_URL": database}
    services = [
        _service("dispatcher", "dispatcher", with_database, free_port()),
        _service("results", "results", with_database, free_port(api_port)),
    ]
    for region in catalog.regions:
        for number in range(1, executors + 1):
            name = f"executor-{region}" + (f"-{number}" if executors > 1 else "")
            services.append(_service(name, "executor", {**shared, "PARALLAX_REGION": region}, free_port()))
    return tuple(services)


def _service(name: str, module: str, environment: Mapping[str, str], port: int) -> Service:
    return Service(
        name=name,
        command=(sys.executable, "-m", module),
        environment={**environment, "PARALLAX_HTTP": f"127.0.0.1:{port}"},
        http_port=port,
    )


def _parallax() -> tuple[str, ...]:
    return (sys.executable, "-m", "parallax_cli")
