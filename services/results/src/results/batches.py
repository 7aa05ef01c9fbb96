"""The counters of batches: created, locked in the order of their keys, and moved with the ledger.

Every transaction that writes facts of a batch locks the batch's row first. That makes the counters exact under
concurrent writers (whoever comes second sees what the first one committed), and the common order of locks
makes deadlocks impossible.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.messages import BatchCompleted
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.telemetry import get_logger
from results.facts import BatchKey, BatchSize

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's row."""

    key: BatchKey
    question_id: str
    expected: int
    counts: Counts
    opened_at: datetime | None
    completed_at: datetime | None

    def signal(self) -> BatchCompleted:
        """The message that says that the batch is full."""
        job_id, lane, question_index = self.key
        ref = BatchRef(job_id=job_id, lane=lane, question_index=question_index)
        return BatchCompleted(batch=ref, counts=self.counts)


_LOCK: Final = text("SELECT results.lock_batches_v1(CAST(CAST(:sizes AS text) AS jsonb))")
_FILL: Final = text("SELECT * FROM results.fill_batches_v1(CAST(CAST(:sizes AS text) AS jsonb), :now, '[]')")


def of_row(row: Row[Any]) -> Batch:
    """The batch in a row that the functions of the database return."""
    counts = Counts(completed=row.completed, failed=row.failed, timed_out=row.timed_out, cancelled=row.cancelled)
    key = BatchKey(row.job_id, row.lane, row.question_index)
    return Batch(key, row.question_id, row.expected, counts, row.opened_at, row.completed_at)


async def lock(connection: AsyncConnection, size: BatchSize) -> None:
    """Lock the row of a batch until the end of the transaction; it is made when it is missing."""
    await connection.execute(_LOCK, {"sizes": document([size])})


async def fill(connection: AsyncConnection, size: BatchSize, now: datetime) -> list[Batch]:
    """The locked batch, if it is full; if it became so just now, the moment and an event are kept.

    The caller locks nothing more in this transaction (see ``events.append``).
    """
    return [of_row(row) for row in await connection.execute(_FILL, {"sizes": document([size]), "now": now})]


def document(sizes: Iterable[BatchSize]) -> str:
    """Sizes as the functions of the database take them; what a plan says counts more than what a fact says."""
    known: dict[BatchKey, BatchSize] = {}
    for size in sizes:
        if size.planned or size.key not in known:
            known[size.key] = size
    return json.dumps(
        [
            {
                **each.key._asdict(),
                "question_id": each.question_id,
                "expected": each.expected,
                "planned": each.planned,
            }
            for each in known.values()
        ]
    )


def log_fresh(full: Iterable[Batch], now: datetime) -> None:
    """One line for each full batch that became so at ``now``; for after the commit."""
    for batch in full:
        if batch.completed_at == now:
            log.info(
                "batch_recorded",
                job=batch.key.job_id,
                lane=batch.key.lane,
                question=batch.question_id,
                question_index=batch.key.question_index,
                **batch.counts.model_dump(),
                duration_s=None if batch.opened_at is None else round((now - batch.opened_at).total_seconds(), 3),
            )
