"""When a failed attempt is followed by another one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.retry import RetryDecision, RetryPolicy, decide
from parallax.contracts.outcomes import ErrorInfo

POLICY = RetryPolicy(base_s=0.5, cap_s=30.0)
TRANSIENT = ErrorInfo(error_class="server", code="http_500", message="oops", retryable=True)
PERMANENT = ErrorInfo(error_class="rejected", code="http_400", message="no", retryable=False)


def decision(
    error: ErrorInfo = TRANSIENT,
    *,
    burned: int = 1,
    max_attempts: int = 3,
    remaining_s: float = 1000.0,
    retry_after_s: float | None = None,
    draw: float = 0.5,
) -> RetryDecision:
    return decide(
        POLICY,
        error,
        burned=burned,
        max_attempts=max_attempts,
        remaining_s=remaining_s,
        retry_after_s=retry_after_s,
        draw=draw,
    )


def test_a_permanent_error_ends_at_once() -> None:
    assert decision(PERMANENT).delay_s is None


def test_the_last_attempt_ends() -> None:
    assert decision(burned=2).delay_s is not None
    assert decision(burned=3).delay_s is None


@pytest.mark.parametrize(("burned", "ceiling_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (1000, 30.0)])
def test_the_ceiling_doubles_up_to_the_cap(burned: int, ceiling_s: float) -> None:
    assert POLICY.ceiling_s(burned) == ceiling_s
    assert decision(burned=burned, max_attempts=2000, draw=0.0).delay_s == 0.0
    assert decision(burned=burned, max_attempts=2000, draw=0.5).delay_s == ceiling_s / 2


def test_retry_after_is_a_lower_bound() -> None:
    assert decision(retry_after_s=7.0).delay_s == 7.0
    assert decision(retry_after_s=0.01).delay_s == 0.25


def test_no_wait_reaches_beyond_the_deadline() -> None:
    assert decision(retry_after_s=10.0, remaining_s=9.0).delay_s is None
    assert decision(remaining_s=0.2, draw=0.9).delay_s is None


@given(
    burned=st.integers(1, 20),
    max_attempts=st.integers(1, 10),
    remaining_s=st.floats(0, 1e6),
    retry_after_s=st.none() | st.floats(0, 1e6),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_retry_is_always_within_attempts_deadline_and_cap(
    burned: int, max_attempts: int, remaining_s: float, retry_after_s: float | None, draw: float
) -> None:
    delay_s = decision(
        burned=burned, max_attempts=max_attempts, remaining_s=remaining_s, retry_after_s=retry_after_s, draw=draw
    ).delay_s
    if delay_s is not None:
        assert burned < max_attempts
        assert 0 <= delay_s < remaining_s
        assert delay_s <= max(POLICY.cap_s, retry_after_s or 0)
