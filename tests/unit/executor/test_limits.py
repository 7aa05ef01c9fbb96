"""Which limit strikes first, and how it is told."""

from executor.limits import HOLD_LIMIT_S, after_first_byte, before_first_byte, cold_budget_s, hold_s
from parallax.contracts.job import Limits

LIMITS = Limits(attempt_timeout_s=10.0, first_byte_timeout_s=2.0, batch_deadline_s=100.0)


def test_the_first_byte_has_a_stricter_limit_of_its_own() -> None:
    limit = before_first_byte(LIMITS, cold_s=0, remaining_s=90, reports_first_byte=True)
    assert (limit.name, limit.strikes_s) == ("first_byte_timeout_s", 2.0)


def test_it_does_not_apply_where_first_bytes_are_not_seen() -> None:
    limit = before_first_byte(LIMITS, cold_s=0, remaining_s=90, reports_first_byte=False)
    assert (limit.name, limit.strikes_s) == ("attempt_timeout_s", 10.0)


def test_a_cold_start_has_a_budget_of_its_own() -> None:
    before = before_first_byte(LIMITS, cold_s=60, remaining_s=90, reports_first_byte=True)
    assert before.strikes_s == 62.0
    after = after_first_byte(LIMITS, cold_s=60, first_byte_s=45.0, remaining_s=90)
    assert (after.name, after.strikes_s) == ("attempt_timeout_s", 55.0)


def test_a_warm_answer_gains_nothing_from_the_cold_budget_but_its_own_first_byte() -> None:
    after = after_first_byte(LIMITS, cold_s=60, first_byte_s=0.5, remaining_s=90)
    assert after.strikes_s == 10.5


def test_the_batch_deadline_outweighs_every_other_limit() -> None:
    assert before_first_byte(LIMITS, cold_s=60, remaining_s=1, reports_first_byte=True).name == "batch_deadline_s"
    after = after_first_byte(LIMITS, cold_s=60, first_byte_s=0.5, remaining_s=1)
    assert (after.name, after.value_s, after.strikes_s) == ("batch_deadline_s", 100.0, 1)


def test_the_message_names_limit_duration_and_cold_start() -> None:
    limit = before_first_byte(LIMITS, cold_s=60, remaining_s=90, reports_first_byte=False)
    assert limit.message(70.01) == "attempt_timeout_s of 10 s on top of 60 s for a cold start struck after 70.010 s"


def test_an_attempt_with_its_cold_start_fits_into_one_holding() -> None:
    longest = Limits(attempt_timeout_s=1200.0)
    cold_s = cold_budget_s(longest, 1200.0, warm=False)
    assert longest.attempt_timeout_s + cold_s <= HOLD_LIMIT_S
    assert cold_budget_s(longest, 1200.0, warm=True) == 0
    assert hold_s(longest, 1200.0) + longest.attempt_timeout_s <= HOLD_LIMIT_S
