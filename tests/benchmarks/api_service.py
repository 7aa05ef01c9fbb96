"""The API in a process of its own, which has loaded what the service loads and nothing else.

``python -m tests.benchmarks.api_service DATABASE_URL SOCKET``
"""

import asyncio
import sys
from importlib import import_module
from importlib.resources import files

import uvicorn
import yaml

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.catalog import parse_catalog
from parallax.clock import SystemClock
from parallax.db.engine import create_engine
from parallax.process import settle
from results.api.app import create_api
from results.api.settings import ApiSettings


async def serve(database_url: str, socket: str) -> None:
    """Run the API on a Unix socket until the process is ended; it requires a key."""
    service = import_module("results.__main__")
    document = yaml.safe_load((files("parallax") / "catalog.local.yaml").read_text(encoding="utf-8"))
    catalog = parse_catalog(document, source="catalog.local.yaml")
    app = create_api(
        engine=create_engine(database_url, application_name="bench-api", pool_size=service.READERS),
        bus=MemoryBus(MemoryBroker(catalog.regions)),
        catalog=catalog,
        clock=SystemClock(),
        settings=ApiSettings(require_keys=True),
    )
    settle()
    # The client keeps one connection, which is silent while the floor is measured.
    config = uvicorn.Config(app, uds=socket, log_level="warning", access_log=False, timeout_keep_alive=600)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
