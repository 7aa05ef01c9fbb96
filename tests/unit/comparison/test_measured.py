"""On answers of a real model with known truth: false alarms, power, and whether the power statements hold.

Short forms of ``make bench-compare``; the bounds leave room for the luck of so few jobs, not for another method.
"""

import math

import pytest

from results.comparison.power import TYPICAL_SPREAD, planned, samples_needed
from tests.benchmarks.comparison.measuring import measured, most_false_alarms
from tests.benchmarks.comparison.scenarios import (
    Plan,
    Scenario,
    compared,
    cut,
    nothing,
    pools,
    refused,
    region,
    sparse,
    temperature,
)

REPEATS = 400
JOBS = 30


def test_false_alarms_stay_within_the_error_of_five_percent() -> None:
    found = measured(nothing, REPEATS, Plan())
    assert found.differs <= most_false_alarms(REPEATS) == 29
    assert found.differs >= 6, "a test that never warns has no power either"
    assert abs(found.separation) < 0.003, "a repeat has no separation, in the mean"
    assert found.questions < 0.01


@pytest.mark.parametrize(
    ("scenario", "least", "most"),
    [
        (region, 0.5, 1.0),
        (refused, 0.5, 1.0),
        (cut, 0.85, 1.0),
        (temperature, 0.85, 1.0),
        (sparse, 0.05, 1.0),
    ],
)
def test_what_is_there_is_found(scenario: Scenario, least: float, most: float) -> None:
    found = measured(scenario, JOBS, Plan())
    assert least <= found.share <= most


def test_more_samples_find_more() -> None:
    few, many = (measured(region, JOBS, Plan(samples)) for samples in (5, 18))
    assert few.share < many.share
    assert few.visible > 2 * many.visible, "what would be found falls like one over the samples"


def test_the_power_of_a_plan_is_that_of_the_data() -> None:
    for samples in (5, 10):
        told = planned(samples, 8, 1, shared_seeds=False).separation
        seen = measured(nothing, 10, Plan(samples)).visible
        assert math.isclose(told, seen, rel_tol=0.25), (samples, told, seen)
    assert planned(10, 8, 1, shared_seeds=False).separation == TYPICAL_SPREAD / (10 * math.sqrt(8))


def test_plans_that_cannot_tell_say_so() -> None:
    assert planned(1, 8, 3, shared_seeds=False).testable is False
    assert planned(1, 8, 3, shared_seeds=False).separation == 1.0
    assert planned(2, 8, 3, shared_seeds=False).testable
    assert planned(5, 8, 1, shared_seeds=False).single_questions is False
    assert planned(6, 8, 1, shared_seeds=False).single_questions
    assert planned(8, 8, 1, shared_seeds=True).single_questions is False
    assert 0.03 < planned(10, 20, 3, shared_seeds=False).refusals < 0.04
    assert (samples_needed(0.05), samples_needed(0.05, 8), samples_needed(0.05, 1, shared_seeds=True)) == (4, 2, 6)


def test_the_shipped_answers_are_those_of_three_conditions() -> None:
    assert {name: {len(some) for some in pool.values()} for name, pool in pools().items()} == {
        "us": {60}, "in": {40}, "us-cool": {40},
    }  # fmt: skip
    assert compared(nothing, 1, Plan()) == compared(nothing, 1, Plan())
