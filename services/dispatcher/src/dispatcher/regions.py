"""Where the tasks of a region wait."""

from collections.abc import Iterable

from parallax.bus.port import Bus
from parallax.contracts.routing import Queue, executions


def region_queues(region: str, models: Iterable[str]) -> tuple[Queue, ...]:
    """Every queue in which tasks of a region wait; ``models`` are those that the catalog has there."""
    del models  # one queue for all of them
    return (executions(region),)


async def waiting_tasks(bus: Bus, region: str, models: Iterable[str]) -> int:
    """How many tasks wait in a region.

    Raises:
        UnavailableError: The bus is away.
    """
    return sum([await bus.depth(queue) for queue in region_queues(region, models)])
