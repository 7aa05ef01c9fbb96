"""Processes of a contender: started together, measured one by one, stopped without leaving any behind."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

STOP_GRACE_S: Final = 30.0
SAMPLE_EVERY_S: Final = 0.25
_TAIL_BYTES: Final = 2_000


class ContenderFailedError(Exception):
    """A process of a contender ended, or did not become ready; the tail of its log is in the message."""


@dataclass(slots=True)
class Service:
    """One service of a contender: a process with all its children, found by the pid of the first."""

    name: str
    pid: int
    log: Path | None = None
    popen: "subprocess.Popen[bytes] | None" = None
    peak_mb: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)
    """(executions recorded so far, megabytes), filled by a soak."""

    def cpu_s(self) -> float:
        """CPU seconds so far, of children that ended too."""
        return sum(sum(process.cpu_times()[:4]) for process in self._tree())

    def memory_mb(self) -> float:
        """Resident megabytes now. Of several processes each page they share is counted once (PSS, where known)."""
        tree = self._tree()
        if len(tree) == 1:
            return float(tree[0].memory_info().rss) / 2**20
        total = 0.0
        for process in tree:
            with suppress(psutil.Error):
                info = process.memory_full_info()
                total += float(getattr(info, "pss", info.rss)) / 2**20
        return total

    def check(self) -> None:
        """See that it still runs.

        Raises:
            ContenderFailedError: It does not.
        """
        if self.popen is not None and self.popen.poll() is not None:
            raise ContenderFailedError(f"{self.name} ended with code {self.popen.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        if self.log is None:
            return ""
        return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def started(name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> Iterator[Service]:
    """Run a command as a service while the block runs; its output goes to ``folder/name.log``."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
        )
    try:
        yield Service(name, popen.pid, log, popen)
    finally:
        stop(popen)


def stop(popen: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end, insist after a while, and leave none of its children."""
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(popen.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        popen.send_signal(signal.SIGTERM)
    try:
        popen.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


@asynccontextmanager
async def watched(services: Sequence[Service]) -> AsyncIterator[None]:
    """Keep each service's peak memory while the block runs."""

    async def sample() -> None:
        while True:
            for service in services:
                service.peak_mb = max(service.peak_mb, service.memory_mb())
            await asyncio.sleep(SAMPLE_EVERY_S)

    sampling = asyncio.create_task(sample())
    try:
        yield
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
