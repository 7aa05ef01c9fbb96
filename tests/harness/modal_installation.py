"""An installation on RabbitMQ and PostgreSQL whose executors are processes that call Modal classes on loopback.

The classes answer with the request handling of the deployment and a real small language model.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher import app as dispatcher_app
from dispatcher.settings import Settings as DispatcherSettings
from modal_deployment.answering import Where, answer
from modal_deployment.plan import ModelPlan
from parallax.bus.amqp import AmqpBus, connect
from parallax.catalog import Catalog, load_catalog
from parallax.clock import SystemClock
from parallax.contracts.job import JobSpec
from parallax.contracts.messages import SubmitJob
from parallax.db.engine import create_engine
from parallax_cli.local_model import MODEL_ID, local_model
from parallax_cli.schemas import migrate_all
from results import app as results_app
from results.settings import Settings as ResultsSettings
from tests.fakes.engines import LlamaEngine
from tests.fakes.modal_control_plane import TOKEN_ID, TOKEN_SECRET, Call, ControlPlane, Handler, control_plane
from tests.harness.results import rows

REGIONS: Final = {"us": "us-east-1", "eu": "eu-west-1", "apac": "ap-northeast-1"}
"""Regions of the catalog, and the place that a container in each of them sees."""
PATIENCE_S: Final = 120.0
"""Five processes, a broker, a database and a language model share two cores with other tests."""


@dataclass(slots=True)
class Installation:
    """What a test may do with it."""

    plane: ControlPlane
    engine: LlamaEngine
    database: AsyncEngine
    bus: AmqpBus
    environment: dict[str, str]
    executors: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start_executor(self, region: str) -> None:
        """Start the executor of a region, as its operator would; the one in apac asks for plain data, not pickles."""
        chosen = {"MODAL_PAYLOAD_FORMAT": "cbor"} if region == "apac" else {}
        self.executors[region] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "executor",
            env={**self.environment, "PARALLAX_REGION": region, **chosen},
        )

    async def kill_executor(self, region: str) -> None:
        """End an executor as a power cut would."""
        self.executors[region].kill()
        await self.executors[region].wait()

    async def stop(self) -> None:
        """Ask every executor to leave, and see it go."""
        alive = [process for process in self.executors.values() if process.returncode is None]
        for process in alive:
            process.terminate()
        for process in alive:
            try:
                await asyncio.wait_for(process.wait(), timeout=60)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def submit(self, job_id: str, **changes: Any) -> None:
        """Submit a job of one question to one model in three regions, with something changed."""
        document = {
            "name": job_id,
            "questions": [{"id": "q1", "text": "Why is the sky blue?"}],
            "models": [{"id": MODEL_ID}],
            "regions": list(REGIONS),
            "parameters": {"temperature": 0, "max_tokens": 12},
            **changes,
        }
        spec = JobSpec.model_validate(document, strict=False)
        await self.bus.publish(SubmitJob(job_id=job_id, job=spec))

    async def until_calls(self, condition: Callable[[list[Call]], bool]) -> None:
        """Wait until the control plane has seen calls like this."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self.plane.calls):
                self.plane.changed.clear()
                await self.plane.changed.wait()

    async def outcome(self, job_id: str) -> str:
        """How the job ended, once it has."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await rows(self.database, "SELECT outcome FROM results.jobs WHERE job_id = :job", job=job_id)
                if found and found[0]["outcome"] is not None:
                    return str(found[0]["outcome"])
                await asyncio.sleep(0.05)

    async def facts(self, job_id: str) -> list[dict[str, Any]]:
        """What the ledger holds of the job."""
        return await rows(self.database, "SELECT * FROM results.executions WHERE job_id = :job", job=job_id)


@asynccontextmanager
async def modal_installation(
    folder: Path, *, amqp_url: str, namespace: str, database_url: str
) -> AsyncIterator[Installation]:
    """Everything running but the executors, which tests start."""
    catalog_file = folder / "catalog.yaml"
    catalog_file.write_text(yaml.safe_dump(_catalog()))
    catalog = load_catalog(catalog_file)
    async with AsyncExitStack() as stack:
        model_url = stack.enter_context(local_model())
        engine = LlamaEngine(model_url, MODEL_ID)
        stack.push_async_callback(engine.close)
        plane = ControlPlane()
        for region, place in REGIONS.items():
            plane.deploy(f"parallax-{region}", "Inference", _class_in(place, engine))
        server_url = await stack.enter_async_context(control_plane(plane))
        bus = await connect(amqp_url, namespace=namespace, regions=catalog.regions, name="test")
        stack.push_async_callback(bus.close)
        await migrate_all(database_url)
        database = create_engine(database_url, application_name="test", pool_size=12)
        stack.push_async_callback(database.dispose)
        await stack.enter_async_context(_services(bus, database, catalog))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PARALLAX_", "MODAL_"))},
            "PARALLAX_AMQP_URL": amqp_url,
            "PARALLAX_NAMESPACE": namespace,
            "PARALLAX_CATALOG": str(catalog_file),
            "MODAL_SERVER_URL": server_url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
        }
        installation = Installation(plane, engine, database, bus, environment)
        stack.push_async_callback(installation.stop)
        yield installation


def _catalog() -> dict[str, Any]:
    regions = {
        region: {"name": region, "endpoint": f"modal://parallax-{region}/Inference", "modal_region": region}
        for region in REGIONS
    }
    return {"regions": regions, "models": {MODEL_ID: {"upstream": "org/smollm2", "regions": list(REGIONS)}}}


def _class_in(place: str, engine: LlamaEngine) -> Handler:
    """The class of one region's app."""
    model = ModelPlan(name=MODEL_ID, upstream="org/smollm2", revision=None, max_model_len=1024)
    where = Where(region=place, cloud="aws", container=f"ta-{place}")

    async def generate(_: str, request: Any) -> object:
        return await answer(engine, request, model=model, where=where, monotonic=time.monotonic)

    return generate


@asynccontextmanager
async def _services(bus: AmqpBus, database: AsyncEngine, catalog: Catalog) -> AsyncIterator[None]:
    clock = SystemClock()
    async with (
        results_app.running(bus=bus, engine=database, clock=clock, settings=ResultsSettings()),
        dispatcher_app.running(
            bus=bus, engine=database, catalog=catalog, clock=clock, settings=DispatcherSettings(reconcile_after_s=5.0)
        ),
    ):
        yield
