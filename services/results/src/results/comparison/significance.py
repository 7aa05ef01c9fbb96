"""From shuffled statistics to p, and from many p to what counts as found."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from results.comparison.shuffles import Values

ALPHA: Final = 0.05
POWER_Z: Final = 2.49
"""z of 95 % (one-sided) + z of 80 %: what is found four times out of five at the 5 % level."""

Key = TypeVar("Key")


class Smallest(NamedTuple):
    """One p for several statistics, and the p of each."""

    p: float
    each: tuple[float, ...]


def smallest_p(statistics: Sequence[Values]) -> Smallest:
    """The test of the smallest p (min-p), larger values counting as more different.

    The smallest p of the observed labelling is compared with the smallest p of every other one: no correction is
    lost, and the test stays exact. The observed labelling is one of them, so p is never 0 (Phipson & Smyth 2010).
    """
    ranks = [_p_of_each(values) for values in statistics]
    least = np.minimum.reduce(ranks)
    return Smallest(float(np.mean(least <= least[0])), tuple(float(p[0]) for p in ranks))


def _p_of_each(values: Values) -> Values:
    """For every labelling the share of labellings that are at least as large."""
    if values.min() == values.max():
        return np.ones_like(values)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # The place of the first of those that are equal: searching for each value takes ten times as long.
    first = np.where(np.concatenate(([True], ordered[1:] > ordered[:-1])), np.arange(len(values)), 0)
    shares = np.empty(len(values))
    shares[order] = (len(values) - np.maximum.accumulate(first)) / len(values)
    return shares


def benjamini_hochberg(found: Mapping[Key, float], level: float) -> set[Key]:
    """What passes when the share of false findings is held at ``level`` (Benjamini & Hochberg 1995)."""
    ordered = sorted(found.items(), key=lambda item: item[1])
    passing = [rank for rank, (_, p) in enumerate(ordered, start=1) if p <= level * rank / len(ordered) + 1e-12]
    return {key for key, _ in ordered[: max(passing, default=0)]}


def selected_level(level: float, selected: int, total: int) -> float:
    """The level inside those families that were selected out of ``total`` (Benjamini & Bogomolov 2014)."""
    return level * selected / total if total else 0.0


def could_pass(least_p: float, passed: int, total: int, level: float) -> bool:
    """Whether a hypothesis whose p cannot be below ``least_p`` could have joined those that passed."""
    return total > 0 and least_p <= level * min(passed + 1, total) / total + 1e-12
