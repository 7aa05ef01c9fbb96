"""Blows to service processes, and what their operators do to them in good order."""

import asyncio
import signal
from pathlib import Path
from random import Random
from typing import Final

from tests.harness.installation import Installation
from tests.harness.sources import environment_of

SHORT_PAUSE_S: Final = (1.0, 8.0)
"""A peer is given up after two heartbeats of 8 s: no connection is lost, so this explains no duplicate call."""
LONG_PAUSE_S: Final = (50.0, 70.0)
"""Long past the broker's heartbeats, every lease and every timeout: the broker has given the tasks to others."""


def victim(installation: Installation, random: Random, prefix: str = "") -> str:
    """A replica, drawn from those of a kind."""
    return random.choice([name for name in installation.services if name.startswith(prefix)])


async def kill(installation: Installation, random: Random) -> None:
    """SIGKILL a replica of anything."""
    installation.kill(victim(installation, random))


async def pause(installation: Installation, random: Random) -> None:
    """SIGSTOP a replica for some seconds."""
    name = victim(installation, random)
    with installation.disturbed("paused", name):
        await _pause(installation, name, random.uniform(*SHORT_PAUSE_S))


async def long_pause(installation: Installation, random: Random) -> None:
    """SIGSTOP a replica for a minute."""
    name = victim(installation, random)
    with installation.disturbed("paused for long", name, disconnects=True):
        await _pause(installation, name, random.uniform(*LONG_PAUSE_S))


async def _pause(installation: Installation, name: str, seconds: float) -> None:
    installation.hold(name)
    installation.signal(name, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        installation.signal(name, signal.SIGCONT)
        installation.unhold(name)


async def replace_executor(installation: Installation, random: Random) -> None:
    """SIGTERM an executor and start it again."""
    name = victim(installation, random, "executor-")
    await installation.remove(name)
    installation.bring_back(name)


async def rolling_restart(installation: Installation, _: Random) -> None:
    """Replace every replica, one after the other, each when the one before is ready."""
    for name in installation.services:
        await installation.remove(name)
        installation.bring_back(name)
        await installation.ready([name])


async def rolling_upgrade(installation: Installation, older: Path) -> None:
    """Roll every replica back to older sources, let old and new work side by side meanwhile, and roll forward again."""
    for sources in (older, None):
        for name in installation.services:
            await installation.remove(name)
            installation.bring_back(name, environment_of(sources))
            await installation.ready([name])


async def scale_up(installation: Installation, random: Random) -> None:
    """Add an executor, let it work, and take it away again."""
    twin = installation.add_twin(victim(installation, random, "executor-"))
    await installation.ready([twin])
    await asyncio.sleep(random.uniform(1, 5))
    await installation.dismiss(twin)


async def scale_down(installation: Installation, random: Random) -> None:
    """Take an executor away for some seconds."""
    name = victim(installation, random, "executor-")
    await installation.remove(name)
    await asyncio.sleep(random.uniform(1, 5))
    installation.bring_back(name)
