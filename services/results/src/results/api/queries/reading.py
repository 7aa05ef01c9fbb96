"""Connections for reads, and what the statements of every listing have in common."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.contracts.outcomes import Counts
from parallax.db.engine import autocommit

EXCERPT_CHARS: Final = 500
"""How much of a question or an answer lists carry; the rest is one request away."""

STATUSES: Final = ("completed", "failed", "timed_out", "cancelled")

Row = RowMapping


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection on which every statement is a transaction of its own: saves a BEGIN and a COMMIT per request.

    Raises:
        UnavailableError: The database is away.
    """
    async with autocommit(engine) as connection:
        yield connection


async def rows(connection: AsyncConnection, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
    """Every row of a statement."""
    return (await connection.execute(text(statement), values)).mappings().all()


async def row(connection: AsyncConnection, statement: str, values: Mapping[str, object]) -> Row | None:
    """The only row of a statement, or ``None``."""
    return (await connection.execute(text(statement), values)).mappings().one_or_none()


def where(conditions: Sequence[str]) -> str:
    """The conditions joined; at least one."""
    return "WHERE " + "\n  AND ".join(conditions)


def counts(record: Row) -> Counts:
    """The four counters of a row."""
    return Counts(**{status: int(record[status] or 0) for status in STATUSES})


def added(some: Sequence[Counts]) -> Counts:
    """The sum of several counts."""
    return Counts(**{status: sum(getattr(c, status) for c in some) for status in STATUSES})
