"""Sums over questions: of a pair, and of a cell. What they hold grows with the questions' numbers, not their texts."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from parallax.contracts.comparison import Accuracy, Cell, QuestionComparison
from parallax.contracts.rates import Outcome, Rate
from results.comparison.distances import Matrix
from results.comparison.intervals import mean_difference, newcombe
from results.comparison.questions import Tested, mean_within, separation
from results.comparison.rates import outcomes_of, rate
from results.comparison.shuffles import SHUFFLES, Design, Values
from results.comparison.significance import POWER_Z, Smallest, smallest_p
from results.comparison.subjects import Answer, CellKey, Pair


@dataclass(slots=True)
class CellTally:
    """One cell over all questions."""

    cell: CellKey
    counts: Counter[Outcome] = field(default_factory=Counter)
    cut: int = 0
    scripts: Counter[str] = field(default_factory=Counter)
    _within: list[float] = field(default_factory=list)

    def add(self, answers: Sequence[Answer]) -> None:
        """Count the outcomes of a question."""
        self.counts.update(answer.outcome for answer in answers)
        self.cut += sum(answer.cut_off for answer in answers if answer.outcome is not Outcome.FAILED)

    def add_scripts(self, scripts: Iterable[str | None]) -> None:
        """Count the scripts of a question's answers."""
        self.scripts.update(script for script in scripts if script is not None)

    def add_distances(self, distances: Matrix) -> None:
        """Take in the distances within this cell in a question."""
        within = mean_within(distances)
        if within is not None:
            self._within.append(within)

    def told(self) -> Cell:
        """The cell as the document has it."""
        within = statistics.fmean(self._within) if self._within else None
        return Cell(**self.cell._asdict(), outcomes=outcomes_of(self.counts, self.cut), within=within)


@dataclass(slots=True)
class PairTally:
    """One pair over all questions."""

    pair: Pair
    tested: list[Tested] = field(default_factory=list)
    _everywhere: Values = field(default_factory=lambda: np.zeros(SHUFFLES + 1))
    _sparse: Values = field(default_factory=lambda: np.zeros(SHUFFLES + 1))
    _traits: Values = field(default_factory=lambda: np.zeros((3, SHUFFLES + 1)))
    _sizes: Values = field(default_factory=lambda: np.zeros((2, SHUFFLES + 1)))
    _steepness: float = 0.0
    _spread: int = 0
    _least_log_p: float = 0.0
    _accuracies: list[Accuracy] = field(default_factory=list)

    def add(self, tested: Tested) -> None:
        """Take in one question; its shuffles are summed and forgotten."""
        measured = tested.measured
        if measured is not None:
            self._least_log_p += math.log(tested.design.least_p)
            self._traits += (measured.silent, measured.cut, measured.length)
            self._sizes += (measured.wording, measured.between)
            spread = float(measured.wording.std())
            if spread > 0:
                z = (measured.wording - measured.wording.mean()) / spread
                self._everywhere += z
                self._sparse += np.maximum(z, 0.0) ** 2
                self._steepness += 2 * float(measured.between.mean()) / spread
                self._spread += 1
        if tested.comparison.accuracy is not None:
            self._accuracies.append(tested.comparison.accuracy)
        self.tested.append(tested._replace(measured=None))

    @property
    def questions(self) -> list[QuestionComparison]:
        """What was said about each question."""
        return [tested.comparison for tested in self.tested]

    @property
    def designs(self) -> list[Design]:
        """How many answers each question has."""
        return [tested.design for tested in self.tested]

    @property
    def least_p(self) -> float:
        """The smallest p that all answers together can have."""
        return max(math.exp(max(self._least_log_p, -700.0)), 1 / (SHUFFLES + 1)) if self.testable else 1.0

    @property
    def testable(self) -> bool:
        """Whether any question can be tested."""
        return any(design.testable for design in self.designs)

    def smallest(self) -> Smallest | None:
        """The p of the pair: differences everywhere, on a few questions, in refusals, cuts and length."""
        if not self.testable:
            return None
        silent, cut, length = np.abs(self._traits).round(9)
        return smallest_p([self._everywhere.round(9), self._sparse.round(9), silent, cut, length])

    def sizes(self) -> tuple[float | None, float | None, float | None]:
        """Separation, noise band and visible separation over all questions."""
        if not self.testable:
            return None, None, None
        shares = separation(*self._sizes)
        visible = POWER_Z * math.sqrt(self._spread) / self._steepness if self._steepness > 0 else None
        noise = max(0.0, float(np.quantile(shares, 0.95)))
        return float(shares[0]), noise, None if visible is None else min(1.0, visible)

    def means(self) -> tuple[float | None, float | None, float | None]:
        """Mean distances within a, within b and between them."""
        columns = (
            [question.a.within for question in self.questions],
            [question.b.within for question in self.questions],
            [question.between for question in self.questions],
        )
        known = [[value for value in column if value is not None] for column in columns]
        within_a, within_b, between = (statistics.fmean(column) if column else None for column in known)
        return within_a, within_b, between

    def samples(self) -> int:
        """Answers a side in the median question."""
        smaller = [min(design.count_a, design.count_b) for design in self.designs]
        return int(statistics.median_low(smaller)) if smaller else 0

    def same_seed(self) -> Rate | None:
        """How often both sides gave the same answer to the same seed."""
        rates = [question.same_seed for question in self.questions if question.same_seed is not None]
        return rate(sum(r.count for r in rates), sum(r.total for r in rates)) if rates else None

    def accuracy(self) -> Accuracy | None:
        """Accuracy over questions with an expected answer: paired by question, because questions are what was drawn."""
        found = self._accuracies
        if not found:
            return None
        a = rate(sum(one.a.count for one in found), sum(one.a.total for one in found))
        b = rate(sum(one.b.count for one in found), sum(one.b.total for one in found))
        interval = mean_difference([one.difference for one in found]) or newcombe(a.count, a.total, b.count, b.total)
        difference = statistics.fmean(one.difference for one in found)
        low, high = max(-1.0, interval.low), min(1.0, interval.high)
        return Accuracy(a=a, b=b, difference=difference, low=low, high=high, questions=len(found))
