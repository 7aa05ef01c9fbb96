"""Blows to the broker, and to the network between it and the services."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import aio_pika
from aio_pika.abc import AbstractQueue

from tests.chaos.services import victim
from tests.harness.installation import REGIONS, Installation
from tests.harness.proxy import BOTH, Direction

DIRECTIONS: Final = (BOTH, frozenset({Direction.TO_SERVER}), frozenset({Direction.TO_CLIENT}))
SILENT_S: Final = (2.0, 6.0)
"""Below every heartbeat and timeout: a connection that speaks again goes on as if nothing had been."""
UNCONFIRMED_S: Final = (11.0, 14.0)
"""Longer than a publish may take (10 s), and over before the broker gives a peer up, after two heartbeats of 8 s."""
LONG_SILENT_S: Final = (35.0, 60.0)
"""More than three heartbeats of 8 s: both sides must have given the connection up."""
ALARM_S: Final = (1.0, 4.0)
LONG_ALARM_S: Final = (11.0, 25.0)
"""Longer than a publish may take (10 s)."""
ONE_ONLY: Final = 0.7
"""How often a fault of the network strikes one replica, in place of all."""


async def cut(installation: Installation, _: Random) -> None:
    """Break every connection to the broker."""
    with installation.disturbed("connections cut", disconnects=True):
        installation.broker.cut()


async def cut_one(installation: Installation, random: Random) -> None:
    """Break the connections of one replica."""
    name = victim(installation, random)
    with installation.disturbed("connections cut", name, disconnects=True):
        installation.broker.cut(name)


async def network_pause(installation: Installation, random: Random) -> None:
    """Let nobody, or not one of the replicas, reach the broker for some seconds."""
    victims = _victims(installation, random)
    with installation.disturbed("broker not reached", *victims, disconnects=True):
        installation.broker.refuse(*victims)
        try:
            await asyncio.sleep(random.uniform(1, 4))
        finally:
            installation.broker.admit(*victims)


async def half_open(installation: Installation, random: Random) -> None:
    """Forward nothing for some seconds, in one direction or in both; then go on, or break the connection."""
    await _half_open(installation, random, random.uniform(*SILENT_S), lost=random.random() < 0.5)


async def half_open_long(installation: Installation, random: Random) -> None:
    """Forward nothing for longer than heartbeats allow."""
    await _half_open(installation, random, random.uniform(*LONG_SILENT_S), lost=True)


async def publishes_held(installation: Installation, random: Random) -> None:
    """Hold back what a dispatcher or a writer of results sends until it has given its publishes up; then deliver it.

    A memory alarm does the same, but to all at once, which leaves hardly anybody with something to publish.
    """
    name = victim(installation, random, random.choice(("dispatcher-", "results-")))
    with installation.disturbed("publishes held back", name):
        installation.broker.silence(name, directions={Direction.TO_SERVER})
        try:
            await asyncio.sleep(random.uniform(*UNCONFIRMED_S))
        finally:
            installation.broker.speak(name)


async def _half_open(installation: Installation, random: Random, seconds: float, *, lost: bool) -> None:
    victims, directions = _victims(installation, random), random.choice(DIRECTIONS)
    towards = "both ways" if directions == BOTH else next(iter(directions)).value
    with installation.disturbed(f"broker silent ({towards})", *victims, disconnects=lost):
        installation.broker.silence(*victims, directions=directions)
        try:
            await asyncio.sleep(seconds)
        finally:
            if lost:
                installation.broker.cut(*victims)
            installation.broker.speak(*victims)


async def slow(installation: Installation, random: Random) -> None:
    """A line of 50 kB/s on each connection, 20 to 100 ms late."""
    victims = _victims(installation, random)
    with installation.disturbed("broker slow", *victims):
        installation.broker.slow(*victims, bytes_per_s=50_000, latency_s=random.uniform(0.02, 0.1))
        try:
            await asyncio.sleep(random.uniform(3, 8))
        finally:
            installation.broker.fast(*victims)


def _victims(installation: Installation, random: Random) -> tuple[str, ...]:
    """One replica, or all of them, for which no name stands."""
    return (victim(installation, random),) if random.random() < ONE_ONLY else ()


async def restart_app(installation: Installation, random: Random) -> None:
    """Stop the broker's application and start it again."""
    with installation.disturbed("broker app restarted", disconnects=True):
        await asyncio.to_thread(installation.node.ctl, "stop_app")
        await asyncio.sleep(random.uniform(0, 2))
        await asyncio.to_thread(installation.node.ctl, "start_app")


async def kill_node(installation: Installation, random: Random) -> None:
    """Kill the broker's node and start it on the disk it has."""
    with installation.disturbed("broker node killed", disconnects=True):
        await asyncio.to_thread(installation.node.kill)
        await asyncio.sleep(random.uniform(0, 1))
        await asyncio.to_thread(installation.node.start)


async def lose_disk(installation: Installation, _: Random) -> None:
    """Kill the broker's node and start it on an empty disk."""
    with installation.disturbed("broker lost its disk", disconnects=True):
        await asyncio.to_thread(installation.node.kill)
        await asyncio.to_thread(installation.node.wipe)
        await asyncio.to_thread(installation.node.start)


async def memory_alarm(installation: Installation, random: Random) -> None:
    """Make the broker block its publishers for some seconds."""
    await _alarm(installation, "memory alarm", _MEMORY, random.uniform(*ALARM_S))


async def memory_alarm_long(installation: Installation, random: Random) -> None:
    """Make the broker block its publishers for longer than they wait."""
    await _alarm(installation, "memory alarm", _MEMORY, random.uniform(*LONG_ALARM_S))


async def disk_alarm_long(installation: Installation, random: Random) -> None:
    """Make the broker block its publishers because its disk is full, for longer than they wait."""
    await _alarm(installation, "disk alarm", _DISK, random.uniform(*LONG_ALARM_S))


_MEMORY: Final = (
    ("set_vm_memory_high_watermark", "absolute", "1"),
    ("set_vm_memory_high_watermark", "absolute", "2GB"),
)
_DISK: Final = (("set_disk_free_limit", "1000TB"), ("set_disk_free_limit", "50MB"))


async def _alarm(
    installation: Installation, cause: str, commands: tuple[tuple[str, ...], tuple[str, ...]], seconds: float
) -> None:
    begin, end = commands
    with installation.disturbed(cause):
        await asyncio.to_thread(installation.node.ctl, *begin)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(installation.node.ctl, *end)


async def purge_queue(installation: Installation, random: Random) -> None:
    """Lose every task that waits in a region."""
    with installation.disturbed("queue purged"):
        await _on_queue(installation, random, lambda queue: queue.purge())


async def delete_queue(installation: Installation, random: Random) -> None:
    """Lose the queue of a region, with what waits in it and what its executors have not acknowledged."""
    with installation.disturbed("queue deleted"):
        await _on_queue(installation, random, lambda queue: queue.delete(if_unused=False, if_empty=False))


async def _on_queue(
    installation: Installation,
    random: Random,
    operate: Callable[[AbstractQueue], Awaitable[object]],
) -> None:
    name = f"{installation.namespace}.executions.{random.choice(REGIONS)}"
    async with await aio_pika.connect(installation.node.url, timeout=30) as connection:
        channel = await connection.channel()
        await operate(await channel.get_queue(name, ensure=False))
