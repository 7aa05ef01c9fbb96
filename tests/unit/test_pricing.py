"""What jobs cost at the catalog's prices, by hand."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.catalog import Catalog
from parallax.contracts.job import JobSpec
from parallax.pricing import Use, cost_of, estimate_job

PRICES = {"as_of": "2026-11-01", "currency": "EUR", "gpu_second": {"L4": 0.5}}


def catalog(**changes: Any) -> Catalog:
    """Two regions and a model at half a euro a second, four calls at once; with something changed."""
    options = {"gpu": "L4", "max_inputs": 4, "max_containers": 2, "scaledown_window_s": 60}
    document = {
        "regions": {
            "us": {"name": "US", "endpoint": "modal://a/I", "cold_start_s": 30},
            "eu": {"name": "EU", "endpoint": "modal://b/I", "cold_start_s": 30, "price_multiplier": 1.5},
        },
        "models": {
            "priced": {"upstream": "a/a", "regions": ["us", "eu"], "modal": options},
            "free": {"upstream": "b/b", "regions": ["us"]},
        },
        "prices": PRICES,
        **changes,
    }
    return Catalog.model_validate(document, strict=False)


def job(**changes: Any) -> JobSpec:
    """Ten questions to the priced model in both regions, with something changed."""
    document = {
        "name": "job",
        "questions": [{"id": f"q{number}", "text": "?"} for number in range(10)],
        "models": [{"id": "priced"}],
        "regions": ["us", "eu"],
        **changes,
    }
    return JobSpec.model_validate(document, strict=False)


def test_a_call_costs_its_share_of_a_container_at_the_price_of_its_region() -> None:
    cost = cost_of(catalog(), [Use("priced", "us", 8.0), Use("priced", "eu", 8.0)])
    assert cost is not None
    assert cost.amount == pytest.approx(8 * 0.5 / 4 + 8 * 0.5 * 1.5 / 4)
    assert (cost.currency, cost.prices_as_of, cost.complete) == ("EUR", date(2026, 11, 1), True)


def test_what_has_no_price_is_left_out_and_said() -> None:
    cost = cost_of(catalog(), [Use("priced", "us", 8.0), Use("free", "us", 99.0), Use("priced", "gone", 1.0)])
    assert cost is not None
    assert cost.amount == pytest.approx(1.0)
    assert not cost.complete


@pytest.mark.parametrize(
    ("installation", "used"),
    [
        (catalog(prices=None), [Use("priced", "us", 1.0)]),
        (catalog(prices={**PRICES, "gpu_second": {}}), [Use("priced", "us", 1.0)]),
        (catalog(), [Use("free", "us", 1.0)]),
        (catalog(), []),
    ],
)
def test_without_any_price_there_is_no_estimate(installation: Catalog, used: list[Use]) -> None:
    assert cost_of(installation, used) is None


def test_an_estimate_lies_between_the_shares_of_the_calls_and_the_containers_of_the_job() -> None:
    estimate = estimate_job(catalog(), job(), call_s=2.0)
    assert estimate is not None
    per_region_at_least = 10 * 2.0 * 0.5 / 4
    assert estimate.at_least.amount == pytest.approx(per_region_at_least * (1 + 1.5))
    per_region_at_most = (30 + 10 * 2.0 + 60) * 0.5
    assert estimate.at_most.amount == pytest.approx(per_region_at_most * (1 + 1.5))


@pytest.mark.parametrize(
    ("samples", "containers", "rounds"),
    [(1, 1, 1), (4, 1, 1), (5, 2, 1), (8, 2, 1), (9, 2, 2), (16, 2, 2), (17, 2, 3)],
)
def test_samples_fill_containers_and_then_wait_for_them(samples: int, containers: int, rounds: int) -> None:
    estimate = estimate_job(catalog(), job(samples=samples, regions=["us"]), call_s=2.0)
    assert estimate is not None
    assert estimate.at_most.amount == pytest.approx(containers * (30 + 10 * rounds * 2.0 + 60) * 0.5)


def test_variants_of_one_model_share_its_containers() -> None:
    models = [{"id": "cold", "model": "priced"}, {"id": "warm", "model": "priced", "regions": ["us"]}]
    estimate = estimate_job(catalog(), job(models=models, regions=["us"]), call_s=2.0)
    assert estimate is not None
    assert estimate.at_least.amount == pytest.approx(20 * 2.0 * 0.5 / 4)
    assert estimate.at_most.amount == pytest.approx((30 + 10 * 2.0 + 60) * 0.5)


def test_a_retry_is_estimated_by_the_executions_that_it_names() -> None:
    only = [
        {"question_id": "q1", "model_id": "priced", "region": "us", "sample": 0},
        {"question_id": "q2", "model_id": "priced", "region": "us", "sample": 0},
    ]
    estimate = estimate_job(catalog(), job(only=only), call_s=2.0)
    assert estimate is not None
    assert estimate.at_least.amount == pytest.approx(2 * 2.0 * 0.5 / 4)
    assert estimate.at_most.amount == pytest.approx((30 + 2 * 2.0 + 60) * 0.5)


def test_a_job_without_prices_has_no_estimate() -> None:
    assert estimate_job(catalog(), job(models=[{"id": "free"}], regions=["us"]), call_s=2.0) is None
    assert estimate_job(catalog(prices=None), job(), call_s=2.0) is None


def test_a_job_with_some_prices_says_that_it_is_not_all() -> None:
    models = [{"id": "priced"}, {"id": "free", "regions": ["us"]}]
    estimate = estimate_job(catalog(), job(models=models), call_s=2.0)
    assert estimate is not None
    assert not estimate.at_least.complete
    assert not estimate.at_most.complete


@given(
    samples=st.integers(1, 100),
    call_s=st.floats(0, 1000),
    barrier=st.sampled_from(["question", "region"]),
)
def test_the_bounds_never_cross(samples: int, call_s: float, barrier: str) -> None:
    estimate = estimate_job(catalog(), job(samples=samples, barrier=barrier), call_s=call_s)
    assert estimate is not None
    assert 0 <= estimate.at_least.amount <= estimate.at_most.amount
