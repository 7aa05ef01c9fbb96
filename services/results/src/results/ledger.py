"""The ledger: first fact wins.

A fact is written once; a repetition changes nothing. Only an observed fact replaces a synthetic one, because a
paid answer is never thrown away. The counters of batches move by what was really written, in the same
transaction. What that transaction does is the function ``results.record_v1`` of the database (see ``migrations/sql/``).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from results import batches
from results.batches import Batch
from results.facts import Fact, Opening, first_facts
from results.writing import writing_at_once

_RECORD: Final = text("""
    SELECT * FROM results.record_v1(CAST(CAST(:sizes AS text) AS jsonb), CAST(CAST(:facts AS text) AS jsonb),
                                    CAST(CAST(:openings AS text) AS jsonb), :now)
""")


async def record(engine: AsyncEngine, news: Sequence[Fact | Opening], now: datetime) -> list[Batch]:
    """Write facts and openings of batches in one transaction; returns every full batch among those they belong to.

    A full batch is returned also when nothing was new: its signal may have been lost after the commit. Repeating
    the call, or any part of it, is harmless.

    Raises:
        UnavailableError: The database is away; repeat.
        PoisonError: Some of it cannot be stored; nothing was.
    """
    facts = first_facts(each for each in news if isinstance(each, Fact))
    openings = [each for each in news if isinstance(each, Opening)]
    values = {
        "sizes": batches.document([each.size for each in facts] + [each.size for each in openings]),
        "facts": _array(facts),
        "openings": _array(openings),
        "now": now,
    }
    async with writing_at_once(engine) as connection:
        full = [batches.of_row(row) for row in await connection.execute(_RECORD, values)]
    batches.log_fresh(full, now)
    return full


def _array(news: Sequence[Fact | Opening]) -> str:
    return "[" + ",".join(each.document for each in news) + "]"
