"""Whether a running service can do its work: named probes, asked by ``/readyz`` and by the watchdog.

What a probe asks may say nothing at all, and then even giving up on it can hang: a database driver, when it is
cancelled, waits for an answer of its own. So each probe runs as a task of its own, and is judged without waiting for
it: no answer in time is the answer no.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec

from parallax.clock import Clock
from parallax.errors import UnavailableError

PROBE_LIMIT_S: Final = 5.0
"""Longest wait for the answers of all probes together: two rounds fit into the 15 s in which silence must show."""
STALLED_S: Final = 10.0
"""Work that waits for a server for so long makes the service unready; a restarted server is back within seconds."""

FORGOTTEN_S: Final = 30.0
"""A handler that is refused tries again after 5 s at most, and a try takes 12 s: after this long nothing waits here."""

Probe = Callable[[], Awaitable[bool]]
Arguments = ParamSpec("Arguments")


@dataclass(slots=True)
class Health:
    """The probes of one service. A service is ready when every probe says true."""

    probes: dict[str, Probe] = field(default_factory=dict)
    advisory: frozenset[str] = frozenset()
    """Probes that no restart can help: they report that a server answers, and refuses.

    They make the service unready and no more. Restarted again and again, it would take its messages again each
    time, until the bus gave up on them.
    """
    limit_s: float = PROBE_LIMIT_S
    _asked: dict[str, asyncio.Task[bool]] = field(default_factory=dict)

    async def check(self) -> dict[str, bool]:
        """The answer of every probe within ``limit_s``; one that raises or does not answer counts as false."""
        tasks = {name: self._ask(name, probe) for name, probe in self.probes.items()}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self.limit_s)
        return {name: _is_true(task) for name, task in tasks.items()}

    def lost(self, answers: Mapping[str, bool]) -> list[str]:
        """The probes among failed ones that a restart may help."""
        return [name for name, answer in answers.items() if not answer and name not in self.advisory]

    def _ask(self, name: str, probe: Probe) -> asyncio.Task[bool]:
        """The question that is still open, or a new one: a server that is silent is not asked twice at once."""
        asked = self._asked.get(name)
        if asked is None or asked.done():
            asked = self._asked[name] = asyncio.create_task(_answer(probe), name=f"probe {name}")
        return asked


async def _answer(probe: Probe) -> bool:
    try:
        return await probe()
    except Exception:  # noqa: BLE001 - whatever goes wrong in a probe, the service is not ready
        return False


def _is_true(task: asyncio.Task[bool]) -> bool:
    return task.done() and not task.cancelled() and task.result()


class Refusals:
    """Notices a handler that a server has refused for too long; one success ends it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first_s: float | None = None
        self._last_s = 0.0

    def watch(
        self, handler: Callable[Arguments, Coroutine[Any, Any, None]]
    ) -> Callable[Arguments, Coroutine[Any, Any, None]]:
        """The same handler, watched."""

        async def watched(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            try:
                await handler(*args, **kwargs)
            except UnavailableError:
                self._refused()
                raise
            self._first_s = None

        return watched

    def _refused(self) -> None:
        now_s = self._clock.monotonic()
        if self._first_s is None or now_s - self._last_s > FORGOTTEN_S:
            self._first_s = now_s
        self._last_s = now_s

    async def none(self) -> bool:
        """A probe: false while every try has been refused for ``STALLED_S`` or longer."""
        if self._first_s is None or self._clock.monotonic() - self._last_s > FORGOTTEN_S:
            return True
        return self._last_s - self._first_s < STALLED_S
