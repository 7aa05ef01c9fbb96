"""Child processes that end with us, whatever ends us."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from parallax.errors import UnavailableError

STOP_GRACE_S: Final = 40.0
"""A service drains for up to 30 s by itself; then its group is killed."""
_WATCHDOG: Final = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    sign, group = line[0], int(line[1:])
    groups.add(group) if sign == "+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
"""Learns process groups on its input, and kills them when that ends, which it does when we are killed."""


class Children:
    """Process groups that a watchdog kills if this process dies without stopping them."""

    def __init__(self) -> None:
        self._watchdog = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", _WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def spawn(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, its output appended to a log file."""
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 - our own commands
                list(command),
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._tell("+", child.pid)
        return child

    async def stop(self, child: subprocess.Popen[bytes], grace_s: float = STOP_GRACE_S) -> None:
        """Ask a child to stop, and kill its group after ``grace_s``."""
        if child.poll() is None:
            child.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(child.wait, grace_s)
        self.kill(child)

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        """Kill a child's whole group at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self._tell("-", child.pid)

    def close(self) -> None:
        """End the watchdog; children still running are killed by it."""
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def _tell(self, sign: str, group: int) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{sign}{group}\n")
        self._watchdog.stdin.flush()


def free_port(preferred: int = 0) -> int:
    """A port of loopback that nobody listens on: the preferred one if it is free."""
    return free_ports(1, preferred=preferred)[0]


def free_ports(count: int, *, preferred: int = 0) -> list[int]:
    """Different ports of loopback that nobody listens on; the first is the preferred one if that is free."""
    with ExitStack() as stack:
        return [_bound(stack, preferred if number == 0 else 0) for number in range(count)]


def answers(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def wait_for_port(port: int, child: subprocess.Popen[bytes], *, what: str, log: Path, timeout_s: float) -> None:
    """Wait until a child listens on a port of loopback.

    Raises:
        UnavailableError: It ended, or did not listen in time; the message names its log.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while loop.time() < until:
        if child.poll() is not None:
            raise UnavailableError(f"{what} ended with {child.returncode} while it started; see {log}")
        if answers(port):
            return
        await asyncio.sleep(0.05)
    raise UnavailableError(f"{what} does not answer on port {port} after {timeout_s:g} s; see {log}")


def _bound(stack: ExitStack, preferred: int) -> int:
    """A free port that stays taken until the stack unwinds."""
    for port in dict.fromkeys((preferred, 0)):
        holder = stack.enter_context(socket.socket())
        if port:  # whoever used it last may have left connections that still fade out
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            holder.bind(("127.0.0.1", port))
            return int(holder.getsockname()[1])
    raise UnavailableError("no port of 127.0.0.1 is free")
