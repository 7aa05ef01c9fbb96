"""Runs a dispatcher: ``python -m dispatcher``, configured by the environment."""

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack

from dispatcher.app import running
from dispatcher.settings import from_environment
from parallax.bus.amqp import connect
from parallax.catalog import load_catalog
from parallax.clock import SystemClock
from parallax.db.engine import create_engine
from parallax.db.migrations import check
from parallax.process import CLOSING_S, ProcessSettings, http_server, probe_app, run, started


async def main(environment: Mapping[str, str]) -> int:
    """Run until told to stop; the exit codes are those of :mod:`parallax.process`."""
    shared = ProcessSettings.from_environment(environment, database=True)
    settings = from_environment(environment)
    catalog = load_catalog(shared.catalog)
    async with AsyncExitStack() as stack:
        process = stack.enter_context(started("dispatcher", shared, ends_within_s=settings.grace_s + CLOSING_S))
        bus = await process.reach(
            "broker",
            lambda: connect(
                shared.amqp_url, namespace=shared.namespace, regions=catalog.regions, name="parallax dispatcher"
            ),
        )
        stack.push_async_callback(process.close, "broker", bus.close)
        engine = create_engine(
            shared.database, application_name="parallax dispatcher", pool_size=2 * settings.prefetch + 4
        )
        stack.push_async_callback(process.close, "database", engine.dispose)
        await process.reach("database", lambda: check(engine, package="dispatcher", schema="dispatcher"))
        health = await stack.enter_async_context(
            running(bus=bus, engine=engine, catalog=catalog, clock=SystemClock(), settings=settings)
        )
        await stack.enter_async_context(http_server(probe_app(health), shared.http))
        return await process.watch(health)


if __name__ == "__main__":
    sys.exit(run("dispatcher", main))
