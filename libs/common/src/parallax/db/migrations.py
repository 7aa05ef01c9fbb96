"""Brings one service's schema to the newest revision, safely from several replicas at once."""

import asyncio
from importlib.resources import as_file, files
from typing import Any
from weakref import WeakKeyDictionary

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import transaction


async def migrate(engine: AsyncEngine, *, package: str, schema: str) -> None:
    """Run the Alembic revisions in ``package``/migrations/versions that ``schema`` does not have yet.

    Idempotent; replicas that start together wait for each other on an advisory lock.
    """
    async with _turn(), transaction(engine) as connection:
        await connection.run_sync(_upgrade, package, schema)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def _turn() -> asyncio.Lock:
    """Services of one process migrate one after the other: Alembic keeps the running migration in globals."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _upgrade(connection: Connection, package: str, schema: str) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"parallax.{schema}"})
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    with as_file(files(package) / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.set_main_option("path_separator", "os")
        script = ScriptDirectory.from_config(config)

        def to_head(revision: Any, _context: Any) -> Any:
            return script._upgrade_revs("head", revision)  # noqa: SLF001 - Alembic's own documented recipe

        with EnvironmentContext(config, script, fn=to_head) as environment:
            environment.configure(connection=connection, version_table_schema=schema)
            environment.run_migrations()
