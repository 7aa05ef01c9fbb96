"""Engines with the settings every service shares, and transactions that say when the database is away."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Final

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from parallax.errors import InvalidInputError, UnavailableError

STATEMENT_TIMEOUT_MS: Final = 60_000
"""No statement of a service takes long; one that does must not hold a row lock for ever."""
LOCK_TIMEOUT_MS: Final = 30_000
IDLE_TRANSACTION_TIMEOUT_MS: Final = 120_000
"""A handler publishes inside its transaction, so this is above the bus's publish timeout."""

_TRANSIENT_SQLSTATES: Final = ("08", "53", "57P", "40001", "40P01", "55P03")
"""Connection failure, no resources, shutdown, serialization failure, deadlock, lock not available."""


def create_engine(url: str, *, application_name: str, pool_size: int = 5) -> AsyncEngine:
    """An engine for a ``postgresql://`` URL.

    Raises:
        InvalidInputError: The URL is not one of PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except Exception as error:
        raise InvalidInputError("PARALLAX_DATABASE_URL: is not a URL; expected postgresql://USER@HOST/NAME") from error
    if parsed.get_backend_name() != "postgresql":
        raise InvalidInputError(
            f"PARALLAX_DATABASE_URL: {parsed.drivername!r} is not supported; expected postgresql://"
        )
    engine = create_async_engine(
        parsed.set(drivername="postgresql+asyncpg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_use_lifo=True,  # few connections stay warm, in place of all of them in turn
        connect_args={
            "timeout": 10,
            "server_settings": {
                "application_name": application_name,
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_TIMEOUT_MS),
                "jit": "off",
                # A plan made while a table was empty and then kept reads the whole table once it has grown.
                "plan_cache_mode": "force_custom_plan",
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _replace_lost)
    return engine


def _replace_lost(connection: DBAPIConnection, _record: ConnectionPoolEntry, _proxy: object) -> None:
    """Make the pool open another connection in place of one that the server has closed.

    The driver knows; asking the server (``pool_pre_ping``) would cost three round trips for every transaction.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits at the end of the block and is rolled back by an exception.

    Raises:
        UnavailableError: The database is away or asks to try again; nothing was committed, or (when the
            connection broke during the commit itself) nobody can know: the caller's step must be repeatable.
    """
    with _loss_is_unavailable():
        async with engine.begin() as connection:
            yield connection


@asynccontextmanager
async def autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection on which each statement is a transaction of its own.

    Raises:
        UnavailableError: As for :func:`transaction`.
    """
    with _loss_is_unavailable():
        async with _autocommitting(engine).connect() as connection:
            yield connection


@lru_cache(maxsize=8)
def _autocommitting(engine: AsyncEngine) -> AsyncEngine:
    """The same engine, its connections the same too, with that option; making it anew each time is not cheap."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def _loss_is_unavailable() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if is_transient(error):
            raise UnavailableError(f"database: {type(error.orig).__name__}: {error.orig}"[:500]) from error
        raise
    except (PoolTimeoutError, OSError, TimeoutError) as error:
        raise UnavailableError(f"database: {str(error) or type(error).__name__}") from error


def is_transient(error: DBAPIError) -> bool:
    """Whether repeating the transaction may succeed."""
    if error.connection_invalidated:
        return True
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    if sqlstate:
        return sqlstate.startswith(_TRANSIENT_SQLSTATES)
    return isinstance(error, OperationalError | InterfaceError)


async def ping(engine: AsyncEngine) -> None:
    """Ask whether the database answers.

    Raises:
        UnavailableError: It does not answer.
    """
    async with transaction(engine) as connection:
        await connection.exec_driver_sql("SELECT 1")
