"""Whether a running service can do its work: named probes, asked by ``/readyz`` and by the watchdog."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Health:
    """The probes of one service. A service is ready when every probe says true."""

    probes: dict[str, Callable[[], Awaitable[bool]]] = field(default_factory=dict)

    async def check(self) -> dict[str, bool]:
        """The answer of every probe; one that raises counts as false."""
        answers: dict[str, bool] = {}
        for name, probe in self.probes.items():
            try:
                answers[name] = await probe()
            except Exception:  # noqa: BLE001 - whatever goes wrong in a probe, the service is not ready
                answers[name] = False
        return answers
