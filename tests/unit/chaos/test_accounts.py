"""What the accounts of a run call a fault."""

from collections import Counter
from uuid import uuid4

import pytest

from tests.harness.accounts import CANCEL_SLACK_S, Balance, started_late, story
from tests.harness.duplicates import Disturbance, ModelCall, duplicates
from tests.harness.witness import contradictions

END_S = 1_000.0


def call(at: float, executor: str = "executor-us-0.1") -> ModelCall:
    return ModelCall(region="us", execution_id=uuid4(), executor=executor, attempt=1, received_at=at)


def paused(began_at: float, ended_at: float, replica: str = "executor-us-0") -> Disturbance:
    return Disturbance("paused", began_at, ended_at, frozenset({replica}))


def test_an_executor_has_some_time_to_hear_of_a_cancellation() -> None:
    assert not started_late(call(END_S + CANCEL_SLACK_S - 1), END_S, [])
    assert started_late(call(END_S + CANCEL_SLACK_S + 1), END_S, [])


def test_that_time_begins_when_the_executor_is_left_alone() -> None:
    at = END_S + 60
    assert not started_late(call(at), END_S, [paused(END_S - 5, at - 1)])
    assert started_late(call(at), END_S, [paused(END_S - 5, at - CANCEL_SLACK_S - 1)])
    assert started_late(call(at), END_S, [paused(END_S - 5, at - 1, "executor-us-1")]), "it happened to another"
    assert started_late(call(at), END_S, [paused(END_S - 50, END_S - 40)]), "it was over before the end"


@pytest.mark.parametrize(
    ("outcomes", "cancelled", "shown"),
    [
        (["completed", "cancelled"], False, ["cancelled"]),
        (["completed"], True, ["completed"]),
        (["cancelled"], True, ["cancelled", "completed"]),
        (["failed"], False, ["completed"]),
    ],
)
def test_users_are_not_told_what_cannot_all_be_true(outcomes: list[str], cancelled: bool, shown: list[str]) -> None:
    assert contradictions([{"outcome": each} for each in outcomes], cancelled, shown)


def test_one_end_that_is_announced_and_shown_is_no_contradiction() -> None:
    assert contradictions([{"outcome": "cancelled"}], True, ["cancelled"]) == []
    assert contradictions([{"outcome": "completed"}], False, ["completed"]) == []
    assert contradictions([], False, ["completed"]) == [], "the announcement may be lost with the broker's disk"
    assert contradictions([{"outcome": "completed", "n": 1}, {"outcome": "completed", "n": 2}], False, ["completed"])


def test_every_list_of_a_balance_counts_as_a_fault() -> None:
    """A list that is filled but not judged would be a report that nobody reads."""
    balance = Balance(1, 1, 1, 0, 0.0, Counter(), [])
    judged = [name for name, value in vars_of(balance).items() if isinstance(value, list) and name != "exits"]
    for name in judged:
        setattr(balance, name, ["something"])
    assert sum(balance.faults.values()) == len(judged)


def vars_of(balance: Balance) -> dict[str, object]:
    return {name: getattr(balance, name) for name in Balance.__slots__}


def test_an_unexplained_duplicate_is_told_with_what_happened_around_it() -> None:
    first = call(END_S)
    again = ModelCall(
        region="us", execution_id=first.execution_id, executor="executor-us-1.2", attempt=1, received_at=END_S + 5
    )
    around, before = paused(END_S + 1, END_S + 3, "executor-us-1"), paused(END_S - 90, END_S - 80)
    (duplicate,) = duplicates([first, again], [around, before], {})
    told = story(duplicate, ("job-1", "us"), ("executor-us-0.1", END_S + 1), [around, before], END_S)
    assert "job-1" in told
    assert "called by executor-us-0.1: attempt 1 0.00 s (open)" in told
    assert "called again by executor-us-1.2: attempt 1 5.00 s" in told
    assert "recorded 1.00 s, by executor-us-0.1" in told
    assert told.count("paused") == 1
