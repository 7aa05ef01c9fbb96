"""The counters of batches: created, locked in the order of their keys, and moved with the ledger.

Every transaction that writes facts of a batch locks the batch's row first. That makes the counters exact under
concurrent writers (whoever comes second sees what the first one committed), and the common order of locks
makes deadlocks impossible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.messages import BatchCompleted
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.telemetry import get_logger
from results import events
from results.facts import BatchKey

log = get_logger(__name__)


class BatchSize(NamedTuple):
    """What a message says about a batch: its question and how many executions it has."""

    key: BatchKey
    question_id: str
    expected: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's row."""

    key: BatchKey
    question_id: str
    expected: int
    counts: Counts
    opened_at: datetime | None
    completed_at: datetime | None

    @property
    def full(self) -> bool:
        """Whether every execution has a fact."""
        return self.counts.total >= self.expected

    def signal(self) -> BatchCompleted:
        """The message that says that the batch is full."""
        job_id, lane, question_index = self.key
        ref = BatchRef(job_id=job_id, lane=lane, question_index=question_index)
        return BatchCompleted(batch=ref, counts=self.counts)


_KEYS: Final = """unnest(CAST(:job_ids AS text[]), CAST(:lanes AS text[]), CAST(:indexes AS integer[]))
    AS k (job_id, lane, question_index)"""

_CREATE: Final = text("""
    INSERT INTO results.batches (job_id, lane, question_index, question_id, expected)
    SELECT * FROM unnest(CAST(:job_ids AS text[]), CAST(:lanes AS text[]), CAST(:indexes AS integer[]),
                         CAST(:question_ids AS text[]), CAST(:expected AS integer[]))
    ON CONFLICT (job_id, lane, question_index) DO NOTHING
""")

COLUMNS: Final = """b.job_id, b.lane, b.question_index, b.question_id, b.expected,
    b.completed, b.failed, b.timed_out, b.cancelled, b.opened_at, b.completed_at"""
"""What ``of_row`` reads of ``results.batches AS b``."""

_LOCK: Final = text(f"""
    SELECT {COLUMNS}
    FROM results.batches b JOIN {_KEYS} USING (job_id, lane, question_index)
    ORDER BY b.job_id, b.lane, b.question_index
    FOR UPDATE OF b
""")  # noqa: S608 - made of constants

_FILL: Final = text(f"""
    UPDATE results.batches b SET completed_at = :now
    FROM {_KEYS}
    WHERE (b.job_id, b.lane, b.question_index) = (k.job_id, k.lane, k.question_index)
""")  # noqa: S608 - made of constants

_RESIZE: Final = text("""
    UPDATE results.batches SET expected = :expected
    WHERE job_id = :job_id AND lane = :lane AND question_index = :question_index
""")


def of_row(row: Row[Any]) -> Batch:
    """The batch in a row of ``COLUMNS``."""
    counts = Counts(completed=row.completed, failed=row.failed, timed_out=row.timed_out, cancelled=row.cancelled)
    key = BatchKey(row.job_id, row.lane, row.question_index)
    return Batch(key, row.question_id, row.expected, counts, row.opened_at, row.completed_at)


async def lock(connection: AsyncConnection, sizes: Iterable[BatchSize]) -> list[Batch]:
    """Lock the rows of some batches until the end of the transaction; those that are missing are made.

    The size of a batch that exists stays what it was.
    """
    ordered = sorted({size.key: size for size in sizes}.values())
    keys = _arrays([size.key for size in ordered])
    sizing = {"question_ids": [size.question_id for size in ordered], "expected": [size.expected for size in ordered]}
    await connection.execute(_CREATE, keys | sizing)
    return [of_row(row) for row in await connection.execute(_LOCK, keys)]


async def lock_planned(connection: AsyncConnection, size: BatchSize) -> Batch:
    """Lock one batch whose size is known from its plan; a fact that claimed another size was wrong."""
    (batch,) = await lock(connection, [size])
    if batch.expected == size.expected:
        return batch
    log.warning("batch_resized", job=size.key.job_id, lane=size.key.lane, was=batch.expected, planned=size.expected)
    await connection.execute(_RESIZE, {**size.key._asdict(), "expected": size.expected})
    return replace(batch, expected=size.expected)


async def fill(connection: AsyncConnection, locked: Iterable[Batch], now: datetime) -> list[Batch]:
    """Those of some locked batches that are full; of each that became so just now, the moment and an event are kept.

    The caller locks nothing more in this transaction (see ``events.append``).
    """
    full = [batch for batch in locked if batch.full]
    fresh = [batch for batch in full if batch.completed_at is None]
    if fresh:
        await connection.execute(_FILL, _arrays([batch.key for batch in fresh]) | {"now": now})
        happened = [
            events.Event(batch.key.job_id, "batch.completed", batch.signal().model_dump_json(), now) for batch in fresh
        ]
        await events.append(connection, happened)
    return full


def log_fresh(full: Iterable[Batch], now: datetime) -> None:
    """One line for each batch of ``fill`` that became full; for after the commit."""
    for batch in full:
        if batch.completed_at is None:
            log.info(
                "batch_recorded",
                job=batch.key.job_id,
                lane=batch.key.lane,
                question=batch.question_id,
                question_index=batch.key.question_index,
                **batch.counts.model_dump(),
                duration_s=None if batch.opened_at is None else round((now - batch.opened_at).total_seconds(), 3),
            )


def _arrays(keys: Sequence[BatchKey]) -> dict[str, list[Any]]:
    return {
        "job_ids": [key.job_id for key in keys],
        "lanes": [key.lane for key in keys],
        "indexes": [key.question_index for key in keys],
    }
