"""Watching a job until it has ended: a live picture on a terminal, plain lines anywhere else, nothing for machines."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Final, Protocol

import typer
from rich.console import Console
from rich.live import Live

from parallax.client import ParallaxClient
from parallax.contracts.answers import Job
from parallax.errors import UnavailableError
from parallax_cli.console import is_live
from parallax_cli.exits import ExitCode
from parallax_cli.interrupts import Interrupts
from parallax_cli.view import event_line, live_view
from parallax_cli.waiting import is_settled

POLL_S: Final = 0.25
LAST_EVENTS_S: Final = 5.0
"""After the end of a job its last events follow within moments."""
LAST_FACTS_S: Final = 30.0
"""A cancelled job ends at once; its aborted calls are recorded within the executors' bounds soon after."""
GIVE_UP_AFTER_S: Final = 120.0
"""How long the API may be away while a job is watched."""


class Screen(Protocol):
    """Where the progress of a job is shown."""

    def show(self, job: Job) -> None:
        """The job as it stands."""
        ...

    def say(self, line: str) -> None:
        """Something happened."""
        ...


class LiveScreen:
    """Redraws one picture in place."""

    def __init__(self, live: Live, simulated: Mapping[str, bool]) -> None:
        self._live = live
        self._simulated = simulated
        self._notice = ""

    def show(self, job: Job) -> None:
        """Redraw."""
        self._live.update(live_view(job, self._simulated, self._notice), refresh=True)

    def say(self, line: str) -> None:
        """Shown below the picture until the next notice."""
        self._notice = line


class PlainScreen:
    """One line per event; the picture itself is not shown."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, job: Job) -> None:
        """Nothing: events tell it."""

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, soft_wrap=True)


class SilentScreen:
    """For ``--json``: the end alone is told."""

    def show(self, job: Job) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


async def watch(
    client: ParallaxClient,
    job_id: str,
    *,
    console: Console | None,
    simulated: Mapping[str, bool],
    seen: Interrupts,
    cancel_on_interrupt: bool,
) -> Job:
    """Show a job until it has ended and everything of it is recorded; ``console`` is None for silence.

    Raises:
        typer.Exit: With code 130, when the user leaves before the end.
        UnavailableError: The API was away for too long.
    """
    async with AsyncExitStack() as stack:
        events: asyncio.Task[None] | None = None
        screen: Screen = SilentScreen()
        if console is not None and is_live(console):
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
            screen = LiveScreen(live, simulated)
        elif console is not None:
            screen = PlainScreen(console)
            events = asyncio.create_task(_tell_events(client, job_id, screen), name="events")
            stack.push_async_callback(_cancelled, events)
        job = await _until_settled(client, job_id, screen, seen, cancel_on_interrupt=cancel_on_interrupt)
        if events is not None:
            await asyncio.wait([events], timeout=LAST_EVENTS_S)
        return job


async def _tell_events(client: ParallaxClient, job_id: str, screen: Screen) -> None:
    async for event in client.events(job_id):
        line = event_line(event)
        if line is not None:
            screen.say(line)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, UnavailableError):
        await task


async def _until_settled(
    client: ParallaxClient, job_id: str, screen: Screen, seen: Interrupts, *, cancel_on_interrupt: bool
) -> Job:
    loop = asyncio.get_running_loop()
    ended_at: float | None = None
    cancelling = False
    while True:
        job = await _patiently(client, job_id, screen)
        screen.show(job)
        if job.status.ended:
            ended_at = ended_at or loop.time()
            if is_settled(job) or loop.time() - ended_at > LAST_FACTS_S:
                return job
        if seen.asked.is_set() and not cancelling:
            if seen.terminated or not cancel_on_interrupt:
                raise typer.Exit(ExitCode.INTERRUPTED)
            cancelling = True
            screen.say("cancelling: calls in flight are aborted; Ctrl-C again leaves at once")
            await client.cancel(job_id, "interrupted by the user")
        await _pause(seen, cancelling=cancelling)


async def _patiently(client: ParallaxClient, job_id: str, screen: Screen) -> Job:
    """The job, waiting for an API that is away for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GIVE_UP_AFTER_S
    while True:
        try:
            return await client.job(job_id)
        except UnavailableError as error:
            if loop.time() > deadline:
                raise
            screen.say(f"{error}; trying again")
            await asyncio.sleep(2.0)


async def _pause(seen: Interrupts, *, cancelling: bool) -> None:
    """Until the next look; a first Ctrl-C ends the pause."""
    if cancelling:
        await asyncio.sleep(POLL_S)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL_S):
            await seen.asked.wait()
