"""Aggregates over the executions of a job, and what they are estimated to have cost.

They read every row of the job, which takes 0.1 s for 100,000. What came of it is therefore kept, for large jobs,
until the ledger of the job changes.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.catalog import Catalog
from parallax.contracts.answers import Cost, Latency, Summary, SummaryRow, Tokens
from parallax.contracts.rates import Outcome, Outcomes
from parallax.pricing import Use, cost_of
from results.api.queries.outcomes import JUDGED, OUTCOME, RULES
from results.api.queries.reading import Row, added, counts, row, rows
from results.comparison.outcomes import RULES_VERSION
from results.comparison.rates import outcomes_of

WORTH_KEEPING: Final = 5_000
"""Executions from which on a job's aggregates are kept: those of a smaller one take less than 10 ms."""
KEPT: Final = 32
"""How many aggregates are kept: a few are looked at again and again, by everyone who follows the same job."""

T = TypeVar("T")

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
_OUTCOMES: Final = f"""
SELECT model_id, model, region, outcome, count(*) AS executions,
       count(*) FILTER (WHERE finish_reason = 'length' AND status = 'completed') AS cut
  FROM (SELECT e.model_id, e.model, e.region, e.finish_reason, e.status, {OUTCOME} AS outcome
          FROM results.executions AS e {JUDGED} WHERE e.job_id = :job_id) AS counted
 GROUP BY model_id, model, region, outcome
"""  # noqa: S608 - made of constants
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


class LedgerVersion(NamedTuple):
    """How often the ledger of a job has changed: facts are added, replaced once, judged by hand. All numbers grow."""

    recorded: int
    replaced: int
    judged: int = 0
    """Decisions about outcomes; aggregates without outcomes leave it at 0."""


REPLACED: Final = """(
    SELECT count(*) FROM results.executions
     WHERE executions.job_id = jobs.job_id AND executions.replaced_status IS NOT NULL) AS replaced
"""
"""``LedgerVersion.replaced`` of a row of ``results.jobs``."""


async def ledger_version(connection: AsyncConnection, job_id: str) -> LedgerVersion | None:
    """The version of a job's ledger, or ``None`` for an unknown job."""
    statement = f"""
        SELECT (SELECT coalesce(sum(recorded), 0) FROM results.batches WHERE batches.job_id = jobs.job_id) AS recorded,
               {REPLACED},
               (SELECT count(*) FROM results.judgements WHERE judgements.job_id = jobs.job_id) AS judged
          FROM results.jobs WHERE job_id = :job_id
    """  # noqa: S608 - made of constants
    found = await row(connection, statement, {"job_id": job_id})
    return None if found is None else LedgerVersion(**found)


class Aggregates:
    """The aggregates of one application, of which the last few are kept."""

    def __init__(self, catalog: Catalog, *, worth_keeping: int = WORTH_KEEPING) -> None:
        self._catalog = catalog
        self._worth_keeping = worth_keeping
        self._kept: dict[tuple[object, ...], object] = {}

    async def totals(
        self, connection: AsyncConnection, job_id: str, version: LedgerVersion
    ) -> tuple[Tokens, Cost | None]:
        """Tokens and estimated cost of a job so far. The version was read before."""
        return await self._fresh(_totals, connection, job_id, version)

    async def summary(self, connection: AsyncConnection, job_id: str, version: LedgerVersion) -> Summary:
        """How each model did in each region. The version was read before."""
        return await self._fresh(_summary, connection, job_id, version)

    async def _fresh(
        self,
        compute: Callable[[AsyncConnection, str, Catalog], Awaitable[T]],
        connection: AsyncConnection,
        job_id: str,
        version: LedgerVersion,
    ) -> T:
        """What was computed of this version or, if the ledger changed just then, of a later one."""
        key = (compute, job_id, version)
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # the one used last is given up last
            return cast("T", self._kept[key])
        made = await compute(connection, job_id, self._catalog)
        if version.recorded >= self._worth_keeping:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return made


async def _totals(connection: AsyncConnection, job_id: str, catalog: Catalog) -> tuple[Tokens, Cost | None]:
    found = await rows(connection, _TOTALS, {"job_id": job_id})
    return _tokens(found), estimate(catalog, map(_use, found))


async def _summary(connection: AsyncConnection, job_id: str, catalog: Catalog) -> Summary:
    found = await rows(connection, _STATEMENT, {"job_id": job_id})
    outcomes = _by_cell(await rows(connection, _OUTCOMES, {"job_id": job_id, **RULES}))
    lines = tuple(_line(record, outcomes[_cell(record)], catalog) for record in found)
    return Summary(
        job_id=job_id,
        rows=lines,
        executions=sum(line.executions for line in lines),
        counts=added([line.counts for line in lines]),
        tokens=_tokens(found),
        cost=estimate(catalog, map(_use, found)),
        rules_version=RULES_VERSION,
    )


def _cell(record: Row) -> tuple[str, str, str]:
    return record["model_id"], record["model"], record["region"]


def _by_cell(records: Iterable[Row]) -> defaultdict[tuple[str, str, str], Outcomes]:
    """Outcomes by cell; a cell that was recorded between two statements has none yet."""
    counts: defaultdict[tuple[str, str, str], Counter[Outcome]] = defaultdict(Counter)
    cut: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        counts[_cell(record)][Outcome(record["outcome"])] += record["executions"]
        cut[_cell(record)] += record["cut"]
    found = {cell: outcomes_of(counted, cut[cell]) for cell, counted in counts.items()}
    return defaultdict(lambda: outcomes_of(Counter(), 0), found)


def _line(record: Row, outcomes: Outcomes, catalog: Catalog) -> SummaryRow:
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
        outcomes=outcomes,
    )


def _tokens(records: Iterable[Row]) -> Tokens:
    pairs = [(record["prompt_tokens"], record["completion_tokens"]) for record in records]
    return Tokens(prompt=sum(p for p, _ in pairs), completion=sum(c for _, c in pairs))


def _use(record: Row) -> Use:
    return Use(record["model"], record["region"], float(record["busy_s"]))
