"""Runs an executor: ``python -m executor``, configured by the environment."""

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from executor.app import running
from executor.endpoints.factory import create_endpoint
from executor.runner import ABORT_S, DRAIN_S
from executor.settings import from_environment
from parallax.bus.amqp import connect
from parallax.catalog import load_catalog
from parallax.clock import SystemClock
from parallax.errors import InvalidInputError
from parallax.process import CLOSING_S, ProcessSettings, http_server, probe_app, run, started

FAREWELL_S: Final = 10.0
"""For the last heartbeat, which a broker that blocks publishers keeps waiting."""


async def main(environment: Mapping[str, str]) -> int:
    """Run until told to stop; the exit codes are those of :mod:`parallax.process`."""
    shared = ProcessSettings.from_environment(environment, database=False)
    settings = from_environment(environment)
    catalog = load_catalog(shared.catalog)
    region = catalog.regions.get(settings.region)
    if region is None:
        known = ", ".join(catalog.regions)
        raise InvalidInputError(f"PARALLAX_REGION: {settings.region!r} is not in the catalog; known regions: {known}")
    endpoint = create_endpoint(environment.get("PARALLAX_ENDPOINT") or region.endpoint, environment)
    async with AsyncExitStack() as stack:
        leaving_s = settings.grace_s + ABORT_S + DRAIN_S + FAREWELL_S
        process = stack.enter_context(started("executor", shared, ends_within_s=leaving_s + CLOSING_S))
        bus = await process.reach(
            "broker",
            lambda: connect(
                shared.amqp_url, namespace=shared.namespace, regions=catalog.regions, name="parallax executor"
            ),
        )
        stack.push_async_callback(process.close, "broker", bus.close)
        stack.push_async_callback(process.close, "endpoint", endpoint.close)
        health = await stack.enter_async_context(
            running(bus=bus, catalog=catalog, endpoint=endpoint, clock=SystemClock(), settings=settings)
        )
        await stack.enter_async_context(http_server(probe_app(health), shared.http))
        return await process.watch(health)


if __name__ == "__main__":
    sys.exit(run("executor", main))
