"""Events of jobs, numbered so that whoever reads on from a number misses none."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class Event(NamedTuple):
    """Something that happened to a job; ``data`` is a JSON document."""

    job_id: str
    kind: str
    data: str
    at: datetime


_APPEND: Final = text("""
    SELECT results.append_events(array_agg(ROW(i.job_id, 0, i.kind, CAST(i.data AS jsonb), i.at)::results.events))
    FROM unnest(CAST(:job_ids AS text[]), CAST(:kinds AS text[]), CAST(:data AS text[]), CAST(:ats AS timestamptz[]))
        AS i (job_id, kind, data, at)
""")


async def append(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Add events to their jobs, within the caller's transaction.

    The rows of ``event_heads`` stay locked until the commit, in the order of job ids: numbers become visible in
    their order. Nobody who holds them may go on to lock a batch or a job.
    """
    if events:
        await connection.execute(
            _APPEND,
            {
                "job_ids": [event.job_id for event in events],
                "kinds": [event.kind for event in events],
                "data": [event.data for event in events],
                "ats": [event.at for event in events],
            },
        )
