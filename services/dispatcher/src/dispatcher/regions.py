"""How many tasks of a region wait."""

from collections.abc import Iterable

from parallax.bus.port import Bus
from parallax.contracts.routing import region_queues


async def waiting_tasks(bus: Bus, region: str, models: Iterable[str]) -> int:
    """How many tasks wait in the queues of a region; ``models`` are those that the catalog has there.

    Executors move tasks from the region's own queue to those of the models, which therefore are counted last.

    Raises:
        UnavailableError: The bus is away.
    """
    return sum([await bus.depth(queue) for queue in region_queues(region, models)])
