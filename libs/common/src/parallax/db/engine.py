"""Engines with the settings every service shares, and transactions that say when the database is away.

A database may refuse, stall, or vanish without a word. Each of these becomes ``UnavailableError`` within a bound, and
the connection is left behind: the next transaction opens another one.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from asyncpg.exceptions import _base as driver
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from parallax.errors import InvalidInputError, UnavailableError

CONNECT_LIMIT_S: Final = 5.0
"""For TCP, TLS and log-in; a server that needs longer is treated as away."""
POOL_LIMIT_S: Final = 10.0
"""Longest wait for a free connection: longer than any write takes, shorter than the 15 s in which trouble must show."""

KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 3
KEEPALIVE_PROBES: Final = 3
"""A machine that vanished is noticed after 5 + 3 * 3 = 14 s on a connection that waits for an answer."""
USER_TIMEOUT_MS: Final = 12_000
"""The same for a connection that has sent something: TCP alone would repeat it for 15 minutes."""

_REFUSES_DATA: Final = ("22", "23")
"""Data exception and integrity violation: the same values would be refused in the same way for ever."""
_WRONG_SERVER: Final = "25006"
"""Read-only transaction: the server is a standby, or was the primary before a fail-over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the database may take. The server gives up before the client does, and so lets go of its locks."""

    lock_s: float
    statement_s: float
    command_s: float | None
    """Client side, for a server that says nothing: the connection is then given up. ``None`` waits without end."""
    idle_transaction_s: float
    """For a client that says nothing, for example because its process was stopped: others wait for its locks."""


SHORT: Final = Limits(lock_s=8, statement_s=10, command_s=12, idle_transaction_s=20)
"""For what services write: it takes milliseconds, and nothing may stand still for more than 15 s."""
LONG: Final = Limits(lock_s=8, statement_s=60, command_s=65, idle_transaction_s=20)
"""For what readers ask: summaries and exports of large jobs take seconds."""

UNLIMITED: Final = Limits(lock_s=8, statement_s=0, command_s=None, idle_transaction_s=0)
"""For migrations: an index on a large ledger takes as long as it takes. Keep-alives still notice a dead server."""


def create_engine(url: str, *, application_name: str, pool_size: int = 5, limits: Limits = SHORT) -> AsyncEngine:
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
        pool_timeout=POOL_LIMIT_S,
        pool_use_lifo=True,  # few connections stay warm, in place of all of them in turn
        connect_args={
            "timeout": CONNECT_LIMIT_S,
            "command_timeout": limits.command_s,
            "server_settings": {
                "application_name": application_name,
                "statement_timeout": _milliseconds(limits.statement_s),
                "lock_timeout": _milliseconds(limits.lock_s),
                "idle_in_transaction_session_timeout": _milliseconds(limits.idle_transaction_s),
                "jit": "off",
                # A plan made while a table was empty and then kept reads the whole table once it has grown.
                "plan_cache_mode": "force_custom_plan",
            },
        },
    )
    event.listen(engine.sync_engine, "connect", _watch_socket)
    event.listen(engine.sync_engine, "checkout", _replace_lost)
    event.listen(engine.sync_engine, "handle_error", _leave_behind)
    event.listen(engine.sync_engine, "invalidate", _terminate)
    return engine


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


def _watch_socket(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    """Let the kernel notice a peer that vanished; the driver has no option for it."""
    transport = connection.driver_connection._transport  # noqa: SLF001 - the only way to the socket
    wire = transport.get_extra_info("socket")
    if wire is None or wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_S,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": USER_TIMEOUT_MS,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # not every platform has all of them
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _replace_lost(connection: DBAPIConnection, _record: ConnectionPoolEntry, _proxy: object) -> None:
    """Make the pool open another connection in place of one that the server has closed.

    The driver knows; asking the server (``pool_pre_ping``) would cost three round trips for every transaction.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _leave_behind(context: ExceptionContext) -> None:
    """Give up every connection of the pool when one got no answer in time, or when its server only reads.

    Otherwise the transaction would go on to roll back, on a connection that answers nothing.
    """
    error = context.original_exception
    if isinstance(error, TimeoutError) or getattr(error, "sqlstate", None) == _WRONG_SERVER:
        context.is_disconnect = True


def _terminate(connection: DBAPIConnection, _record: ConnectionPoolEntry, _error: BaseException | None) -> None:
    """Drop the connection where SQLAlchemy would close it in good order: that waits for a server that may be silent."""
    connection.driver_connection.terminate()


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
        if refuses_data(error):
            raise
        raise UnavailableError(f"database: {type(error.orig).__name__}: {error.orig}"[:500]) from error
    except (PoolTimeoutError, OSError, TimeoutError) as error:
        raise UnavailableError(f"database: {str(error) or type(error).__name__}") from error


def refuses_data(error: DBAPIError) -> bool:
    """Whether the database refuses the values it was given, so that a repetition would fail in the same way.

    Everything else is the server's trouble and passes, with or without help: fail-over, shutdown, a full disk, missing
    permissions, functions that an upgrade has not made yet. So it is never the message that is to blame.
    """
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate:
        return str(sqlstate).startswith(_REFUSES_DATA)
    # The driver refuses some values itself, such as an integer that is too large for its column.
    return isinstance(getattr(error.orig, "__cause__", None), driver.DataError)


async def ping(engine: AsyncEngine) -> None:
    """Ask whether the database answers.

    Raises:
        UnavailableError: It does not answer.
    """
    async with transaction(engine) as connection:
        await connection.exec_driver_sql("SELECT 1")
