"""Facts and openings of batches as the ledger takes them: checked, and ready to be sent to the database."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import ValidationError

from parallax.contracts.ids import execution_id
from parallax.contracts.messages import BatchOpened, ExecutionFinished, decode
from parallax.contracts.plan import ALL_REGIONS_LANE, BatchRef
from parallax.errors import PoisonError

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL in JSON text; an escaped backslash before ``u0000`` is none."""

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""Moments outside can be stored, but not be read again as a ``datetime`` of any time zone."""


class BatchKey(NamedTuple):
    """The key of a batch."""

    job_id: str
    lane: str
    question_index: int


class BatchSize(NamedTuple):
    """What a message says about a batch: its question and how many executions it has."""

    key: BatchKey
    question_id: str
    expected: int
    planned: bool
    """Whether the plan says so, and not a fact that repeats what its task was told."""


class Opening(NamedTuple):
    """A batch that was opened."""

    size: BatchSize
    document: str
    """``BatchOpened`` in JSON."""


class Fact(NamedTuple):
    """One checked fact."""

    execution_id: UUID
    size: BatchSize
    observed: bool
    document: str
    """The fact in canonical JSON: the ledger's row is made from it inside the database."""


def read_news(body: bytes) -> Fact | Opening:
    """What a message says of a batch or of one of its executions.

    Raises:
        PoisonError: It is malformed, contradicts itself, or holds what no database can store.
    """
    try:
        message = decode(body)
    except ValidationError as error:
        raise PoisonError(f"is no fact: {error}") from error
    match message:
        case ExecutionFinished():
            return _fact(message)
        case BatchOpened():
            return _opening(message)
        case _:
            raise PoisonError(f"{message.kind} is no fact")


def _opening(opened: BatchOpened) -> Opening:
    return Opening(
        BatchSize(_key(opened.batch), opened.question_id, opened.executions, planned=True),
        _storable(opened.model_dump_json()),
    )


def _fact(fact: ExecutionFinished) -> Fact:
    coordinates = (fact.batch.job_id, fact.question_id, fact.model_id, fact.region, fact.sample)
    expected = execution_id(*coordinates)
    if fact.execution_id != expected:
        raise PoisonError(f"execution id {fact.execution_id} is not that of {coordinates}: {expected}")
    if fact.batch.lane not in (ALL_REGIONS_LANE, fact.region):
        raise PoisonError(f"an execution in region {fact.region} is in no lane {fact.batch.lane!r}")
    for moment in (fact.started_at, fact.completed_at):
        if moment is not None and not _EARLIEST <= moment <= _LATEST:
            raise PoisonError(f"{moment.isoformat()} is no moment at which an execution ran")
    size = BatchSize(_key(fact.batch), fact.question_id, fact.batch_size, planned=False)
    document = _storable(fact.model_dump_json(exclude={"kind", "version"}))
    return Fact(fact.execution_id, size, fact.observed, document)


def _key(batch: BatchRef) -> BatchKey:
    return BatchKey(batch.job_id, batch.lane, batch.question_index)


def _storable(document: str) -> str:
    if "\\u0000" in document and _NUL.search(document):
        raise PoisonError("holds a NUL character, which no database stores")
    return document


def first_facts(facts: Iterable[Fact]) -> list[Fact]:
    """One fact for each execution, by the ledger's rule: the first, save that an observed one beats synthetic ones."""
    chosen: dict[UUID, Fact] = {}
    for fact in facts:
        earlier = chosen.get(fact.execution_id)
        if earlier is None or (fact.observed and not earlier.observed):
            chosen[fact.execution_id] = fact
    return list(chosen.values())
