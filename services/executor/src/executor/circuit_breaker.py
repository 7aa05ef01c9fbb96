"""The gate in front of one model of an endpoint: who may call while it refuses calls, and when to probe.

``Gate`` is pure: it is told what happens and the time, and says who may go. ``Turnstile`` lets tasks wait at it.

States: *open* (every call may go), *closed* (nobody until a moment, then a single probe), *slow* (the probe was
answered: as many calls at once as ``pace`` says, one more after each answer, until the budget is reached again).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

from executor.retry import RetryPolicy
from parallax.clock import Clock

EndpointState = Literal["ready", "throttled", "unavailable"]

WARM_FOR_S: Final = 60.0
"""An endpoint that answered this recently is taken to be warm; providers scale down after minutes, not seconds."""

MAX_RETRY_AFTER_S: Final = 900.0
"""A longer Retry-After is probed earlier: it may be a mistake, and the batch deadline decides anyway."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to make one call; says at which closing of the gate it was given."""

    closings: int
    probe: bool = False


@dataclass(slots=True)
class Gate:
    """Who may call. Times are monotonic seconds."""

    policy: RetryPolicy
    budget: int
    pace: int | None = None
    """Calls allowed at once while slow or closed; ``None`` when open."""
    opens_at: float | None = None
    """When a probe may go; ``None`` unless closed."""
    state: EndpointState = "ready"
    inside: int = 0
    refusals: int = 0
    """Refused probes in a row."""
    closings: int = 0
    answered_at: float | None = None

    def warm(self, now: float) -> bool:
        """Whether an answer came recently enough to expect no cold start."""
        return self.answered_at is not None and now - self.answered_at <= WARM_FOR_S

    def admit(self, now: float) -> Ticket | None:
        """A ticket for one call now, or ``None``: wait until something changes or ``opens_at`` has come."""
        if self.opens_at is not None:
            if now < self.opens_at:
                return None
            # One probe: nobody else may go before its outcome is known or it was left unanswered for too long.
            self.opens_at = now + self.policy.cap_s
            self.inside += 1
            return Ticket(self.closings, probe=True)
        if self.pace is not None and self.inside >= self.pace:
            return None
        self.inside += 1
        return Ticket(self.closings)

    def answered(self, ticket: Ticket, now: float) -> None:
        """The call reached the endpoint and was taken: opens a closed gate, quickens a slow one."""
        self.inside -= 1
        self.answered_at = now
        if ticket.closings != self.closings:
            return
        self.refusals = 0
        self.opens_at = None
        if self.pace is not None:
            self.pace += 1
            if self.pace > self.budget:
                self.pace = None
        self.state = "ready" if self.pace is None else "throttled"

    def refused(
        self, ticket: Ticket, now: float, *, state: EndpointState, retry_after_s: float | None, draw: float
    ) -> None:
        """The endpoint does not take calls: close, or keep closed for longer.

        Refusals of calls that went in before the gate was last closed say nothing new, save a longer Retry-After.
        """
        self.inside -= 1
        wait_s = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        if ticket.closings == self.closings:
            self.closings += 1
            self.refusals += 1
            # Between a half and the whole of the ceiling: probes of many executors spread, none comes at once.
            wait_s = max(wait_s, self.policy.ceiling_s(self.refusals) * (0.5 + draw / 2))
            self.pace = max(1, (self.pace if self.pace is not None else self.inside + 1) // 2)
            self.opens_at = now + wait_s
            self.state = state
        elif self.opens_at is not None:
            self.opens_at = max(self.opens_at, now + wait_s)

    def released(self, ticket: Ticket, now: float) -> None:
        """The call ended without saying anything about the endpoint (cancelled, failed): a probe's place is free."""
        self.inside -= 1
        if ticket.probe and ticket.closings == self.closings and self.opens_at is not None:
            self.opens_at = now


@dataclass(slots=True, eq=False)
class Turnstile:
    """Lets tasks wait at a gate, first come first served."""

    gate: Gate
    clock: Clock
    random: Random
    on_change: Callable[[EndpointState, str], None]
    """Told the new state and why."""
    _waiting: deque[asyncio.Future[Ticket]] = field(default_factory=deque)
    _alarm: asyncio.Task[None] | None = None

    async def enter(self) -> Ticket:
        """Wait for the right to call; bounded by the caller's own limits. A cancelled wait leaves nothing behind."""
        if not self._waiting and (ticket := self.gate.admit(self.clock.monotonic())) is not None:
            return ticket
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._pump()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.released(turn.result())
            raise

    def answered(self, ticket: Ticket) -> None:
        """The call was taken and answered."""
        if self.gate.state == "ready" and not self._waiting and ticket.closings == self.gate.closings:
            self.gate.answered(ticket, self.clock.monotonic())
            return
        before = self.gate.state
        self.gate.answered(ticket, self.clock.monotonic())
        self._report(before, "calls are answered again")
        self._pump()

    def refused(self, ticket: Ticket, *, state: EndpointState, retry_after_s: float | None, reason: str) -> None:
        """The endpoint does not take calls just now."""
        before = self.gate.state
        now = self.clock.monotonic()
        self.gate.refused(ticket, now, state=state, retry_after_s=retry_after_s, draw=self.random.random())
        self._report(before, reason)
        self._pump()

    def released(self, ticket: Ticket) -> None:
        """The call ended without a verdict on the endpoint."""
        self.gate.released(ticket, self.clock.monotonic())
        self._pump()

    async def close(self) -> None:
        """Stop the alarm; nobody waits any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            await asyncio.gather(self._alarm, return_exceptions=True)

    def _report(self, before: EndpointState, reason: str) -> None:
        if self.gate.state != before:
            self.on_change(self.gate.state, reason)

    def _pump(self) -> None:
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()  # its task was cancelled while it waited
            elif (ticket := self.gate.admit(self.clock.monotonic())) is not None:
                self._waiting.popleft().set_result(ticket)
            else:
                break
        if self._waiting and self.gate.opens_at is not None and (self._alarm is None or self._alarm.done()):
            self._alarm = asyncio.create_task(self._ring(), name="gate alarm")

    async def _ring(self) -> None:
        while self._waiting and self.gate.opens_at is not None:
            await self.clock.sleep(max(0.0, self.gate.opens_at - self.clock.monotonic()))
            self._pump()
