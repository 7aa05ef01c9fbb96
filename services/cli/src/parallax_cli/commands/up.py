"""``up``: the whole installation as local processes."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from parallax_cli import stack
from parallax_cli.connect import Target
from parallax_cli.console import stdout
from parallax_cli.exits import guarded
from parallax_cli.home import Home
from parallax_cli.interrupts import interrupts


@guarded
def up(
    executors: Annotated[int, typer.Option(min=1, max=50, help="Executors per region.")] = 1,
    api_port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of API and web page, if it is free.")] = 8000,
) -> None:
    """Run broker, database, dispatcher, results, executors and the local model as processes, until Ctrl-C.

    A broker and a database of your own are used when PARALLAX_AMQP_URL and PARALLAX_DATABASE_URL are set.
    """
    target = Target()
    asyncio.run(_run(target, target.home.root / "stack", executors, api_port))


async def _run(target: Target, folder: Path, executors: int, api_port: int) -> None:
    with Home(folder).exclusive(), interrupts(leaving=lambda: None) as asked:
        entering = asyncio.create_task(_serve(target, folder, executors, api_port))
        stopping = asyncio.create_task(asked.asked.wait())
        await asyncio.wait((entering, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not entering.done():
            entering.cancel()
        await asyncio.gather(entering, return_exceptions=entering.cancelling() > 0)


async def _serve(target: Target, folder: Path, executors: int, api_port: int) -> None:
    async with stack.running(
        folder, target.catalog(), target.environment, executors=executors, api_port=api_port, say=_say
    ) as running:
        _show(running.addresses)
        await running.supervise()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _show(addresses: stack.Addresses) -> None:
    table = Table(title="Parallax is up; Ctrl-C stops all of it", title_justify="left", box=None, show_header=False)
    table.add_row("API and web page", addresses.api)
    table.add_row("broker", addresses.amqp)
    table.add_row("database", addresses.database)
    if addresses.model:
        table.add_row("local model", addresses.model)
    for service in addresses.services:
        table.add_row(service.name, f"http://127.0.0.1:{service.http_port}/readyz")
    table.add_row("logs", str(addresses.logs))
    out = stdout()
    out.print(table, soft_wrap=True)
    out.print("\nIn another terminal:")
    out.print(f"  export PARALLAX_API={addresses.api} PARALLAX_AMQP_URL={addresses.amqp}", soft_wrap=True)
    out.print("  parallax submit my-job.yaml --watch\n", soft_wrap=True)
