"""Whether a failed attempt is followed by another one, and when: pure, so that every case is a line in a test."""

from dataclasses import dataclass

from parallax.contracts.outcomes import ErrorInfo


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015)."""

    base_s: float
    cap_s: float

    def ceiling_s(self, failures: int) -> float:
        """The longest wait after so many failures."""
        doublings = min(max(failures - 1, 0), 32)
        return min(self.cap_s, self.base_s * 2.0**doublings)


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Wait so long and try again, or give up when ``delay_s`` is ``None``."""

    delay_s: float | None
    reason: str


def decide(
    policy: RetryPolicy,
    error: ErrorInfo,
    *,
    burned: int,
    max_attempts: int,
    remaining_s: float,
    retry_after_s: float | None,
    draw: float,
) -> RetryDecision:
    """What to do after an attempt failed.

    Args:
        policy: How long to wait.
        error: What the attempt ended with.
        burned: Attempts used up, this one included.
        max_attempts: As many may be used up.
        remaining_s: Until the batch's deadline.
        retry_after_s: What the endpoint asked for; a lower bound on the wait.
        draw: Uniform in [0, 1): the jitter.
    """
    if not error.retryable:
        return RetryDecision(None, "the error is permanent")
    if burned >= max_attempts:
        return RetryDecision(None, f"all {max_attempts} attempts were used")
    delay_s = max(draw * policy.ceiling_s(burned), retry_after_s or 0.0)
    if delay_s >= remaining_s:
        return RetryDecision(None, "the batch's deadline comes before the next attempt")
    return RetryDecision(delay_s, "transient")
