"""``submit``, ``watch`` and ``regions``: against a running installation, or the home that another process runs."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from parallax.catalog import offer_of
from parallax.client import NotFoundError, ParallaxClient
from parallax.contracts.answers import Job, Submitted
from parallax.contracts.installation import Regions
from parallax.contracts.intake import Offer
from parallax.contracts.job import JobSpec
from parallax.contracts.plan import batch_count, execution_count
from parallax.errors import InvalidInputError
from parallax_cli.broker import broker_url, publish_submission
from parallax_cli.commands.run import new_job_id
from parallax_cli.commands.seeing import see_through
from parallax_cli.connect import Need, Target, connected
from parallax_cli.console import print_json, stdout
from parallax_cli.exits import ExitCode, guarded
from parallax_cli.jobfile import load_job
from parallax_cli.logs import log_nothing
from parallax_cli.options import Api, AsJson, JobFile, JobId, Key, NewJobId
from parallax_cli.tables import regions_table
from parallax_cli.waiting import is_decided, until_known

NO_INSTALLATION = (
    "no installation given: use --api URL or PARALLAX_API (for example http://127.0.0.1:8080), or PARALLAX_AMQP_URL; "
    "`parallax run` runs the job on this machine"
)


@guarded
def submit(
    path: JobFile,
    *,
    stay: Annotated[bool, typer.Option("--watch", help="Stay and watch it; Ctrl-C leaves, the job goes on.")] = False,
    job_id: NewJobId = None,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Send a job to a running installation: over AMQP when PARALLAX_AMQP_URL is set, else over HTTP."""
    target = Target(url=api, key=key)
    if target.url is None and broker_url(target.environment) is None:
        raise InvalidInputError(NO_INSTALLATION)
    if stay and target.url is None:
        raise InvalidInputError("--watch reads over HTTP: use --api URL or PARALLAX_API as well")
    log_nothing()
    raise typer.Exit(asyncio.run(_submit(target, path, job_id, stay=stay, as_json=as_json)))


async def _submit(target: Target, path: Path, job_id: str | None, *, stay: bool, as_json: bool) -> ExitCode:
    spec = load_job(path, await _offer(target))
    submitted = await _send(target, spec, job_id or new_job_id(spec.name))
    if stay:
        if not as_json:
            stdout().print(f"job {submitted.id}: {submitted.executions} executions", soft_wrap=True)
        return await _see_through(target, submitted.id, as_json=as_json)
    if as_json:
        print_json(submitted)
    else:
        stdout().print(
            f"job {submitted.id}: sent, {submitted.executions} executions in {submitted.batches} batches; "
            f"next: parallax watch {submitted.id}",
            soft_wrap=True,
        )
    return ExitCode.DONE


async def _offer(target: Target) -> Offer:
    """What the installation offers, as its API says, else a local copy of its catalog."""
    if target.url is None:
        if not target.environment.get("PARALLAX_CATALOG"):
            raise InvalidInputError("to check the job, give --api URL or PARALLAX_API, or a copy of the installation's "
                                    "catalog in PARALLAX_CATALOG")  # fmt: skip
        return offer_of(target.catalog())
    return await remote_offer(target.url, target.key)


async def remote_offer(url: str, key: str | None) -> Offer:
    """What the installation at this address offers."""
    async with ParallaxClient(url, key=key) as client:
        answer = await client.catalog()
    return Offer(
        regions=frozenset(region.id for region in answer.regions),
        models={model.id: frozenset(model.regions) for model in answer.models},
    )


async def _send(target: Target, spec: JobSpec, job_id: str) -> Submitted:
    broker = broker_url(target.environment)
    if broker is not None:
        await publish_submission(broker, target.environment, job_id, spec)
        return Submitted.model_validate(
            {"id": job_id, "status": "submitted", "executions": execution_count(spec), "batches": batch_count(spec)}
        )
    async with ParallaxClient(target.url or "", key=target.key) as client:
        return await client.submit(spec, job_id=job_id)


@guarded
def watch(job_id: JobId, *, as_json: AsJson = False, api: Api = None, key: Key = None) -> None:
    """Watch a job until it has ended; Ctrl-C leaves, the job goes on. Survives a lost connection."""
    target = Target(url=api, key=key)
    raise typer.Exit(asyncio.run(_see_through(target, job_id, as_json=as_json)))


async def _see_through(target: Target, job_id: str, *, as_json: bool) -> ExitCode:
    async with connected(target, Need.READ) as client:
        await _known(client, job_id)
        where = target.url or str(target.home.root)
        return await see_through(client, job_id, where=where, as_json=as_json, cancel_on_interrupt=False)


async def _known(client: ParallaxClient, job_id: str) -> Job:
    """The job; one that was sent over AMQP a moment ago may not be visible yet."""
    try:
        return await until_known(client, job_id, is_decided)
    except NotFoundError as error:
        raise InvalidInputError(f"{error}; `parallax jobs` lists them") from error


@guarded
def regions(*, as_json: AsJson = False, api: Api = None, key: Key = None) -> None:
    """Show each region: live executors, calls in flight, executions waiting, models, last error."""

    async def read() -> Regions:
        async with connected(Target(url=api, key=key), Need.READ) as client:
            return await client.regions()

    found = asyncio.run(read())
    if as_json:
        print_json(found)
    else:
        stdout().print(regions_table(found))
