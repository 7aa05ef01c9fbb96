"""Signs of life: what this executor holds and how its endpoint is."""

import asyncio
from datetime import datetime
from typing import Final

from executor.runner import Runner
from executor.settings import Settings
from parallax.bus.port import Bus
from parallax.clock import Clock
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.errors import ParallaxError
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

SETTLE_S: Final = 0.2
"""Between reading a fence and answering it: a task that was delivered before it has arrived by then."""


class Heartbeat:
    """Publishes the state of one runner, regularly and once more when it leaves."""

    def __init__(self, bus: Bus, runner: Runner, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._runner = runner
        self._clock = clock
        self._settings = settings
        self._started_at: datetime = clock.now()

    async def introduce(self) -> None:
        """Send the first one, before any task is taken: nobody may hold work whom results has not heard of.

        Raises:
            UnavailableError: The bus cannot be reached.
        """
        await self._bus.publish(self._now(leaving=False))

    async def run(self) -> None:
        """Send for ever, and soon after a fence was read; one that cannot be sent is skipped, the next says it all."""
        while True:
            await self.send()
            await self._pause()

    async def _pause(self) -> None:
        waits = [
            asyncio.ensure_future(self._clock.sleep(self._settings.heartbeat_s)),
            asyncio.ensure_future(self._runner.fence_read.wait()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
        if self._runner.fence_read.is_set():
            self._runner.fence_read.clear()
            await self._clock.sleep(SETTLE_S)

    async def send(self, *, leaving: bool = False) -> None:
        """Send one; the last one says that this executor leaves and holds nothing any more."""
        try:
            await self._bus.publish(self._now(leaving=leaving))
        except ParallaxError as error:
            log.warning("heartbeat not sent", error=str(error)[:500])

    def _now(self, *, leaving: bool) -> ExecutorHeartbeat:
        last_error = self._runner.last_error
        return ExecutorHeartbeat(
            executor_id=self._settings.executor_id,
            region=self._settings.region,
            budget=self._settings.budget,
            running=self._runner.running(),
            models=self._runner.models,
            endpoint_state=self._runner.endpoint_state,
            last_error=storable(last_error)[:2000] if last_error else None,
            started_at=self._started_at,
            sent_at=self._clock.now(),
            stopping=leaving,
            fences=self._runner.fences(),
        )
