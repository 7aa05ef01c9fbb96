"""What ``run``, ``resume``, ``submit --watch`` and ``watch`` have in common: a job seen through to its end."""

from collections.abc import Callable

from parallax.client import ParallaxClient
from parallax_cli.console import print_json, stdout
from parallax_cli.exits import ExitCode
from parallax_cli.interrupts import interrupts
from parallax_cli.outcome import job_exit_code, show_outcome
from parallax_cli.view import simulated_regions
from parallax_cli.watching import watch


def nothing() -> None:
    """There is nothing of ours to stop."""


async def see_through(
    client: ParallaxClient,
    job_id: str,
    *,
    where: str,
    as_json: bool,
    cancel_on_interrupt: bool,
    leaving: Callable[[], None] = nothing,
) -> ExitCode:
    """Watch a job until it has ended, show its outcome, and tell the exit code that goes with it.

    A second Ctrl-C calls ``leaving`` and ends the process.
    """
    console = stdout()
    simulated = simulated_regions(await client.catalog())
    with interrupts(leaving) as seen:
        job = await watch(
            client,
            job_id,
            console=None if as_json else console,
            simulated=simulated,
            seen=seen,
            cancel_on_interrupt=cancel_on_interrupt,
        )
    if as_json:
        print_json(job)
    else:
        await show_outcome(client, job, simulated, console, where=where)
    return job_exit_code(job)
