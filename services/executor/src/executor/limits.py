"""What bounds one attempt in time: which limit strikes first, before and after the first byte. Pure."""

from dataclasses import dataclass
from typing import Final

from executor.error_codes import ErrorCode
from parallax.contracts.job import Limits

HOLD_LIMIT_S: Final = 1_680.0
"""No delivery is held longer: RabbitMQ closes the channel after 30 minutes, and two minutes are kept in reserve."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit and when it strikes, counted from the start of the attempt."""

    name: ErrorCode
    """Also the code of the error when it strikes."""
    value_s: float
    """As configured."""
    strikes_s: float
    cold_s: float = 0.0
    """How much of ``strikes_s`` was granted for a cold start."""

    def message(self, elapsed_s: float) -> str:
        """For people: which limit struck, and after how long."""
        cold = f" on top of {self.cold_s:g} s for a cold start" if self.cold_s else ""
        return f"{self.name} of {self.value_s:g} s{cold} struck after {elapsed_s:.3f} s"


def cold_budget_s(limits: Limits, cold_start_s: float, *, warm: bool) -> float:
    """Extra time to the first byte; bounded so that a cold attempt still fits into one holding of its delivery."""
    if warm:
        return 0.0
    return max(0.0, min(cold_start_s, HOLD_LIMIT_S - limits.attempt_timeout_s))


def before_first_byte(limits: Limits, *, cold_s: float, remaining_s: float, reports_first_byte: bool) -> Limit:
    """The limit that strikes first while nothing has arrived."""
    candidates = [Limit(ErrorCode.ATTEMPT_TIMEOUT, limits.attempt_timeout_s, limits.attempt_timeout_s + cold_s, cold_s)]
    if limits.first_byte_timeout_s is not None and reports_first_byte:
        first = limits.first_byte_timeout_s
        candidates.insert(0, Limit(ErrorCode.FIRST_BYTE_TIMEOUT, first, first + cold_s, cold_s))
    return _earliest(candidates, limits, remaining_s)


def after_first_byte(limits: Limits, *, cold_s: float, first_byte_s: float, remaining_s: float) -> Limit:
    """The limit that strikes first once the answer has begun: a cold start takes nothing from the attempt's own time.

    ``remaining_s`` is counted from the start of the attempt, as for ``before_first_byte``.
    """
    granted = min(first_byte_s, cold_s)
    attempt = Limit(ErrorCode.ATTEMPT_TIMEOUT, limits.attempt_timeout_s, limits.attempt_timeout_s + granted, granted)
    return _earliest([attempt], limits, remaining_s)


def hold_s(limits: Limits, hand_back_after_s: float) -> float:
    """How long a task may wait here, so that an attempt started at the end of the wait still fits."""
    return max(0.0, min(hand_back_after_s, HOLD_LIMIT_S - limits.attempt_timeout_s))


def _earliest(candidates: list[Limit], limits: Limits, remaining_s: float) -> Limit:
    deadline = Limit(ErrorCode.BATCH_DEADLINE, limits.batch_deadline_s, remaining_s)
    return min([*candidates, deadline], key=lambda limit: limit.strikes_s)
