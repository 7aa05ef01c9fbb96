"""An executor whose model answers in this process: ``python -m tests.benchmarks.compare.instant_executor``.

The same composition as ``python -m executor`` but for the endpoint, so that no HTTP call is measured where the
other contenders make none. ``BENCH_LATENCY_S`` is how long each call takes.
"""

import asyncio
import sys
from collections.abc import Mapping
from types import MappingProxyType

from executor import app
from executor.endpoints.port import CallTrace, ModelAnswer, ModelRequest
from executor.settings import from_environment
from parallax.bus.amqp import connect
from parallax.catalog import load_catalog
from parallax.clock import SystemClock
from parallax.process import ProcessSettings, http_server, probe_app, run, started
from tests.benchmarks.compare.jobs import ANSWER


class InstantEndpoint:
    """Answers every call with the same text after a fixed time."""

    provider = "instant"
    reports_first_byte = True
    versions: Mapping[str, str] = MappingProxyType({"instant": "1"})

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """The answer."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        trace.first_byte()
        return ANSWER

    async def close(self) -> None:
        """Nothing to release."""


async def main(environment: Mapping[str, str]) -> int:
    """Run until SIGTERM."""
    process_settings = ProcessSettings.from_environment(environment, database=False)
    catalog = load_catalog(process_settings.catalog)
    with started("executor", process_settings) as process:
        bus = await process.reach(
            "RabbitMQ",
            lambda: connect(
                process_settings.amqp_url,
                namespace=process_settings.namespace,
                regions=tuple(catalog.regions),
                name="instant-executor",
            ),
        )
        try:
            async with (
                app.running(
                    bus=bus,
                    catalog=catalog,
                    endpoint=InstantEndpoint(float(environment.get("BENCH_LATENCY_S", "0"))),
                    clock=SystemClock(),
                    settings=from_environment(environment),
                ) as health,
                http_server(probe_app(health), process_settings.http),
            ):
                return await process.watch(health)
        finally:
            await bus.close()


if __name__ == "__main__":
    sys.exit(run("executor", main))
