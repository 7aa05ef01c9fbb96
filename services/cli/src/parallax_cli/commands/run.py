"""``run``, ``demo`` and ``resume``: a job on this machine, from its file to its table."""

import asyncio
import re
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from parallax.catalog import offer_of
from parallax.client import NotFoundError, ParallaxClient
from parallax.contracts.job import JobSpec
from parallax.errors import InvalidInputError
from parallax_cli import examples
from parallax_cli.adoption import stop_soon
from parallax_cli.commands.seeing import see_through
from parallax_cli.connect import Need, Target, connected
from parallax_cli.console import is_live, stderr, stdout
from parallax_cli.exits import ExitCode, guarded
from parallax_cli.jobfile import load_job
from parallax_cli.options import AsJson, JobId, NewJobId

MAX_SLUG_CHARS: Final = 40


@guarded
def run(
    path: Annotated[Path | None, typer.Argument(help="The job file (.yaml, .yml or .json).")] = None,
    *,
    job_id: NewJobId = None,
    demo_job: Annotated[bool, typer.Option("--demo", help="Run the packaged demo instead of a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on this machine: check it, start everything in one process, show it, and print the answers.

    Ctrl-C cancels the job cleanly, a second one leaves at once.
    """
    if demo_job == (path is not None):
        raise InvalidInputError("give either a job file or --demo")
    target = Target()
    spec = load_job(path or examples.path("demo.yaml"), offer_of(target.catalog()))
    raise typer.Exit(asyncio.run(_submit_and_watch(target, spec, job_id or new_job_id(spec.name), as_json=as_json)))


@guarded
def demo(*, as_json: AsJson = False) -> None:
    """Run the packaged demo: 8 questions, 2 model variants, 3 simulated regions, a small model on this machine."""
    run(path=None, demo_job=True, as_json=as_json)


@guarded
def resume(job_id: JobId, *, as_json: AsJson = False) -> None:
    """Finish a job whose process was killed. Executions that are recorded are not run again."""
    target = Target()
    raise typer.Exit(asyncio.run(_resume(target, job_id, as_json=as_json)))


def new_job_id(name: str) -> str:
    """A new id that begins with the job's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_SLUG_CHARS].strip("-") or "job"
    return f"{slug}-{secrets.token_hex(4)}"


async def _submit_and_watch(target: Target, spec: JobSpec, job_id: str, *, as_json: bool) -> ExitCode:
    _say_starting(as_json=as_json)
    async with connected(target, Need.RUN) as client:
        submitted = await client.submit(spec, job_id=job_id)
        if not as_json:
            stdout().print(
                f"job {submitted.id}: {len(spec.questions)} questions, {submitted.executions} executions in "
                f"{submitted.batches} batches",
                soft_wrap=True,
            )
        return await _see_through(target, client, submitted.id, as_json=as_json)


def _say_starting(*, as_json: bool) -> None:
    console = stderr()
    if not as_json and is_live(console):
        console.print("starting database, model and services on this machine …")


async def _resume(target: Target, job_id: str, *, as_json: bool) -> ExitCode:
    _say_starting(as_json=as_json)
    async with connected(target, Need.RUN) as client:
        try:
            await client.job(job_id)
        except NotFoundError as error:
            raise InvalidInputError(f"{error}; `parallax jobs` lists them") from error
        return await _see_through(target, client, job_id, as_json=as_json)


async def _see_through(target: Target, client: ParallaxClient, job_id: str, *, as_json: bool) -> ExitCode:
    return await see_through(
        client,
        job_id,
        where=str(target.home.root),
        as_json=as_json,
        cancel_on_interrupt=True,
        leaving=lambda: stop_soon(target.home.postgres),
    )
