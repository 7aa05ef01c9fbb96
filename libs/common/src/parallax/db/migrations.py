"""Brings schemas to the newest revision, in two phases, while services of two versions use them.

Revisions are the files of ``package``/migrations/versions, named after number, phase and purpose:
``0004_expand_functions_with_versions.py``. An *expand* revision only adds: services of the version before work on as
they did, so it runs before a roll-out. A *contract* revision removes what only they used, so it runs after it.

Services never migrate: they check at their start that the schema has every expand revision that their version knows,
and take any later revision for one that does not concern them.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from importlib.resources import as_file, files
from itertools import takewhile
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.db.engine import transaction
from parallax.errors import InvalidInputError, UnavailableError
from parallax.telemetry import get_logger

_TRANSIENT_SQLSTATES: Final = ("08", "53", "57P", "40001", "40P01", "55P03", "25006")
"""Connection failure, no resources, shutdown, serialization failure, deadlock, lock not available, a read-only server:
repeating the revision may succeed. Everything else is a mistake in it."""

LOCK_TIMEOUT_MS: Final = 500
"""Whoever uses a table queues behind a revision that waits for a lock on it, so none waits longer than this."""
LOCK_ATTEMPTS: Final = 120
LOCK_PAUSE_S: Final = 1.0
"""Between two attempts those who queued have their turn. With the attempts: two to four minutes for one lock, longer
than any transaction of a service may last (``IDLE_TRANSACTION_TIMEOUT_MS`` and ``STATEMENT_TIMEOUT_MS``)."""
TURN_PAUSE_S: Final = 0.2
"""How often a migration asks whether the one before it is done, which may take as long as an index takes to build."""

_LOCKED: Final = ("55P03", "40P01")
"""Lock not available, deadlock: the revision was rolled back, and can be tried again."""

_SETTINGS: Final = (
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    f"SET lock_timeout = {LOCK_TIMEOUT_MS}",
)
_TRY_LOCK: Final = text("SELECT pg_try_advisory_lock(hashtextextended('parallax.' || CAST(:schema AS text), 0))")

log = get_logger(__name__)


class Phase(StrEnum):
    """When a revision may run."""

    EXPAND = "expand"
    """Before a roll-out: it only adds."""
    CONTRACT = "contract"
    """After a roll-out: it removes what no running version uses any more."""


class Revision(NamedTuple):
    """One step of a schema."""

    schema: str
    number: str
    """Four digits; numbers are compared as text."""
    phase: Phase
    purpose: str

    def __str__(self) -> str:
        return f"{self.schema} {self.number} ({self.phase}: {self.purpose})"


def known(package: str, schema: str) -> tuple[Revision, ...]:
    """Every revision that this version of a package knows, in order."""
    with as_file(files(package) / "migrations") as folder:
        names = sorted(path.stem for path in (folder / "versions").glob("[0-9]*.py"))
    parts = (name.split("_", 2) for name in names)
    return tuple(Revision(schema, number, Phase(phase), purpose.replace("_", " ")) for number, phase, purpose in parts)


def due(pending: tuple[Revision, ...], phase: Phase | None, *, fresh: bool) -> tuple[Revision, ...]:
    """Those of the pending revisions to run now: all, or as many of one phase as come first.

    Nobody uses a fresh schema, so that there is nothing to wait for.
    """
    if phase is None or (fresh and phase is Phase.EXPAND):
        return pending
    return tuple(takewhile(lambda revision: revision.phase is phase, pending))


async def pending(engine: AsyncEngine, *, package: str, schema: str) -> tuple[Revision, ...]:
    """The revisions that this version knows and the schema does not have."""
    async with transaction(engine) as connection:
        return _after(await _current(connection, schema), known(package, schema))


async def check(engine: AsyncEngine, *, package: str, schema: str) -> None:
    """See whether the schema has what this version of a service needs; a newer one is fine.

    Raises:
        UnavailableError: It is behind, or the database is away: wait, a migration may be on its way.
    """
    needed = max(revision.number for revision in known(package, schema) if revision.phase is Phase.EXPAND)
    async with transaction(engine) as connection:
        current = await _current(connection, schema)
    if current is None or current < needed:
        has = "does not exist" if current is None else f"is at revision {current}"
        raise UnavailableError(f"schema {schema!r} {has}; this version needs {needed}: run `parallax migrate --before`")


async def migrate(
    engine: AsyncEngine, *, package: str, schema: str, phase: Phase | None = None
) -> tuple[Revision, ...]:
    """Run the pending revisions of both phases, or those of one that come first; returns what was run.

    Each is committed by itself, on a connection without time limits, alone among all replicas. Idempotent.

    Raises:
        InvalidInputError: An expand revision comes after a pending contract revision, which may not run yet.
        UnavailableError: The database is away, or somebody held a lock for too long.
    """
    if not await pending(engine, package=package, schema=schema):
        return ()
    from parallax.db import revisions  # noqa: PLC0415 - large, and seldom needed

    applied: list[Revision] = []
    async with _turn(), _alone(engine, schema) as connection:
        current = await _current(connection, schema)
        await connection.commit()
        left = _after(current, known(package, schema))
        with as_file(files(package) / "migrations") as folder:
            for revision in due(left, phase, fresh=current is None):
                await _patiently(
                    connection, partial(revisions.apply, folder=folder, schema=schema, number=revision.number)
                )
                log.info("schema_migrated", schema=schema, revision=revision.number, phase=revision.phase.value)
                applied.append(revision)
    if phase is Phase.EXPAND:
        _refuse_to_skip(left[len(applied) :])
    return tuple(applied)


def _after(current: str | None, revisions: Iterable[Revision]) -> tuple[Revision, ...]:
    return tuple(revision for revision in revisions if current is None or revision.number > current)


def _refuse_to_skip(left: tuple[Revision, ...]) -> None:
    """Raises when a version is rolled out before the roll-out of an earlier one was finished."""
    waiting = next((revision for revision in left if revision.phase is Phase.EXPAND), None)
    if waiting is not None:
        raise InvalidInputError(
            f"{waiting} comes after {left[0]}, which belongs to an earlier version: run `parallax migrate --after` "
            "when no service older than that version runs, then this again"
        )


async def _current(connection: AsyncConnection, schema: str) -> str | None:
    """The number of a schema's last revision, or ``None`` before its first."""
    there = await connection.execute(text("SELECT to_regclass(:name)"), {"name": f'"{schema}".alembic_version'})
    if there.scalar_one() is None:
        return None
    found = await connection.execute(text(f'SELECT version_num FROM "{schema}".alembic_version'))  # noqa: S608
    number = found.scalar_one_or_none()
    return None if number is None else str(number)


@asynccontextmanager
async def _alone(engine: AsyncEngine, schema: str) -> AsyncIterator[AsyncConnection]:
    """A connection for migrations, which no other one uses meanwhile.

    The lock is the session's own: it is freed when the session ends, however it ends. Waiting for it would keep a
    snapshot open, and an index that is built concurrently waits for every snapshot: so it is asked for again and again.
    """
    try:
        async with engine.connect() as connection:
            try:
                for setting in _SETTINGS:
                    await connection.exec_driver_sql(setting)
                await connection.commit()
                await _lock(connection, schema)
                yield connection
            finally:
                await connection.invalidate()  # neither lock nor settings go back to the pool
    except DBAPIError as error:
        if error.connection_invalidated or _sqlstate(error).startswith(_TRANSIENT_SQLSTATES):
            raise UnavailableError(f"database: {error.orig}"[:500]) from error
        raise
    except OSError as error:
        raise UnavailableError(f"database: {error}") from error


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


async def _lock(connection: AsyncConnection, schema: str) -> None:
    waited = False
    while not (await connection.execute(_TRY_LOCK, {"schema": schema})).scalar_one():
        await connection.commit()
        if not waited:
            log.info("waiting for another migration", schema=schema)
        waited = True
        await asyncio.sleep(TURN_PAUSE_S)
    await connection.commit()


async def _patiently(connection: AsyncConnection, step: Callable[[Connection], None]) -> None:
    """Run a revision, again when it could not lock a table at once.

    Raises:
        UnavailableError: It never could.
    """
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            await connection.run_sync(step)
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in _LOCKED:
                raise
            log.info("waiting for a lock", attempt=attempt, error=str(error.orig)[:500])
            await asyncio.sleep(LOCK_PAUSE_S * random.uniform(1, 2))  # noqa: S311 - jitter
        else:
            return
    raise UnavailableError(
        f"a table was locked by somebody in each of {LOCK_ATTEMPTS} attempts: end that, then try again"
    )


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def _turn() -> asyncio.Lock:
    """Schemas are migrated one after the other in a process: Alembic keeps the running migration in globals."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
