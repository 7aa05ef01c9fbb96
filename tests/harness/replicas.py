"""The service processes of an installation: started, hurt, and started again when they end."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from parallax_cli.children import Children, free_port
from tests.harness.duplicates import Disturbance

PATIENCE_S: Final = 240.0
"""How long an installation may take to become ready, or to end its jobs; only a failing test waits that long."""
STOP_GRACE_S: Final = 75.0
"""An executor drains for 30 s, aborts what is left for 10 s and publishes for 10 s; then it is stuck."""
NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Exit:
    """A replica that ended although nobody asked it to, or that did not end well when it was asked."""

    name: str
    code: int
    asked: bool
    """Whether it had been told to stop."""
    crashed: bool
    """Whether its log ends with a traceback."""

    def __str__(self) -> str:
        how = "when asked to stop" if self.asked else "by itself"
        return f"{self.name} ended {how} with {self.code}{', with a traceback' if self.crashed else ''}"


@dataclass(slots=True)
class _Replica:
    """How one replica is started, and its process."""

    command: tuple[str, ...]
    environment: dict[str, str]
    http_port: int
    starts: int = 0
    log_begins_at: int = 0
    """Where in its log the present process began to write."""


class Replicas:
    """Processes, one for each replica, that are started again when they end."""

    def __init__(self, children: Children, folder: Path) -> None:
        self.folder = folder
        self.restarts = 0
        self.exits: list[Exit] = []
        self.disturbances: list[Disturbance] = []
        """Everything that was done to the installation, in the order in which it ended."""
        self._children = children
        self._replicas: dict[str, _Replica] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held: set[str] = set()
        self._killed: set[int] = set()

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all replicas."""
        return tuple(self._replicas)

    @contextmanager
    def disturbed(self, cause: str, *replicas: str, disconnects: bool = False) -> Iterator[None]:
        """Note that these replicas (all, without names) are disturbed while the block runs."""
        began_at, victims = time.time(), frozenset(replicas) if replicas else None
        at = len(self.disturbances)
        self.disturbances.append(Disturbance(cause, began_at, NEVER, victims, disconnects))
        try:
            yield
        finally:
            self.disturbances[at] = Disturbance(cause, began_at, time.time(), victims, disconnects)

    def start_replica(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        """Start one more replica."""
        port = free_port()
        own = {**environment, "PARALLAX_HTTP": f"127.0.0.1:{port}"}
        self._replicas[name] = _Replica((sys.executable, "-m", module), own, port)
        self._start(name)

    def environment_of_process(self, name: str, starts: int) -> Mapping[str, str]:
        """What one process of a replica finds in its environment beside what all of them find."""
        raise NotImplementedError

    def log(self, name: str) -> Path:
        """Where a replica writes its log."""
        return self.folder / f"{name}.log"

    # --- hurting

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        process = self._processes[name]
        with self.disturbed("killed", name, disconnects=True):
            self._killed.add(process.pid)
            process.kill()
            process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP and SIGCONT pause a replica."""
        self._processes[name].send_signal(number)

    async def remove(self, name: str) -> int:
        """Ask a replica to leave, and say with which code it ended: -15 when it was too young to know the signal."""
        self._held.add(name)
        process = self._processes[name]
        with self.disturbed("told to leave", name):
            await self._children.stop(process, STOP_GRACE_S)
        if process.returncode not in (0, -signal.SIGTERM):
            self._note_exit(name, process.returncode, asked=True)
        return int(process.returncode)

    def bring_back(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a replica that was removed; from now on also with these variables."""
        self._replicas[name].environment.update(environment or {})
        self._held.discard(name)
        self._start(name)

    async def dismiss(self, name: str) -> None:
        """Remove a replica for good."""
        await self.remove(name)
        del self._replicas[name], self._processes[name]
        self._held.discard(name)

    def hold(self, name: str) -> None:
        """Do not start this replica again when it ends."""
        self._held.add(name)

    def unhold(self, name: str) -> None:
        """Start this replica again when it ends, as the others."""
        self._held.discard(name)

    async def supervise(self) -> None:
        """Start again what ended, as a container runtime does; until cancelled."""
        while True:
            for name in set(self._processes) - self._held:
                process = self._processes[name]
                if (code := process.poll()) is not None:
                    self.restarts += 1
                    if process.pid not in self._killed:
                        self._note_exit(name, code, asked=False)
                    self._start(name)
            await asyncio.sleep(0.3)

    # --- looking

    async def ready(self, names: Iterable[str] = (), *, patience_s: float = PATIENCE_S) -> None:
        """Wait until every replica (or the named ones) says that it is ready."""
        async with asyncio.timeout(patience_s), httpx.AsyncClient(timeout=2, trust_env=False) as client:
            for name in tuple(names) or self.services:
                while name not in self._held and not await self._is_ready(client, name):  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(0.1)

    def describe(self) -> str:
        """Which replicas run, and the end of each one's log: what a person needs when a test waits in vain."""
        return "\n".join(
            f"{name}: {'runs' if process.poll() is None else f'ended with {process.returncode}'}; "
            f"{self.log(name).read_bytes()[-600:].decode(errors='replace')}"
            for name, process in self._processes.items()
        )

    async def _is_ready(self, client: httpx.AsyncClient, name: str) -> bool:
        try:
            return (await client.get(f"http://127.0.0.1:{self._replicas[name].http_port}/readyz")).is_success
        except httpx.HTTPError:
            return False

    # --- processes

    def _start(self, name: str) -> None:
        replica, log = self._replicas[name], self.log(name)
        replica.log_begins_at = log.stat().st_size if log.exists() else 0
        replica.starts += 1
        own = self.environment_of_process(name, replica.starts)
        self._processes[name] = self._children.spawn(
            replica.command, environment={**replica.environment, **own}, log=log
        )

    def _note_exit(self, name: str, code: int, *, asked: bool) -> None:
        with self.log(name).open("rb") as log:
            log.seek(self._replicas[name].log_begins_at)
            crashed = any(line.startswith(b"Traceback ") for line in log)
        self.exits.append(Exit(name, code, asked, crashed))
        if code == -signal.SIGKILL:
            with self.disturbed("killed", name, disconnects=True):
                pass

    async def stop_all(self) -> None:
        """Stop every replica."""
        self._held.update(self._processes)
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
        await asyncio.gather(*(self._children.stop(process, 20) for process in self._processes.values()))
