"""A steady flow of jobs under a steady flow of blows."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos.blows import Blow, strike
from tests.harness.accounts import Accounts, Balance, draw_job, settle
from tests.harness.installation import PRODUCTION, Installation, Timings, installation
from tests.harness.rabbitmq import Node
from tests.harness.witness import witness

MOST_ACTIVE: Final = 12
"""Jobs that may be unfinished before a new one is submitted: the flow adapts to what the machine can do."""
CANCELLED_SHARE: Final = 0.2
ENDING_S: Final = 700.0
"""How long jobs may go on when the blows are over: none may take longer than its own deadline of 600 s."""
READY_S: Final = 180.0
"""How long services may take to be ready again: one that is lost exits after 120 s, and is started again."""


@dataclass(slots=True)
class Report:
    """What a run of chaos came to."""

    seconds: float
    blows: Counter[str]
    restarts: int
    balance: Balance
    unready: list[str]
    """Replicas that were not ready again when the blows were over."""

    @property
    def faults(self) -> dict[str, int]:
        """How much of what must not be there is there."""
        return {**self.balance.faults, "never ready again": len(self.unready)}


async def chaos(
    folder: Path,
    node: Node,
    *,
    namespace: str,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    blows: Sequence[Blow],
    timings: Timings = PRODUCTION,
    ending_s: float = ENDING_S,
) -> Report:
    """Run for so long, heal everything, wait for the jobs, and close the accounts."""
    random, accounts, struck = Random(seed), Accounts(), Counter[str]()
    async with (
        installation(folder, node, namespace=namespace, dispatchers=2, results=2, executors=2, timings=timings) as made,
        witness(made) as heard,
    ):
        began = time.monotonic()
        over = asyncio.Event()
        flow = asyncio.create_task(_submit(made, accounts, Random(seed + 1), over, slow=timings is PRODUCTION))
        while time.monotonic() - began < seconds:
            await asyncio.sleep(random.uniform(1, 4))
            blow = await strike(made, random, blows)
            struck[blow] += 1
            say(f"{time.monotonic() - began:6.0f} s  {blow}; {len(accounts.jobs)} jobs so far")
        say("the blows are over")
        over.set()
        await flow
        unready = await _unready(made)
        await _all_ended(made, accounts, ending_s)
        await heard.heard_all()
        balance = await settle(made, accounts, heard)
        return Report(time.monotonic() - began, struck, made.restarts, balance, unready)


async def _submit(made: Installation, accounts: Accounts, random: Random, over: asyncio.Event, *, slow: bool) -> None:
    """Submit and cancel jobs until it is over; what was begun is carried through."""
    async with asyncio.TaskGroup() as cancelling:
        while not over.is_set():
            await asyncio.sleep(random.uniform(0.3, 1.2))
            if await _unfinished(made, accounts) >= MOST_ACTIVE:
                continue
            job_id = f"chaos-{len(accounts.jobs)}"
            accounts.jobs[job_id] = draw_job(random, job_id, slow=slow)
            if random.random() < CANCELLED_SHARE:
                accounts.cancelled.add(job_id)
                cancelling.create_task(_cancel_later(made, job_id, random.uniform(0, 4)))
            await made.submit(job_id, accounts.jobs[job_id])


async def _cancel_later(made: Installation, job_id: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await made.cancel(job_id)


async def _unfinished(made: Installation, accounts: Accounts) -> int:
    rows = await made.rows("SELECT count(*) AS n FROM dispatcher.jobs WHERE phase = 'finished'")
    return len(accounts.jobs) - int(rows[0]["n"])


async def _unready(made: Installation) -> list[str]:
    """The replicas that do not become ready, each asked until the time for all of them is up."""
    until = time.monotonic() + READY_S
    unready = []
    for name in made.services:
        try:
            await made.ready([name], patience_s=max(1.0, until - time.monotonic()))
        except TimeoutError:
            unready.append(name)
    return unready


async def _all_ended(made: Installation, accounts: Accounts, ending_s: float) -> None:
    """Wait for the ledger and for what users see; what has not ended in time shows in the balance."""
    terminal = "status IN ('completed', 'failed', 'cancelled')"
    try:
        await made.wait_for(
            f"SELECT (SELECT count(*) FROM dispatcher.jobs WHERE phase = 'finished') >= :jobs"
            f" AND (SELECT count(*) FROM results.jobs WHERE {terminal}) >= :jobs",
            patience_s=ending_s,
            jobs=len(accounts.jobs),
        )
    except TimeoutError:
        return
