"""Aggregates over the executions of a job, and what they are estimated to have cost."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.catalog import Catalog
from parallax.contracts.answers import Cost, Latency, Summary, SummaryRow, Tokens
from parallax.pricing import Use, cost_of
from results.api.queries.reading import Row, added, counts, rows

_STATEMENT: Final = """
SELECT model_id, model, region,
       count(*) AS executions,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE status = 'timed_out') AS timed_out,
       count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_s)
           FILTER (WHERE status = 'completed' AND duration_s IS NOT NULL) AS latency,
       coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
       coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
       coalesce(sum(duration_s), 0) AS busy_s,
       coalesce(sum(attempt_count), 0)::bigint AS attempts,
       count(*) FILTER (WHERE attempt_count > 1) AS retried,
       count(*) FILTER (WHERE refused) AS refusals,
       count(*) FILTER (WHERE status = 'completed' AND output_chars = 0 AND NOT refused) AS empties
  FROM results.executions WHERE job_id = :job_id
 GROUP BY model_id, model, region ORDER BY model_id, region, model
"""
_TOTALS: Final = """
SELECT model, region, count(*) AS executions,
       coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
       coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
       coalesce(sum(duration_s), 0) AS busy_s
  FROM results.executions WHERE job_id = :job_id GROUP BY model, region
"""


def estimate(catalog: Catalog, used: Iterable[Use]) -> Cost | None:
    """What the use costs at the catalog's prices, as the API tells it; ``None`` when nothing of it has a price."""
    cost = cost_of(catalog, used)
    if cost is None:
        return None
    return Cost(
        amount=round(cost.amount, 6),
        currency=cost.currency,
        prices_as_of=cost.prices_as_of.isoformat(),
        complete=cost.complete,
    )


async def totals(connection: AsyncConnection, job_id: str, catalog: Catalog) -> tuple[Tokens, Cost | None]:
    """Tokens and estimated cost of a job so far."""
    found = await rows(connection, _TOTALS, {"job_id": job_id})
    return _tokens(found), estimate(catalog, map(_use, found))


async def summary(connection: AsyncConnection, job_id: str, catalog: Catalog) -> Summary:
    """How each model did in each region."""
    found = await rows(connection, _STATEMENT, {"job_id": job_id})
    lines = tuple(_line(record, catalog) for record in found)
    return Summary(
        job_id=job_id,
        rows=lines,
        executions=sum(line.executions for line in lines),
        counts=added([line.counts for line in lines]),
        tokens=_tokens(found),
        cost=estimate(catalog, map(_use, found)),
    )


def _line(record: Row, catalog: Catalog) -> SummaryRow:
    latency = record["latency"]
    return SummaryRow(
        model_id=record["model_id"],
        model=record["model"],
        region=record["region"],
        executions=record["executions"],
        counts=counts(record),
        success_rate=record["completed"] / record["executions"],
        latency_s=Latency(p50=latency[0], p95=latency[1], p99=latency[2]) if latency else None,
        tokens=_tokens([record]),
        cost=estimate(catalog, [_use(record)]),
        attempts=record["attempts"],
        retried=record["retried"],
        refusals=record["refusals"],
        empties=record["empties"],
    )


def _tokens(records: Iterable[Row]) -> Tokens:
    pairs = [(record["prompt_tokens"], record["completion_tokens"]) for record in records]
    return Tokens(prompt=sum(p for p, _ in pairs), completion=sum(c for _, c in pairs))


def _use(record: Row) -> Use:
    return Use(record["model"], record["region"], float(record["busy_s"]))
