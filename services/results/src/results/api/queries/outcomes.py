"""What came of executions, by the rules of ``results.comparison.outcomes`` written in SQL, and corrections by hand.

In the database, because a summary counts a hundred thousand answers and needs none of their texts.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.rates import Outcome
from results.api.queries.reading import Row, row, rows
from results.comparison.outcomes import FILTER_ERRORS, FILTER_REASONS, REFUSAL_CHARS, REFUSAL_PATTERN

_TEXT: Final = "e.output ->> 'text'"
BY_RULES: Final = f"""
    CASE
      WHEN e.status <> 'completed' THEN
        CASE WHEN lower(concat(e.error ->> 'code', ': ', e.error ->> 'message')) LIKE ANY(:filter_errors)
             THEN 'refused_by_filter' ELSE 'failed' END
      WHEN lower(e.finish_reason) = ANY(:filter_reasons) THEN 'refused_by_filter'
      WHEN e.output ->> 'refusal' <> '' THEN 'refused_by_field'
      WHEN coalesce({_TEXT}, '') !~ '\\S' THEN 'empty'
      WHEN left({_TEXT}, {REFUSAL_CHARS}) ~* :refusal_pattern THEN 'refused_in_words'
      WHEN lower(e.finish_reason) = 'length' THEN 'cut_off'
      ELSE 'answered'
    END
"""
"""The class of an execution ``e`` as the rules have it."""
JUDGED: Final = """
    LEFT JOIN LATERAL (
        SELECT judgements.outcome FROM results.judgements
         WHERE judgements.job_id = e.job_id AND judgements.execution_id = e.execution_id
         ORDER BY judgements.number DESC LIMIT 1
    ) AS judged ON e.status = 'completed'
"""
"""Joins the last correction of an execution ``e``; its ``outcome`` is null where the rules decide (again)."""
OUTCOME: Final = f"coalesce(judged.outcome, {BY_RULES})"
"""The class of an execution ``e``, with ``JUDGED`` joined."""
RULES: Final[Mapping[str, object]] = {
    "filter_errors": [f"%{said}%" for said in FILTER_ERRORS],
    "filter_reasons": list(FILTER_REASONS),
    "refusal_pattern": REFUSAL_PATTERN,
}
"""The values that the expressions above are bound to."""


class Decision(NamedTuple):
    """A correction as it is stored."""

    execution_id: UUID
    outcome: str | None
    by_rules: str
    rules_version: int
    author: str
    note: str | None
    at: datetime


async def by_rules(connection: AsyncConnection, job_id: str, execution_id: UUID) -> tuple[str, Outcome] | None:
    """The status of an execution, and its class as the rules have it."""
    statement = f"""
        SELECT e.status, {BY_RULES} AS outcome FROM results.executions AS e
         WHERE e.job_id = :job_id AND e.execution_id = :execution_id
    """  # noqa: S608 - made of constants
    found = await row(connection, statement, {"job_id": job_id, "execution_id": execution_id, **RULES})
    return None if found is None else (found["status"], Outcome(found["outcome"]))


async def decide(connection: AsyncConnection, job_id: str, decision: Decision) -> None:
    """Store a correction beside the earlier ones; the last one counts."""
    columns = ", ".join(Decision._fields)
    values = ", ".join(f":{name}" for name in Decision._fields)
    statement = f"INSERT INTO results.judgements (job_id, {columns}) VALUES (:job_id, {values}) RETURNING number"  # noqa: S608
    await rows(connection, statement, {"job_id": job_id, **decision._asdict()})


async def decided(connection: AsyncConnection, job_id: str, limit: int) -> list[Row]:
    """Every correction of a job, the newest first."""
    columns = ", ".join(Decision._fields)
    statement = f"SELECT {columns} FROM results.judgements WHERE job_id = :job_id ORDER BY number DESC LIMIT :limit"  # noqa: S608
    return list(await rows(connection, statement, {"job_id": job_id, "limit": limit}))
