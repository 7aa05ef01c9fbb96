"""How often scenarios are found, with the intervals of so many jobs."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from parallax.contracts.comparison import Comparison, Verdict
from results.comparison.intervals import Interval, wilson
from results.comparison.significance import ALPHA
from tests.benchmarks.comparison.scenarios import Plan, Scenario, compared


class Found(NamedTuple):
    """What came of the jobs of one scenario."""

    jobs: int
    differs: int
    separation: float
    """Mean over the jobs."""
    visible: float
    questions: float
    """Share of the questions that were found different."""

    @property
    def share(self) -> float:
        """The share of jobs that were found to differ."""
        return self.differs / self.jobs

    @property
    def interval(self) -> Interval:
        """Of that share, 95 %."""
        return wilson(self.differs, self.jobs)


def measured(scenario: Scenario, jobs: int, plan: Plan) -> Found:
    """Compare so many jobs of a scenario."""
    return _found([compared(scenario, number, plan) for number in range(jobs)])


def _found(documents: Iterable[Comparison]) -> Found:
    pairs = [document.pairs[0] for document in documents]
    questions = [question.verdict is Verdict.DIFFERS for pair in pairs for question in pair.questions]
    return Found(
        jobs=len(pairs),
        differs=sum(pair.verdict is Verdict.DIFFERS for pair in pairs),
        separation=sum(pair.separation or 0.0 for pair in pairs) / len(pairs),
        visible=sum(pair.visible or 0.0 for pair in pairs) / len(pairs),
        questions=sum(questions) / len(questions),
    )


def most_false_alarms(jobs: int, level: float = ALPHA, confidence: float = 0.975) -> int:
    """How many of so many repeats a test that keeps its level flags at most, in 97.5 of 100 cases."""
    chance, flagged = 0.0, -1
    while chance < confidence:
        flagged += 1
        chance += math.comb(jobs, flagged) * level**flagged * (1 - level) ** (jobs - flagged)
    return flagged
