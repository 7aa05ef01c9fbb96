"""The blows: each hurts something, waits a moment, and lets it heal."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from tests.harness.installation import Installation

LONGEST_PAUSE_S: Final = 8.0

Blow = Callable[[Installation, Random], Awaitable[None]]


def _victim(installation: Installation, random: Random, prefix: str = "") -> str:
    return random.choice([name for name in installation.services if name.startswith(prefix)])


async def kill(installation: Installation, random: Random) -> None:
    """SIGKILL a replica of anything."""
    installation.kill(_victim(installation, random))


async def pause(installation: Installation, random: Random) -> None:
    """SIGSTOP a replica for some seconds."""
    name = _victim(installation, random)
    installation.hold(name)
    installation.signal(name, signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, LONGEST_PAUSE_S))
    installation.signal(name, signal.SIGCONT)
    installation.unhold(name)


async def replace_executor(installation: Installation, random: Random) -> None:
    """SIGTERM an executor and start it again."""
    name = _victim(installation, random, "executor-")
    await installation.remove(name)
    installation.bring_back(name)


async def stop_broker_app(installation: Installation, random: Random) -> None:
    """Stop the broker's application and start it again."""
    await asyncio.to_thread(installation.node.ctl, "stop_app")
    await asyncio.sleep(random.uniform(0, 2))
    await asyncio.to_thread(installation.node.ctl, "start_app")


async def kill_broker(installation: Installation, random: Random) -> None:
    """Kill the broker's node and start it on the disk it has."""
    await asyncio.to_thread(installation.node.kill)
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(installation.node.start)


async def kill_database(installation: Installation, random: Random) -> None:
    """Stop the database without a checkpoint and start it again."""
    await asyncio.to_thread(installation.postgres.stop_immediately)
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(installation.postgres.start)


async def cut_connections(installation: Installation, _: Random) -> None:
    """Break every connection to the broker."""
    installation.proxy.cut()


async def pause_network(installation: Installation, random: Random) -> None:
    """Let nobody reach the broker for some seconds."""
    installation.proxy.refuse()
    await asyncio.sleep(random.uniform(1, LONGEST_PAUSE_S / 2))
    installation.proxy.admit()


async def memory_alarm(installation: Installation, random: Random) -> None:
    """Make the broker block its publishers for some seconds."""
    await asyncio.to_thread(installation.node.ctl, "set_vm_memory_high_watermark", "absolute", "1")
    await asyncio.sleep(random.uniform(1, LONGEST_PAUSE_S / 2))
    await asyncio.to_thread(installation.node.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")


BLOWS: Final[dict[str, tuple[Blow, int]]] = {
    "kill -9 of a service": (kill, 8),
    "service paused": (pause, 3),
    "executor replaced": (replace_executor, 3),
    "connections cut": (cut_connections, 4),
    "network paused": (pause_network, 2),
    "broker app restarted": (stop_broker_app, 1),
    "broker node killed": (kill_broker, 1),
    "database killed": (kill_database, 2),
    "memory alarm": (memory_alarm, 1),
}
"""Every blow, and how often it is chosen relative to the others."""


async def strike(installation: Installation, random: Random) -> str:
    """Strike once, return when it is over, and say what it was."""
    name = random.choices(list(BLOWS), weights=[weight for _, weight in BLOWS.values()])[0]
    await BLOWS[name][0](installation, random)
    return name
