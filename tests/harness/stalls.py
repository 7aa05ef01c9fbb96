"""How long an event loop stood still, and how much memory a process and its workers took."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psutil

from parallax.process import settle

TICK_S: Final = 0.005
SAMPLE_S: Final = 0.01


@dataclass(slots=True)
class Strain:
    """What happened to the process while something was measured."""

    stall_s: float = 0.0
    """The longest time between two ticks; grows on a machine that is busy with something else."""
    busy_s: float = 0.0
    """The most processor time that this process used between two ticks, whatever else the machine does."""
    grown_bytes: int = 0
    """This process above where it began."""
    worker_bytes: int = 0
    """The largest of its children."""

    @property
    def memory_bytes(self) -> int:
        """Process and worker together, as if both peaks came at once."""
        return self.grown_bytes + self.worker_bytes


@asynccontextmanager
async def measured() -> AsyncIterator[Strain]:
    """Measure until the block ends."""
    settle()  # as services do: a collection of all that the tests have loaded would be a stall of its own
    strain, over = Strain(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(strain, over), name="memory watcher")
    watcher.start()
    ticking = asyncio.create_task(_tick(strain))
    try:
        yield strain
    finally:
        ticking.cancel()
        over.set()
        watcher.join()
        gc.unfreeze()


async def _tick(strain: Strain) -> None:
    wall, busy = time.perf_counter(), time.process_time()
    while True:
        await asyncio.sleep(TICK_S)
        wall_now, busy_now = time.perf_counter(), time.process_time()
        strain.stall_s = max(strain.stall_s, wall_now - wall - TICK_S)
        strain.busy_s = max(strain.busy_s, busy_now - busy)
        wall, busy = wall_now, busy_now


def _watch(strain: Strain, over: threading.Event) -> None:
    process = psutil.Process()
    began = process.memory_info().rss
    while not over.wait(SAMPLE_S):
        strain.grown_bytes = max(strain.grown_bytes, process.memory_info().rss - began)
        with suppress(psutil.Error):  # one that ends while it is looked at
            for child in process.children():
                if "parallax.worker" in child.cmdline():
                    strain.worker_bytes = max(strain.worker_bytes, child.memory_info().rss)
