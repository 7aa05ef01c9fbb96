"""Every blow by name: how often it is chosen, and whether it is over soon enough for the short form."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos import broker, database, services
from tests.harness.installation import Installation


@dataclass(frozen=True, slots=True)
class Blow:
    """Something that hurts an installation for a bounded time, and is healed when ``strike`` returns."""

    name: str
    strike: Callable[[Installation, Random], Awaitable[None]]
    weight: int
    """How often it is chosen relative to the others; long ones are rare, or a run would consist of them."""
    quick: bool = False
    """Whether it is over in some seconds, and what it breaks is mended as soon."""


_ALL: Final = (
    Blow("kill", services.kill, 16, quick=True),
    Blow("pause", services.pause, 6, quick=True),
    Blow("long-pause", services.long_pause, 1),
    Blow("replace-executor", services.replace_executor, 6, quick=True),
    Blow("rolling-restart", services.rolling_restart, 1),
    Blow("scale-up", services.scale_up, 2),
    Blow("scale-down", services.scale_down, 2, quick=True),
    Blow("cut", broker.cut, 4, quick=True),
    Blow("cut-one", broker.cut_one, 4, quick=True),
    Blow("network-pause", broker.network_pause, 4, quick=True),
    Blow("half-open", broker.half_open, 4, quick=True),
    Blow("half-open-long", broker.half_open_long, 1),
    Blow("publishes-held", broker.publishes_held, 2),
    Blow("slow-broker", broker.slow, 2, quick=True),
    Blow("broker-app", broker.restart_app, 2, quick=True),
    Blow("broker-node", broker.kill_node, 2, quick=True),
    Blow("memory-alarm", broker.memory_alarm, 2, quick=True),
    Blow("memory-alarm-long", broker.memory_alarm_long, 1),
    Blow("disk-alarm-long", broker.disk_alarm_long, 1),
    Blow("purge-queue", broker.purge_queue, 1),
    Blow("delete-queue", broker.delete_queue, 1),
    Blow("database-killed", database.kill, 4, quick=True),
    Blow("database-restarted", database.restart, 2, quick=True),
    Blow("database-reset", database.reset, 3, quick=True),
    Blow("database-away", database.away, 1),
    Blow("database-half-open", database.half_open, 3, quick=True),
    Blow("database-half-open-long", database.half_open_long, 1),
    Blow("database-read-only", database.read_only, 2),
    Blow("statements-cancelled", database.cancel_statements, 2, quick=True),
    Blow("backends-terminated", database.terminate_backends, 2, quick=True),
    Blow("too-many-connections", database.crowd, 2),
)

BLOWS: Final[dict[str, Blow]] = {blow.name: blow for blow in _ALL}
QUICK: Final = tuple(blow for blow in _ALL if blow.quick)


def rolling_upgrade(older: Path) -> Blow:
    """The blow that needs the sources of an earlier commit."""
    return Blow("rolling-upgrade", lambda installation, _: services.rolling_upgrade(installation, older), 2)


async def strike(installation: Installation, random: Random, blows: Sequence[Blow]) -> str:
    """Strike once with one of the blows, return when it is over, and say which it was."""
    blow = random.choices(blows, weights=[each.weight for each in blows])[0]
    await blow.strike(installation, random)
    return blow.name
