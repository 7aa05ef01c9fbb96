"""What can be set about a dispatcher."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.pace import Pace
from parallax.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one dispatcher. Replicas of one installation should agree on them."""

    max_active_jobs: int = 64
    """More jobs wait as ``queued``, in the order of their acceptance."""
    reconcile_after_s: float = 60.0
    """How long a batch may be silent before results is asked about it; long against a usual call, since asking
    early only costs messages, but short against the patience of people."""
    timer_s: float = 1.0
    """Between two looks at deadlines, silent batches and waiting jobs."""
    prefetch: int = 8
    """Messages of one queue handled at once; four times as many of the queue whose messages are written together.
    Each group holds a database connection for a moment; a pool about as large as this serves best."""
    grace_s: float = 10.0
    """How long handlers may finish when the dispatcher stops."""
    tombstones_kept_s: float = 30 * 86_400.0
    """How long a cancellation waits for a job that has not arrived; the longest time a job may run."""
    pace: Pace = field(default_factory=Pace)
    """How fast batches are published."""
    resume_on_start: bool = False
    """Whether the bus is known to be empty at the start, as in standalone: every open batch is asked about at once
    and the newest announcements are made again."""


def from_environment(env: Mapping[str, str]) -> Settings:
    """The settings that the environment asks for, and the default of every other one.

    Raises:
        InvalidInputError: A value is not a positive number; names every such variable.
    """
    given, default = _Numbers(env), Settings()
    settings = Settings(
        max_active_jobs=given.whole("PARALLAX_MAX_ACTIVE_JOBS", default.max_active_jobs),
        reconcile_after_s=given.number("PARALLAX_RECONCILE_AFTER_S", default.reconcile_after_s),
        timer_s=given.number("PARALLAX_TIMER_S", default.timer_s),
        prefetch=given.whole("PARALLAX_PREFETCH", default.prefetch),
        grace_s=given.number("PARALLAX_GRACE_S", default.grace_s),
        tombstones_kept_s=given.number("PARALLAX_TOMBSTONES_KEPT_S", default.tombstones_kept_s),
    )
    if given.problems:
        raise InvalidInputError("\n".join(given.problems))
    return settings


class _Numbers:
    """Positive numbers in an environment; remembers what was wrong."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def number(self, variable: str, default: float) -> float:
        try:
            value = float(self._env.get(variable, default))
        except ValueError:
            value = 0.0
        if 0 < value < float("inf"):
            return value
        self.problems.append(f"{variable}: {self._env[variable]!r} is not valid; expected a number above 0")
        return default

    def whole(self, variable: str, default: int) -> int:
        try:
            value = int(self._env.get(variable, default))
        except ValueError:
            value = 0
        if value > 0:
            return value
        self.problems.append(f"{variable}: {self._env[variable]!r} is not valid; expected a whole number above 0")
        return default
