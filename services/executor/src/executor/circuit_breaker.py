"""The circuit breaker of one model: whether calls may go to it, and when to probe one that refuses them. Pure.

States: *closed* (calls flow), *open* (no call before ``retry_at``), *half-open* (one probe is under way; its answer
closes the breaker, its refusal opens it for longer). A breaker that has just closed starts slowly: as many calls at
once as ``pace`` says, one more after each answer, until the budget is reached again. The same pace bounds a model
whose calls keep failing without being refused (errors 5xx, broken connections, timeouts).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from executor.retry import RetryPolicy

EndpointState = Literal["ready", "throttled", "unavailable"]

WARM_FOR_S: Final = 60.0
"""An endpoint that answered this recently is taken to be warm; providers scale down after minutes, not seconds."""

MAX_RETRY_AFTER_S: Final = 900.0
"""A longer Retry-After is probed earlier: it may be a mistake, and the batch deadline decides anyway."""

SLOW_DOWN_AFTER: Final = 5
"""Failed calls in a row, without an answer between them, after which a model is slowed down. Of a model that fails one
call in ten, five in a row are one in 100,000; one that is down shows it after a single round of a small budget."""


class BreakerState(StrEnum):
    """Whether calls flow."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to make one call; says how often the breaker had opened when it was given."""

    openings: int
    probe: bool = False


@dataclass(slots=True)
class CircuitBreaker:
    """Admits calls to one model. Times are monotonic seconds."""

    policy: RetryPolicy
    budget: int
    slowest_pace: int
    """What ``pace`` falls to for a model whose calls fail; the budget where no other model needs the slots."""
    state: BreakerState = BreakerState.CLOSED
    endpoint_state: EndpointState = "ready"
    pace: int | None = None
    """Calls allowed at once until the model has recovered; ``None`` when only the budget bounds them."""
    retry_at: float | None = None
    """When the next probe may go; ``None`` while closed."""
    in_flight: int = 0
    refusals: int = 0
    """Refused probes in a row."""
    failures: int = 0
    """Failed calls in a row."""
    openings: int = 0
    answered_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing but the budget bounds the calls."""
        return self.endpoint_state == "ready"

    def warm(self, now: float) -> bool:
        """Whether an answer came recently enough to expect no cold start."""
        return self.answered_at is not None and now - self.answered_at <= WARM_FOR_S

    def admit(self, now: float) -> Permit | None:
        """A permit for one call now, or ``None``: wait until something changes or ``retry_at`` has come."""
        if self.retry_at is not None:
            if now < self.retry_at:
                return None
            # One probe: nothing else may go before its outcome is known or it was left unanswered for too long.
            self.state = BreakerState.HALF_OPEN
            self.retry_at = now + self.policy.cap_s
            self.in_flight += 1
            return Permit(self.openings, probe=True)
        if self.pace is not None and self.in_flight >= self.pace:
            return None
        self.in_flight += 1
        return Permit(self.openings)

    def answered(self, permit: Permit, now: float) -> None:
        """The call reached the endpoint and was accepted: closes the breaker, or raises the pace."""
        self.in_flight -= 1
        self.answered_at = now
        self.failures = 0
        if permit.openings != self.openings:
            return
        self.refusals = 0
        self.retry_at = None
        self.state = BreakerState.CLOSED
        if self.pace is not None:
            self.pace += 1
            if self.pace > self.budget:
                self.pace = None
        self.endpoint_state = "ready" if self.pace is None else "throttled"

    def refused(
        self, permit: Permit, now: float, *, state: EndpointState, retry_after_s: float | None, draw: float
    ) -> None:
        """The endpoint accepts no calls: open, or stay open for longer.

        Refusals of calls admitted before the breaker last opened say nothing new, except a longer Retry-After.
        """
        self.in_flight -= 1
        wait_s = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        if permit.openings == self.openings:
            self.openings += 1
            self.refusals += 1
            # Between a half and the whole of the ceiling: probes of many executors spread, none comes at once.
            wait_s = max(wait_s, self.policy.ceiling_s(self.refusals) * (0.5 + draw / 2))
            self.pace = max(1, (self.pace if self.pace is not None else self.in_flight + 1) // 2)
            self.retry_at = now + wait_s
            self.state = BreakerState.OPEN
            self.endpoint_state = state
        elif self.retry_at is not None:
            self.retry_at = max(self.retry_at, now + wait_s)

    def failed(self, permit: Permit, now: float) -> None:
        """The call was neither answered nor refused: it broke or took too long. Many in a row slow the model down."""
        self.released(permit, now)
        self.failures += 1
        if self.failures >= SLOW_DOWN_AFTER and self.slowest_pace < self.budget:
            self.pace = min(self.slowest_pace, self.pace if self.pace is not None else self.budget)
            if self.endpoint_state == "ready":
                self.endpoint_state = "throttled"

    def released(self, permit: Permit, now: float) -> None:
        """The call ended without saying anything about the endpoint (it was aborted): a probe's place is free."""
        self.in_flight -= 1
        if permit.probe and permit.openings == self.openings and self.retry_at is not None:
            self.state = BreakerState.OPEN
            self.retry_at = now
