"""Begins inspections: sees where nothing waits, and lets every executor know that it was seen."""

from collections.abc import Sequence

from dispatcher.outgoing import FencedBatch
from dispatcher.regions import waiting_tasks
from parallax.bus.port import Bus
from parallax.catalog import Catalog
from parallax.contracts.messages import InspectionFence
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger

log = get_logger(__name__)


class Fences:
    """Publishes fences; one that is lost costs a round, because no executor answers it."""

    def __init__(self, bus: Bus, catalog: Catalog) -> None:
        self._bus = bus
        self._catalog = catalog

    async def publish(self, token: str, fenced: Sequence[FencedBatch]) -> None:
        """Publish one fence for some batches, naming those of their regions whose queues are empty.

        Their state is committed already: from here on nobody publishes executions of these batches.
        """
        if not fenced:
            return
        try:
            empty = await self._empty(frozenset[str]().union(*(batch.regions for batch in fenced)))
            if empty:
                refs = tuple(batch.ref for batch in fenced)
                await self._bus.publish(InspectionFence(token=token, regions=empty, batches=refs))
        except UnavailableError as error:
            log.warning("fence_not_published", batches=len(fenced), error=str(error))

    async def _empty(self, regions: frozenset[str]) -> tuple[str, ...]:
        known = sorted(regions & self._catalog.regions.keys())
        return tuple(
            [region for region in known if await waiting_tasks(self._bus, region, self._catalog.models_in(region)) == 0]
        )
