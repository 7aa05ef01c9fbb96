"""The HTTP API and the web page, put together."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax import __version__
from parallax.bus.port import Bus
from parallax.catalog import Catalog
from parallax.clock import Clock
from parallax.db.migrations import check
from parallax.errors import InvalidInputError
from parallax.health import Health
from parallax.worker.process import Worker
from results.api import keys, problems
from results.api.access import Api
from results.api.comparisons import Comparisons
from results.api.documented import describe
from results.api.gate import ApiMetrics, Gate
from results.api.queries.summaries import Aggregates
from results.api.routes import actions, comparison, events, executions, installation, jobs
from results.api.settings import ApiSettings
from results.api.streams import Streams
from results.tables import SCHEMA
from results.web import comparing, pages


def create_api(
    *,
    engine: AsyncEngine,
    bus: Bus,
    catalog: Catalog,
    clock: Clock,
    settings: ApiSettings,
    health: Health | None = None,
) -> FastAPI:
    """The application. Engine and bus stay the caller's.

    Its lifespan refuses to start when the schema is behind (``UnavailableError``), or when keys are required and there
    is none (``InvalidInputError``); a process that runs the writer beside it need not run the lifespan. ``health``
    adds the probes of whatever runs in the same process.
    """
    metrics = ApiMetrics()
    api = Api(
        engine=engine,
        bus=bus,
        catalog=catalog,
        clock=clock,
        settings=settings,
        metrics=metrics,
        streams=Streams(engine, clock, settings),
        aggregates=Aggregates(catalog),
        comparisons=Comparisons(engine),
        health=Health(dict(health.probes) if health is not None else {}),
        worker=Worker("parallax.contracts.submission:judge_in_worker"),
    )

    async def database() -> bool:
        return await installation.database_answers(api)

    api.health.probes.setdefault("database", database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await check(engine, package="results", schema=SCHEMA)
        await require_a_key(engine, clock, settings)
        yield

    app = routed(lifespan)
    app.state.api = api
    problems.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-Id"],
            expose_headers=["Location", "X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    return app


def routed(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None) -> FastAPI:
    """The application with its resources and their description, not yet able to answer."""
    app = FastAPI(
        title="Parallax",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    for routes in (jobs, executions, comparison, events, actions, installation, pages, comparing):
        app.include_router(routes.router)
    app.mount("/static", StaticFiles(packages=[("results.web", "static")]))
    describe(app)
    return app


async def require_a_key(engine: AsyncEngine, clock: Clock, settings: ApiSettings) -> None:
    """Refuse to serve an installation that nobody could use.

    Raises:
        InvalidInputError: Keys are required and none is usable.
    """
    if settings.require_keys and not await keys.any_usable(engine, now=clock.now()):
        raise InvalidInputError("keys are required and there is none; make one: `parallax keys create --scope admin`")
