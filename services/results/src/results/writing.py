"""Transactions of the writer, whose errors say what to do with the message that caused them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.db.engine import autocommit, refuses_data, transaction
from parallax.errors import PoisonError


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits at the end of the block and is rolled back by an exception.

    Raises:
        UnavailableError: See :func:`parallax.db.engine.transaction`.
        PoisonError: The database refuses the data, for example a NUL in a text or a number out of range.
    """
    with _refusals_are_poison():
        async with transaction(engine) as connection:
            yield connection


@asynccontextmanager
async def writing_at_once(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """The same for a single statement, which is a transaction of its own: no round trips to begin and to commit."""
    with _refusals_are_poison():
        async with autocommit(engine) as connection:
            yield connection


@contextmanager
def _refusals_are_poison() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if refuses_data(error):
            raise PoisonError(f"the database refuses it: {error.orig}"[:500]) from error
        raise
