"""The state of the installation: live executors, and whether the database answers."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.installation import ExecutorState
from results.api.queries.reading import rows


async def live_executors(connection: AsyncConnection, alive_since: datetime) -> dict[str, list[ExecutorState]]:
    """Executors heard of since a moment that are not leaving, by region."""
    found = await rows(
        connection,
        """
        SELECT executor_id AS id, region, budget, models, endpoint_state, last_error, started_at,
               received_at AS heard_at,
               (SELECT count(*) FROM jsonb_array_elements(running) AS held
                 WHERE coalesce((held ->> 'calling')::boolean, true)) AS in_flight
          FROM results.executors WHERE received_at >= :alive_since AND NOT stopping ORDER BY region, executor_id
        """,
        {"alive_since": alive_since},
    )
    by_region: dict[str, list[ExecutorState]] = {}
    for record in found:
        fields = dict(record)
        by_region.setdefault(fields.pop("region"), []).append(ExecutorState(**fields))
    return by_region


async def ping(connection: AsyncConnection) -> bool:
    """Whether the database answers and has this service's tables."""
    found = await rows(connection, "SELECT to_regclass('results.jobs') IS NOT NULL AS there", {})
    return bool(found[0]["there"])
