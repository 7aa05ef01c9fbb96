"""Brings one service's schema to the newest revision, safely from several replicas at once."""

import asyncio
from importlib.resources import as_file, files
from pathlib import Path
from weakref import WeakKeyDictionary

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import transaction


async def migrate(engine: AsyncEngine, *, package: str, schema: str) -> None:
    """Run the Alembic revisions in ``package``/migrations/versions that ``schema`` does not have yet.

    Idempotent; replicas that start together wait for each other on an advisory lock.
    """
    with as_file(files(package) / "migrations") as folder:
        if await _revision(engine, schema) == newest(folder):
            return
        from parallax.db import revisions  # noqa: PLC0415 - large, and seldom needed

        async with _turn(), transaction(engine) as connection:
            await connection.run_sync(revisions.upgrade, folder, schema)


def newest(folder: Path) -> str:
    """The last revision in ``folder``/versions, whose files are named after their revisions: ``0001_why.py``."""
    return max(file.name for file in (folder / "versions").glob("[0-9]*.py")).partition("_")[0]


async def _revision(engine: AsyncEngine, schema: str) -> str | None:
    """The revision of a schema, or ``None`` before its first."""
    async with transaction(engine) as connection:
        there = await connection.execute(text("SELECT to_regclass(:name)"), {"name": f'"{schema}".alembic_version'})
        if there.scalar_one() is None:
            return None
        found = await connection.execute(text(f'SELECT version_num FROM "{schema}".alembic_version'))  # noqa: S608
        return found.scalar_one_or_none()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def _turn() -> asyncio.Lock:
    """Services of one process migrate one after the other: Alembic keeps the running migration in globals."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
