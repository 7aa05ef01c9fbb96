"""``warm``: start what a job will call, before it does."""

import asyncio
import dataclasses
import json

import typer

from parallax.catalog import offer_of
from parallax.clock import SystemClock
from parallax_cli.connect import Target
from parallax_cli.console import is_live, stderr, stdout
from parallax_cli.exits import ExitCode, guarded
from parallax_cli.jobfile import load_job
from parallax_cli.logs import log_nothing
from parallax_cli.options import AsJson, JobFile
from parallax_cli.tables import warmth_table


@guarded
def warm(path: JobFile, *, as_json: AsJson = False) -> None:
    """Ask every model of a job for one token, in each of its regions, so that its first batch meets no cold start.

    Calls the endpoints of PARALLAX_CATALOG from here, with the credentials that executors take from the environment.
    """
    from executor.endpoints.factory import create_endpoint  # noqa: PLC0415 - only who calls models waits for clients
    from parallax_cli import warming  # noqa: PLC0415

    target = Target()
    catalog = target.catalog()
    spec = load_job(path, offer_of(catalog))
    log_nothing()
    said = stderr()
    if not as_json and is_live(said):
        said.print("asking every model for one token; a cold one takes its time …")
    found = asyncio.run(
        warming.warm(catalog, spec, lambda url: create_endpoint(url, target.environment), SystemClock())
    )
    if as_json:
        typer.echo(json.dumps({"warmed": [dataclasses.asdict(one) | {"ok": one.error is None} for one in found]}))
    else:
        stdout().print(warmth_table(found))
    if any(one.error is not None for one in found):
        raise typer.Exit(ExitCode.UNREACHABLE)
