"""``jobs``, ``show``, ``cancel`` and ``retry``: jobs of a standalone home or of a running installation."""

import asyncio
import json
from typing import Annotated

import typer

from parallax.contracts.answers import Job, JobBrief, JobPage, Summary
from parallax.contracts.outcomes import ExecutionStatus
from parallax.errors import InvalidInputError
from parallax_cli.broker import broker_url, publish_cancellation
from parallax_cli.connect import Need, Target, connected
from parallax_cli.console import print_json, stdout
from parallax_cli.exits import guarded
from parallax_cli.logs import log_nothing
from parallax_cli.options import STATUSES, Api, AsJson, JobId, Key, NewJobId
from parallax_cli.outcome import summary_lines
from parallax_cli.tables import jobs_table, summary_table
from parallax_cli.text import one_line
from parallax_cli.view import batches_done, duration, simulated_regions
from parallax_cli.waiting import is_decided, is_settled, until, until_known

JOB_STATUSES = ("submitted", "queued", "running", "completed", "failed", "cancelled", "rejected")


@guarded
def jobs(
    *,
    status: Annotated[list[str] | None, typer.Option(help="Only jobs in this status. Repeat.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Only jobs with this text in their name, in upper or lower case.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """List jobs, newest first."""
    unknown = [one for one in status or () if one not in JOB_STATUSES]
    if unknown:
        raise InvalidInputError(f"--status {unknown[0]}: allowed: {', '.join(JOB_STATUSES)}")

    async def listed() -> list[JobBrief]:
        async with connected(Target(url=api, key=key), Need.READ) as client:
            return [job async for job in client.jobs(status=status or (), name=name, limit=limit)]

    found = asyncio.run(listed())
    if as_json:
        print_json(JobPage(items=tuple(found), next_cursor=None))
    elif found:
        stdout().print(jobs_table(found))
    else:
        stdout().print("no jobs yet; `parallax demo` runs one")


@guarded
def show(job_id: JobId, *, as_json: AsJson = False, api: Api = None, key: Key = None) -> None:
    """Show all about one job: progress, reasons, what runs where, and how each model did."""
    target = Target(url=api, key=key)

    async def read() -> tuple[Job, Summary, dict[str, bool]]:
        async with connected(target, Need.READ) as client:
            job = await client.job(job_id)
            return job, await client.summary(job_id), simulated_regions(await client.catalog())

    job, summary, simulated = asyncio.run(read())
    if as_json:
        print_json(job)
        return
    console = stdout()
    for line in summary_lines(job, simulated, target.url or str(target.home.root)):
        console.print(line, soft_wrap=True)
    console.print(
        f"batches {batches_done(job)}/{job.batches if job.batches is not None else '?'}, "
        f"waited {duration(job.timings.waited_s)}, ran {duration(job.timings.ran_s)}"
        + (f", place {job.place_in_queue} in the queue" if job.place_in_queue else "")
        + (f", retry of {one_line(job.retry_of)}" if job.retry_of else "")
        + (f", about {job.cost.amount:.4f} {one_line(job.cost.currency)}" if job.cost else ""),
        soft_wrap=True,
    )
    for running in job.running:
        console.print(
            f"  running in {running.region}: {running.question_id} / {running.model_id} on {running.executor_id}",
            soft_wrap=True,
        )
    if summary.rows:
        console.print(summary_table(summary))


@guarded
def cancel(
    job_id: JobId,
    *,
    reason: Annotated[str | None, typer.Option(help="Kept with the job.")] = None,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Cancel a job: calls in flight are aborted at the provider, queued ones never start.

    Over AMQP when PARALLAX_AMQP_URL is set, else over HTTP or in the standalone home.
    """
    target = Target(url=api, key=key)
    broker = broker_url(target.environment)

    async def stop() -> Job | None:
        if broker is not None:
            log_nothing()
            await publish_cancellation(broker, target.environment, job_id, reason)
            if target.url is None:
                return None
        async with connected(target, Need.CHANGE) as client:
            if broker is None:
                await client.cancel(job_id, reason)
            return await until_known(client, job_id, is_settled)

    job = asyncio.run(stop())
    if job is None:
        typer.echo(json.dumps({"id": job_id}) if as_json else f"job {job_id}: asked to cancel")
    elif as_json:
        print_json(job)
    else:
        stdout().print(f"job {job.id}: {job.status.value}", soft_wrap=True)


@guarded
def retry(
    job_id: JobId,
    *,
    status: Annotated[str, typer.Option(help="Which executions, by status; separated by commas.")] = "failed,timed_out",
    new_job_id: NewJobId = None,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Make a new job of exactly those executions of a job that failed or timed out.

    In a standalone home the new job is stored, and runs with `parallax resume`.
    """
    wanted = [one.strip() for one in status.split(",") if one.strip()]
    unknown = [one for one in wanted if one not in STATUSES]
    if unknown or not wanted:
        raise InvalidInputError(f"--status {status}: allowed: {', '.join(STATUSES)}, separated by commas")
    target = Target(url=api, key=key)

    async def derive() -> Job:
        async with connected(target, Need.CHANGE) as client:
            statuses = [ExecutionStatus(one) for one in wanted]
            retried = await client.retry(job_id, status=statuses, new_job_id=new_job_id)
            return await until(client, retried.id, is_decided)

    job = asyncio.run(derive())
    if as_json:
        print_json(job)
        return
    stdout().print(f"job {job.id}: {job.executions} executions of {job_id} again ({job.status.value})", soft_wrap=True)
    follow = f"parallax watch {job.id}" if target.url else f"parallax resume {job.id}"
    stdout().print(f"next: {follow}", soft_wrap=True)
