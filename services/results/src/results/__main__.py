"""Runs the results service: writer, API and web page: ``python -m results``, configured by the environment."""

import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from parallax.bus.amqp import connect
from parallax.catalog import load_catalog
from parallax.clock import SystemClock
from parallax.db.engine import LONG, create_engine
from parallax.db.migrations import check
from parallax.process import CLOSING_S, HttpAddress, ProcessSettings, http_server, run, started
from results.api.app import create_api, require_a_key
from results.api.settings import from_environment as api_from_environment
from results.app import running
from results.settings import from_environment
from results.tables import SCHEMA

WRITERS: Final = 6
"""Connections of the writer: facts, events, heartbeats, health one each, requests about batches two; none waits."""
READERS: Final = 8
"""Connections of the API and the page. However long their queries take, the ledger goes on."""


async def main(environment: Mapping[str, str]) -> int:
    """Run until told to stop; the exit codes are those of :mod:`parallax.process`."""
    shared = ProcessSettings.from_environment(environment, database=True)
    settings = from_environment(environment)
    api_settings = api_from_environment(environment)
    catalog = load_catalog(shared.catalog)
    async with AsyncExitStack() as stack:
        process = stack.enter_context(started("results", shared, ends_within_s=settings.grace_s + CLOSING_S))
        bus = await process.reach(
            "broker",
            lambda: connect(
                shared.amqp_url, namespace=shared.namespace, regions=catalog.regions, name="parallax results"
            ),
        )
        stack.push_async_callback(process.close, "broker", bus.close)
        writers = create_engine(shared.database, application_name="parallax results", pool_size=WRITERS)
        stack.push_async_callback(process.close, "writers' connections", writers.dispose)
        readers = create_engine(
            shared.database, application_name="parallax results api", pool_size=READERS, limits=LONG
        )
        stack.push_async_callback(process.close, "readers' connections", readers.dispose)
        await process.reach("database", lambda: check(writers, package="results", schema=SCHEMA))
        clock = SystemClock()
        health = await stack.enter_async_context(running(bus=bus, engine=writers, clock=clock, settings=settings))
        await require_a_key(readers, clock, api_settings)
        api = create_api(engine=readers, bus=bus, catalog=catalog, clock=clock, settings=api_settings, health=health)
        await stack.enter_async_context(http_server(api, HttpAddress(api_settings.host, api_settings.port)))
        return await process.watch(health)


if __name__ == "__main__":
    sys.exit(run("results", main))
