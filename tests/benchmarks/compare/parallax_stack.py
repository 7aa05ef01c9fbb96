"""Runs Parallax as its users do: each service a process, on RabbitMQ and PostgreSQL."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx
import yaml

from parallax.bus.amqp import connect
from parallax.contracts.messages import SubmitJob
from parallax_cli.children import free_ports
from parallax_cli.schemas import migrate_all
from tests.benchmarks.compare import http_model, instant_executor
from tests.benchmarks.compare.figures import REGIONS, Load
from tests.benchmarks.compare.jobs import catalog, job
from tests.benchmarks.compare.ledger import ledger
from tests.benchmarks.compare.service import ContenderFailedError, Service, started
from tests.benchmarks.compare.stack import READY_TIMEOUT_S, Site, Stack, job_names
from tests.harness.rabbitmq import delete_namespace

NAMESPACE: Final = "bench-parallax"


@dataclass(frozen=True, slots=True)
class Variant:
    """How Parallax is run."""

    executors_per_region: int = 1
    latency_s: float = 0.0
    http_model: bool = False
    """True: the executors as shipped, calling a mock model over HTTP; false: a model inside the executor."""


@asynccontextmanager
async def parallax_stack(site: Site, variant: Variant) -> AsyncIterator[Stack]:
    """Parallax, running, every service ready."""
    await migrate_all(site.database_url)
    model_port, *ports = free_ports(3 + 3 * variant.executors_per_region)
    endpoint = f"openai+http://127.0.0.1:{model_port}/v1"
    path = site.folder / "catalog.yaml"
    path.write_text(yaml.safe_dump(catalog(endpoint).model_dump(mode="json")))
    environment = {
        "PARALLAX_AMQP_URL": site.amqp_url,
        "PARALLAX_DATABASE_URL": site.database_url,
        "PARALLAX_NAMESPACE": NAMESPACE,
        "PARALLAX_CATALOG": str(path),
        "PARALLAX_LOG": "json",
        "BENCH_LATENCY_S": str(variant.latency_s),
    }
    executor = "executor" if variant.http_model else instant_executor.__name__
    plan = [
        ("dispatcher", "dispatcher", {}),
        ("results", "results", {}),
        *(
            (f"executor {region}" + (f" {index}" if index else ""), executor, {"PARALLAX_REGION": region})
            for region in REGIONS
            for index in range(variant.executors_per_region)
        ),
    ]
    async with AsyncExitStack() as resources:
        processes = resources.enter_context(ExitStack())
        services: list[Service] = []
        if variant.http_model:
            command = [sys.executable, "-m", http_model.__name__, str(model_port)]
            services.append(
                processes.enter_context(started("model (mock)", command, folder=site.folder, environment={}))
            )
        for (name, module, own), port in zip(plan, ports, strict=False):
            http = {"PARALLAX_HTTP": f"127.0.0.1:{port}"}
            command = [sys.executable, "-m", module]
            services.append(
                processes.enter_context(
                    started(name, command, folder=site.folder, environment={**environment, **own, **http})
                )
            )
        await _until_ready(list(zip(services[-len(plan) :], ports, strict=False)))
        bus = await connect(site.amqp_url, namespace=NAMESPACE, regions=REGIONS, name="benchmark")
        resources.push_async_callback(bus.close)
        rows = await resources.enter_async_context(ledger(site.database_url, "results.executions"))

        async def submit(prefix: str, load: Load) -> None:
            spec = job(load.questions)
            await bus.publish(*(SubmitJob(job_id=name, job=spec) for name in job_names(prefix, load)))

        yield Stack(tuple(services), rows, submit)
    await delete_namespace(site.amqp_url, NAMESPACE)


async def _until_ready(services: list[tuple[Service, int]]) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    async with httpx.AsyncClient(trust_env=False) as client:
        for service, port in services:
            while not await _ready(client, port):
                service.check()
                if time.monotonic() > until:
                    raise ContenderFailedError(f"{service.name} is not ready:\n{service.tail()}")
                await asyncio.sleep(0.1)


async def _ready(client: httpx.AsyncClient, port: int) -> bool:
    try:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    except httpx.HTTPError:
        return False
