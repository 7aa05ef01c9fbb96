"""Facts as the ledger takes them: checked, with the names it counts by, and ready to be sent to the database."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import ValidationError

from parallax.contracts.ids import execution_id
from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.plan import ALL_REGIONS_LANE
from parallax.errors import PoisonError

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL in JSON text; an escaped backslash before ``u0000`` is none."""

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""Moments outside can be stored, but not be read again as a ``datetime`` of any time zone."""


class BatchKey(NamedTuple):
    """The key of a batch. Keys sort as the database sorts them, which makes the order of locks the same."""

    job_id: str
    lane: str
    question_index: int


class Fact(NamedTuple):
    """One checked fact."""

    execution_id: UUID
    batch: BatchKey
    batch_size: int
    question_id: str
    observed: bool
    document: str
    """The fact in canonical JSON: the ledger's row is made from it inside the database."""


def read_fact(body: bytes) -> Fact:
    """The fact in a message.

    Raises:
        PoisonError: It is malformed, contradicts itself, or holds what no database can store.
    """
    try:
        fact = ExecutionFinished.model_validate_json(body)
    except ValidationError as error:
        raise PoisonError(f"is no fact: {error}") from error
    coordinates = (fact.batch.job_id, fact.question_id, fact.model_id, fact.region, fact.sample)
    expected = execution_id(*coordinates)
    if fact.execution_id != expected:
        raise PoisonError(f"execution id {fact.execution_id} is not that of {coordinates}: {expected}")
    if fact.batch.lane not in (ALL_REGIONS_LANE, fact.region):
        raise PoisonError(f"an execution in region {fact.region} is in no lane {fact.batch.lane!r}")
    for moment in (fact.started_at, fact.completed_at):
        if moment is not None and not _EARLIEST <= moment <= _LATEST:
            raise PoisonError(f"{moment.isoformat()} is no moment at which an execution ran")
    document = fact.model_dump_json(exclude={"kind", "version"})
    if "\\u0000" in document and _NUL.search(document):
        raise PoisonError("holds a NUL character, which no database stores")
    key = BatchKey(fact.batch.job_id, fact.batch.lane, fact.batch.question_index)
    return Fact(fact.execution_id, key, fact.batch_size, fact.question_id, fact.observed, document)


def first_facts(facts: Iterable[Fact]) -> list[Fact]:
    """One fact for each execution, by the ledger's rule: the first, save that an observed one beats synthetic ones."""
    chosen: dict[UUID, Fact] = {}
    for fact in facts:
        earlier = chosen.get(fact.execution_id)
        if earlier is None or (fact.observed and not earlier.observed):
            chosen[fact.execution_id] = fact
    return list(chosen.values())
