"""The short form of the simulation, and what makes its runs worth believing."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from uuid import uuid4

import pytest

from tests.harness import postgres
from tests.simulation.mutants import MUTANTS, REPOSITORY, Mutant
from tests.simulation.run import Outcome, prepare, run_seed

SEEDS = range(1, 31)
REPLAYED = 7


def _run(server_url: str, seeds: list[int]) -> list[Outcome]:
    url = asyncio.run(postgres.create_database(server_url, f"sim_{uuid4().hex}"))
    asyncio.run(prepare(url))
    return [run_seed(seed, url) for seed in seeds]


@pytest.fixture(scope="module")
def outcomes(postgres_url: str) -> Iterator[list[Outcome]]:
    """Each seed once, in two processes; one of them again at the other end of the other process."""
    with ProcessPoolExecutor(2) as pool:
        shares = [[REPLAYED, *SEEDS[::2]], [*SEEDS[1::2], REPLAYED]]
        halves = [pool.submit(_run, postgres_url, share) for share in shares]
        yield [outcome for half in halves for outcome in half.result()]


@pytest.mark.slow
def test_every_invariant_holds(outcomes: list[Outcome]) -> None:
    violations = {outcome.seed: outcome.violation for outcome in outcomes if outcome.violation}
    assert not violations, "replay one with: PYTHONHASHSEED=0 python -m tests.simulation --seed N"


@pytest.mark.slow
def test_every_run_is_worth_its_time(outcomes: list[Outcome]) -> None:
    assert min(outcome.executions for outcome in outcomes) >= 60
    assert min(outcome.faults for outcome in outcomes) >= 10


@pytest.mark.slow
def test_a_seed_replays_exactly(outcomes: list[Outcome]) -> None:
    """Whatever ran before it in its process, and however fast the machine is."""
    replays = [outcome for outcome in outcomes if outcome.seed == REPLAYED]
    assert len(replays) == 3
    assert len({outcome.digest for outcome in replays}) == 1
    assert len({tuple(outcome.story) for outcome in replays}) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mistake_can_still_be_planted(mutant: Mutant) -> None:
    code = (REPOSITORY / mutant.file).read_text(encoding="utf-8")
    assert [old for old, _ in mutant.patch if old not in code] == []
