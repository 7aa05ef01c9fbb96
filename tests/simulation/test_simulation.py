"""The short form of the simulation, and what makes its runs worth believing."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from uuid import uuid4

import pytest

from tests.harness import postgres
from tests.simulation.run import Outcome, prepare, run_seed

SEEDS = range(1, 31)


def _run(server_url: str, seeds: list[int]) -> list[Outcome]:
    url = asyncio.run(postgres.create_database(server_url, f"sim_{uuid4().hex}"))
    asyncio.run(prepare(url))
    return [run_seed(seed, url) for seed in seeds]


@pytest.fixture(scope="module")
def outcomes(postgres_url: str) -> Iterator[list[Outcome]]:
    """Each seed once, in two processes."""
    with ProcessPoolExecutor(2) as pool:
        halves = [pool.submit(_run, postgres_url, list(SEEDS[start::2])) for start in (0, 1)]
        yield [outcome for half in halves for outcome in half.result()]


@pytest.mark.slow
def test_every_invariant_holds(outcomes: list[Outcome]) -> None:
    violations = {outcome.seed: outcome.violation for outcome in outcomes if outcome.violation}
    assert not violations, "replay one with: PYTHONHASHSEED=0 python -m tests.simulation --seed N"


@pytest.mark.slow
def test_every_run_is_worth_its_time(outcomes: list[Outcome]) -> None:
    assert min(outcome.executions for outcome in outcomes) >= 60
    assert min(outcome.faults for outcome in outcomes) >= 10
