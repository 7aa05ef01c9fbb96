"""Blows to the database, and to the network between it and the services."""

import asyncio
from random import Random
from typing import Final

from tests.chaos.broker import DIRECTIONS, SILENT_S
from tests.chaos.services import victim
from tests.harness.installation import Installation

LONG_SILENT_S: Final = (20.0, 40.0)
"""Longer than a service may take to notice a database that says nothing (15 s)."""
READ_ONLY_S: Final = (5.0, 30.0)
"""A message that is given back every second would be dead after 20 of them."""
CANCEL_EVERY_S: Final = 0.05


async def kill(installation: Installation, random: Random) -> None:
    """Stop the database without a checkpoint and start it again."""
    with installation.disturbed("database killed"):
        await asyncio.to_thread(installation.postgres.stop_immediately)
        await asyncio.sleep(random.uniform(0, 1))
        await asyncio.to_thread(installation.postgres.start)


async def restart(installation: Installation, random: Random) -> None:
    """Stop the database in good order and start it again."""
    with installation.disturbed("database restarted"):
        await asyncio.to_thread(installation.postgres.stop)
        await asyncio.sleep(random.uniform(0, 2))
        await asyncio.to_thread(installation.postgres.start)


async def reset(installation: Installation, _: Random) -> None:
    """Break every connection to the database."""
    with installation.disturbed("database connections reset"):
        installation.database.cut()


async def away(installation: Installation, random: Random) -> None:
    """Let nobody reach the database for some seconds."""
    with installation.disturbed("database not reached"):
        installation.database.refuse()
        try:
            await asyncio.sleep(random.uniform(5, 30))
        finally:
            installation.database.admit()


async def half_open(installation: Installation, random: Random) -> None:
    """Forward nothing for some seconds, in one direction or in both; then go on, or break the connection."""
    await _half_open(installation, random, random.uniform(*SILENT_S))


async def half_open_long(installation: Installation, random: Random) -> None:
    """Forward nothing for longer than a service may take to notice."""
    await _half_open(installation, random, random.uniform(*LONG_SILENT_S))


async def _half_open(installation: Installation, random: Random, seconds: float) -> None:
    some = (victim(installation, random, random.choice(("dispatcher-", "results-"))),)
    victims, broken = random.choice((some, ())), random.random() < 0.5
    with installation.disturbed("database silent", *victims):
        installation.database.silence(*victims, directions=random.choice(DIRECTIONS))
        try:
            await asyncio.sleep(seconds)
        finally:
            if broken:
                installation.database.cut(*victims)
            installation.database.speak(*victims)


async def read_only(installation: Installation, random: Random) -> None:
    """Refuse every write, as a primary does that was demoted."""
    with installation.disturbed("database read-only"):
        await installation.postgres.set_read_only(True)
        try:
            await asyncio.sleep(random.uniform(*READ_ONLY_S))
        finally:
            await installation.postgres.set_read_only(False)


async def cancel_statements(installation: Installation, random: Random) -> None:
    """Cancel every statement that takes longer than a moment, as a statement timeout does."""
    with installation.disturbed("statements cancelled"):
        for _ in range(int(random.uniform(2, 5) / CANCEL_EVERY_S)):
            await installation.postgres.cancel_statements()
            await asyncio.sleep(CANCEL_EVERY_S)


async def terminate_backends(installation: Installation, random: Random) -> None:
    """End every connection from the server's side, some times."""
    with installation.disturbed("backends terminated"):
        for _ in range(random.randint(1, 5)):
            await installation.postgres.terminate_backends()
            await asyncio.sleep(random.uniform(0.1, 1))


async def crowd(installation: Installation, random: Random) -> None:
    """End the services' connections, and let somebody else have every one that the server allows."""
    with installation.disturbed("too many connections"):
        async with installation.postgres.crowded():
            await asyncio.sleep(random.uniform(2, 10))
