"""Whose fault an error of the database is: only the message's own makes a dead letter."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import pytest
from asyncpg.exceptions import _base as driver
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from parallax.db import engine
from parallax.errors import PoisonError, UnavailableError
from results import writing

THE_SERVER_S = {
    "08000": "connection exception",
    "08006": "connection failure",
    "25006": "read-only: a standby, or the old primary after a fail-over",
    "25P03": "idle in transaction for too long",
    "28000": "log-in refused",
    "28P01": "wrong password",
    "3D000": "no such database",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "42501": "no permission",
    "42601": "a syntax that this server does not know",
    "42703": "a column that an upgrade has not made yet",
    "42883": "a function that an upgrade has not made yet",
    "42P01": "a table that an upgrade has not made yet",
    "53000": "no resources",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "54000": "a limit of the server",
    "55P03": "lock not available",
    "57014": "statement timeout",
    "57P01": "administrator shutdown",
    "57P02": "crash of another backend",
    "57P03": "still starting",
    "58030": "I/O error",
    "P0001": "raised by a function",
    "XX000": "internal error",
    "XX001": "data corrupted",
}
THE_MESSAGE_S = {
    "22001": "a text that is too long",
    "22003": "a number out of range",
    "22021": "a NUL",
    "22P02": "no number at all",
    "23502": "null where a value is needed",
    "23503": "no such row",
    "23505": "another row has the key",
    "23514": "a check",
}


def error_of(sqlstate: str | None, cause: BaseException | None = None) -> DBAPIError:
    original = asyncpg.PostgresError("as the server says it")
    original.sqlstate = sqlstate
    original.__cause__ = cause
    return DBAPIError("SELECT", {}, original)


@contextmanager
def judged() -> Iterator[None]:
    """As a transaction of the writer judges its errors."""
    with writing._refusals_are_poison(), engine._loss_is_unavailable():
        yield


@pytest.mark.parametrize("sqlstate", THE_SERVER_S, ids=THE_SERVER_S.values())
def test_the_trouble_of_a_server_is_waited_for(sqlstate: str) -> None:
    with pytest.raises(UnavailableError, match="as the server says it"), judged():
        raise error_of(sqlstate)


@pytest.mark.parametrize("sqlstate", THE_MESSAGE_S, ids=THE_MESSAGE_S.values())
def test_what_a_message_holds_is_its_own_fault(sqlstate: str) -> None:
    with pytest.raises(PoisonError, match="the database refuses it"), judged():
        raise error_of(sqlstate)


def test_the_driver_refuses_values_too() -> None:
    with pytest.raises(PoisonError), judged():
        raise error_of(None, driver.DataError("value out of int32 range"))


@pytest.mark.parametrize(
    "error",
    [
        error_of(None),
        InterfaceError("SELECT", {}, Exception("connection is closed")),
        PoolTimeoutError("no connection became free"),
        ConnectionRefusedError("nobody listens"),
        TimeoutError(),
    ],
)
def test_what_says_nothing_is_the_server_s_trouble(error: Exception) -> None:
    with pytest.raises(UnavailableError), judged():
        raise error


@pytest.mark.parametrize("bug", [KeyError("x"), InvalidRequestError("this session is in no transaction")])
def test_a_bug_is_nothing_of_that(bug: Exception) -> None:
    with pytest.raises(type(bug)), judged():
        raise bug
