"""Who calls next: the slots of one executor, shared by the circuit breakers of its models.

A call needs a permit of its model's breaker and a slot, and gets both in the same moment: what waits for a breaker
holds no slot, and what waits for a slot holds no permit. A free slot goes to the models that have waiting tasks in
turn, and within a model to the task that came first.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from executor.circuit_breaker import CircuitBreaker, EndpointState, Permit
from parallax.clock import Clock


@dataclass(slots=True, eq=False)
class Slots:
    """Calls that may still start."""

    free: int
    _turns: deque["BreakerQueue"] = field(default_factory=deque)
    """Queues with waiting tasks, in the order in which they get the next slots."""

    def enlist(self, queue: "BreakerQueue") -> None:
        """Give a queue its turns from now on, until nothing waits in it; more than once changes nothing."""
        if queue not in self._turns:
            self._turns.append(queue)

    def assign(self) -> None:
        """Give free slots to waiting tasks, one model after the other."""
        passed_over = 0
        while self.free and passed_over < len(self._turns):
            queue = self._turns.popleft()
            admitted = queue.admit_next()
            if queue.waiting:
                self._turns.append(queue)
                passed_over = 0 if admitted else passed_over + 1


@dataclass(slots=True, eq=False)
class _Waiter:
    turn: asyncio.Future[Permit | None]
    may_wait: bool


@dataclass(slots=True, eq=False)
class BreakerQueue:
    """Tasks of one model that wait for its circuit breaker and for a slot, first come first served."""

    breaker: CircuitBreaker
    slots: Slots
    clock: Clock
    random: Random
    on_change: Callable[[EndpointState, str], None]
    """Receives the new state and its reason."""
    trouble: str | None = None
    """Why the model is not healthy; ``None`` when it is."""
    _reported: EndpointState = "ready"
    _waiting: deque[_Waiter] = field(default_factory=deque)
    _alarm: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> bool:
        """Whether any task waits."""
        return bool(self._waiting)

    async def enter(self, *, may_wait: bool) -> Permit | None:
        """Wait for a permit and a slot; bounded by the caller's own limits. A cancelled wait leaves nothing behind.

        Returns:
            The permit, which one of the methods below ends; or ``None`` for a task that may not wait for the breaker
            (``may_wait``), as soon as the model is not healthy.
        """
        if not may_wait and not self.breaker.healthy:
            return None
        if not self._waiting and (permit := self._admit()) is not None:
            return permit
        waiter = _Waiter(asyncio.get_running_loop().create_future(), may_wait)
        self._waiting.append(waiter)
        self.slots.enlist(self)
        self.slots.assign()
        self._set_alarm()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and (permit := waiter.turn.result()) is not None:
                self.released(permit)
            raise

    def admit_next(self) -> bool:
        """Admit the first waiting task, if the breaker and the slots allow it."""
        while self._waiting and self._waiting[0].turn.done():
            self._waiting.popleft()  # it was cancelled while it waited
        if not self._waiting or (permit := self._admit()) is None:
            return False
        self._waiting.popleft().turn.set_result(permit)
        self._set_alarm()
        return True

    def answered(self, permit: Permit) -> None:
        """The call was accepted and answered."""
        self.breaker.answered(permit, self.clock.monotonic())
        self._ended(None)

    def refused(self, permit: Permit, *, state: EndpointState, retry_after_s: float | None, reason: str) -> None:
        """The endpoint accepts no calls of this model at the moment."""
        now = self.clock.monotonic()
        self.breaker.refused(permit, now, state=state, retry_after_s=retry_after_s, draw=self.random.random())
        self._ended(reason)

    def failed(self, permit: Permit, reason: str) -> None:
        """The call broke or took too long."""
        self.breaker.failed(permit, self.clock.monotonic())
        self._ended(reason)

    def released(self, permit: Permit) -> None:
        """The call ended without a verdict on the endpoint."""
        self.breaker.released(permit, self.clock.monotonic())
        self._ended(None)

    async def close(self) -> None:
        """Stop the alarm; nothing waits any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            await asyncio.gather(self._alarm, return_exceptions=True)

    def _admit(self) -> Permit | None:
        if not self.slots.free or (permit := self.breaker.admit(self.clock.monotonic())) is None:
            return None
        self.slots.free -= 1
        return permit

    def _ended(self, reason: str | None) -> None:
        """A call has ended: its slot is free, and the breaker may have changed."""
        self.slots.free += 1
        state = self.breaker.endpoint_state
        self.trouble = None if self.breaker.healthy else reason or self.trouble
        if state != self._reported:
            self._reported = state
            self.on_change(state, reason or "calls are answered again")
        if not self.breaker.healthy:
            self._make_way()
        self.slots.assign()
        self._set_alarm()

    def _make_way(self) -> None:
        """Dismiss the tasks that may not wait for the breaker."""
        for waiter in self._waiting:
            if not waiter.may_wait and not waiter.turn.done():
                waiter.turn.set_result(None)
        self._waiting = deque(waiter for waiter in self._waiting if not waiter.turn.done())

    def _set_alarm(self) -> None:
        if self._retry_in_s() > 0 and (self._alarm is None or self._alarm.done()):
            self._alarm = asyncio.create_task(self._ring(), name="circuit breaker alarm")

    async def _ring(self) -> None:
        while (seconds := self._retry_in_s()) > 0:
            await self.clock.sleep(seconds)
            self.slots.assign()

    def _retry_in_s(self) -> float:
        """When waiting tasks are worth another look; 0 when nothing waits, or nothing but a slot is missing."""
        if not self._waiting or self.breaker.retry_at is None:
            return 0.0
        return max(0.0, self.breaker.retry_at - self.clock.monotonic())
