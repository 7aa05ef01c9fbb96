"""Transactions of the writer, whose errors say what to do with the message that caused them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.db.engine import transaction
from parallax.errors import PoisonError

_HOPELESS_SQLSTATES: Final = ("22", "23")
"""Data exception and integrity violation: the same message would fail in the same way for ever."""


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits at the end of the block and is rolled back by an exception.

    Raises:
        UnavailableError: See :func:`parallax.db.engine.transaction`.
        PoisonError: The database refuses the data, for example a NUL in a text or a number out of range.
    """
    try:
        async with transaction(engine) as connection:
            yield connection
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None) or ""
        if sqlstate.startswith(_HOPELESS_SQLSTATES):
            raise PoisonError(f"the database refuses it: {error.orig}"[:500]) from error
        raise
