"""One token from each model that a job uses, in each of its regions, so that its first batch finds them started."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from executor.endpoints.port import CallTrace, Endpoint, EndpointError, ModelRequest
from parallax.catalog import Catalog
from parallax.clock import Clock
from parallax.contracts.job import JobSpec, Parameters
from parallax.contracts.outcomes import ChatMessage
from parallax.contracts.plan import Demand, demands
from parallax.errors import InvalidInputError

ANSWER_S: Final = 60.0
"""What one token of a started model may take; its region's cold start comes on top."""
AGAIN_S: Final = 2.0
"""Between two calls to an endpoint that still starts, unless it asks for more."""
MAX_CALLS: Final = 50
"""Calls at once: each may be what starts a container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What came of asking one model in one region."""

    region: str
    model: str
    seconds: float
    error: str | None
    """Why there was no answer."""


async def warm(
    catalog: Catalog, spec: JobSpec, create: Callable[[str], Endpoint], clock: Clock, *, answer_s: float = ANSWER_S
) -> list[Warmed]:
    """Ask every (model, region) of a job that the catalog allows for one token, all of them at once.

    No call outlives its region's cold start by more than ``answer_s``; cancelling this aborts every one.

    Raises:
        InvalidInputError: ``create`` refused the endpoint of a region.
    """
    wanted = sorted(demands(spec), key=lambda demand: (demand.region, demand.model))
    places = asyncio.Semaphore(MAX_CALLS)
    async with AsyncExitStack() as stack:
        endpoints: dict[str, Endpoint] = {}
        for region in dict.fromkeys(demand.region for demand in wanted):
            endpoints[region] = _created(create, catalog, region)
            stack.push_async_callback(endpoints[region].close)

        async def ask(demand: Demand) -> Warmed:
            async with places:
                begun = clock.monotonic()
                error = await _error(catalog, demand, endpoints[demand.region], clock, answer_s)
                took_s = clock.monotonic() - begun
                return Warmed(region=demand.region, model=demand.model, seconds=took_s, error=error)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(demand)) for demand in wanted]
    return [task.result() for task in asked]


def _created(create: Callable[[str], Endpoint], catalog: Catalog, region: str) -> Endpoint:
    try:
        return create(catalog.regions[region].endpoint)
    except InvalidInputError as error:
        raise InvalidInputError(f"region {region}: {error}") from error


async def _error(catalog: Catalog, demand: Demand, endpoint: Endpoint, clock: Clock, answer_s: float) -> str | None:
    """Why one model gave no token in time; ``None`` when it did."""
    cold_start_s = catalog.regions[demand.region].cold_start_s
    limit_s = cold_start_s + answer_s
    try:
        async with asyncio.timeout(limit_s):
            await _one_token(catalog, demand, endpoint, clock, clock.monotonic() + cold_start_s)
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except EndpointError as error:
        return f"{error.info.error_class}: {error.info.message}"
    return None


async def _one_token(catalog: Catalog, demand: Demand, endpoint: Endpoint, clock: Clock, started_by: float) -> None:
    """Call until there is an answer; an endpoint that takes no calls yet is asked again while it may be starting."""
    model = catalog.models[demand.model]
    execution_id, attempt = uuid4(), 0
    while True:
        attempt += 1
        request = ModelRequest(
            execution_id=execution_id,
            attempt=attempt,
            model=demand.model,
            upstream=model.upstream,
            revision=model.revision,
            messages=(ChatMessage(role="user", content="Hello"),),
            parameters=Parameters(max_tokens=1),
        )
        try:
            await endpoint.call(request, CallTrace(on_first_byte=lambda: None))
        except EndpointError as error:
            pause_s = max(AGAIN_S, error.retry_after_s or 0.0)
            if not error.not_ready or clock.monotonic() + pause_s > started_by:
                raise
            await clock.sleep(pause_s)
        else:
            return
