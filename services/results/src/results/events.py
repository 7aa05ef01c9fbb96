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
    WITH incoming AS (
        SELECT i.job_id COLLATE "C" AS job_id, i.kind, i.data, i.at, i.place
        FROM unnest(CAST(:job_ids AS text[]), CAST(:kinds AS text[]), CAST(:data AS text[]),
                    CAST(:ats AS timestamptz[])) WITH ORDINALITY AS i (job_id, kind, data, at, place)
    ), heads AS (
        INSERT INTO results.event_heads (job_id, last)
        SELECT job_id, count(*) FROM incoming GROUP BY job_id ORDER BY job_id
        ON CONFLICT (job_id) DO UPDATE SET last = event_heads.last + excluded.last
        RETURNING job_id, last
    )
    INSERT INTO results.events (job_id, number, kind, data, at)
    SELECT job_id,
           h.last - count(*) OVER (PARTITION BY job_id) + row_number() OVER (PARTITION BY job_id ORDER BY i.place),
           i.kind, CAST(i.data AS jsonb), i.at
    FROM incoming i JOIN heads h USING (job_id)
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
