"""Events of jobs, numbered so that whoever reads on from a number misses none."""

import json
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


_APPEND: Final = text("SELECT results.append_events_v1(CAST(CAST(:events AS text) AS jsonb))")


async def append(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Add events to their jobs, within the caller's transaction.

    The rows of ``event_heads`` stay locked until the commit, in the order of job ids: numbers become visible in
    their order. Nobody who holds them may go on to lock a batch or a job.
    """
    if events:
        await connection.execute(_APPEND, {"events": "[" + ",".join(map(_document, events)) + "]"})


def _document(event: Event) -> str:
    described = json.dumps({"job_id": event.job_id, "kind": event.kind, "at": event.at.isoformat()})
    return f'{described[:-1]}, "data": {event.data}}}'
