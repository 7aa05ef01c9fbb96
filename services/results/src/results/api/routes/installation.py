"""The installation: regions, catalog, and whether this service can do its work."""

import asyncio
from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from parallax.contracts import routing
from parallax.contracts.installation import (
    CatalogAnswer,
    CatalogModel,
    CatalogRegion,
    ExecutorState,
    Liveness,
    Readiness,
    Regions,
    RegionState,
)
from parallax.errors import UnavailableError, UnroutableError
from results.api.access import Api, ApiParts, Reader
from results.api.documented import problems
from results.api.negotiation import produces
from results.api.queries.installation import live_executors, ping
from results.api.queries.reading import reading
from results.heartbeats import ALIVE_S

DEPTH_TIMEOUT_S: Final = 2.0
"""The answer about a queue is worth no longer wait; it is ``null`` then."""

router = APIRouter(tags=["installation"])
_AsJson: Final = Depends(produces("application/json"))


@router.get(
    "/v1/regions",
    summary="What every region can do now",
    dependencies=[Reader, _AsJson],
    responses=problems(401, 403, 406, 500, 503),
)
async def get_regions(api: ApiParts) -> Regions:
    """Live executors, their budgets and what they hold, and how many executions wait."""
    async with reading(api.engine) as connection:
        live = await live_executors(connection, api.clock.now() - timedelta(seconds=ALIVE_S))
    depths = await asyncio.gather(*(_depth(api, region) for region in api.catalog.regions))
    return Regions(
        regions=tuple(
            _region(api, name, tuple(live.get(name, ())), depth)
            for name, depth in zip(api.catalog.regions, depths, strict=True)
        )
    )


def _region(api: Api, name: str, executors: tuple[ExecutorState, ...], depth: int | None) -> RegionState:
    failing = [e for e in executors if e.last_error is not None]
    latest = max(failing, key=lambda executor: executor.heard_at, default=None)
    return RegionState(
        id=name,
        name=api.catalog.regions[name].name,
        simulated=api.catalog.regions[name].simulated,
        executors=executors,
        budget=sum(executor.budget for executor in executors),
        in_flight=sum(executor.in_flight for executor in executors),
        queue_depth=depth,
        models=tuple(api.catalog.models_in(name)),
        last_error=None if latest is None else latest.last_error,
    )


async def _depth(api: Api, region: str) -> int | None:
    """Tasks that wait in the region's queue and in the waiting queues of its models."""
    try:
        async with asyncio.timeout(DEPTH_TIMEOUT_S):
            queues = routing.region_queues(region, api.catalog.models_in(region))
            return sum(await asyncio.gather(*(api.bus.depth(queue) for queue in queues)))
    except (UnavailableError, UnroutableError, TimeoutError):
        return None


@router.get(
    "/v1/catalog",
    summary="What jobs may ask for",
    dependencies=[Reader, _AsJson],
    responses=problems(401, 403, 406, 500),
)
async def get_catalog(api: ApiParts) -> CatalogAnswer:
    """Regions, models and prices. Addresses of endpoints are not told."""
    catalog = api.catalog
    return CatalogAnswer(
        regions=tuple(CatalogRegion(id=n, name=r.name, simulated=r.simulated) for n, r in catalog.regions.items()),
        models=tuple(CatalogModel(id=n, upstream=m.upstream, regions=m.regions) for n, m in catalog.models.items()),
        currency=catalog.prices.currency if catalog.prices else None,
        prices_as_of=catalog.prices.as_of.isoformat() if catalog.prices else None,
        gpu_second=catalog.prices.gpu_second if catalog.prices else {},
    )


@router.get("/livez", summary="The process answers", tags=["operation"])
async def get_liveness() -> Liveness:
    """Needs no key."""
    return Liveness()


@router.get(
    "/readyz",
    summary="Whether the service can do its work",
    tags=["operation"],
    responses={503: {"model": Readiness, "description": "It cannot; the probes say why."}},
)
async def get_readiness(api: ApiParts, response: Response) -> Readiness:
    """Needs no key. Asks the database, and the consumers when the writer runs in the same process."""
    readiness = Readiness.of(await api.health.check())
    response.status_code = readiness.status_code
    return readiness


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    tags=["operation"],
    dependencies=[Reader],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403, 500)},
)
async def get_metrics(api: ApiParts) -> Response:
    """The API's own counters and those of the process."""
    return Response(generate_latest(api.metrics.registry) + generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def database_answers(api: Api) -> bool:
    """A probe: the database answers and has our tables."""
    async with reading(api.engine) as connection:
        return await ping(connection)
