"""Intervals and exact tests for counts (Wilson 1927, Newcombe 1998, Fisher 1935); means clustered by question."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Final, NamedTuple

Z95: Final = NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def wilson(count: int, total: int) -> Interval:
    """For a share. Normal intervals are too narrow below some hundred cases, and empty at 0 of n."""
    if total == 0:
        return Interval(0.0, 1.0)
    share, z2 = count / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    low = 0.0 if count == 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if count == total else min(1.0, middle + half))


def newcombe(count_a: int, total_a: int, count_b: int, total_b: int) -> Interval:
    """For the difference of two independent shares, a minus b."""
    if not total_a or not total_b:
        return Interval(-1.0, 1.0)
    a, b = count_a / total_a, count_b / total_b
    low_a, high_a = wilson(count_a, total_a)
    low_b, high_b = wilson(count_b, total_b)
    low = a - b - math.hypot(a - low_a, high_b - b)
    return Interval(max(-1.0, low), min(1.0, a - b + math.hypot(high_a - a, b - low_b)))


def mean_difference(differences: Sequence[float]) -> Interval | None:
    """For the mean of paired differences, one per question: the questions are what was drawn. ``None`` below two."""
    if len(differences) < 2:
        return None
    half = student(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return Interval(fmean(differences) - half, fmean(differences) + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, Cornish-Fisher above (error < 0.01)."""
    if freedom == 1:
        return 12.706
    if freedom == 2:
        return 4.303
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + math.fsum(term / math.pow(freedom, power) for power, term in enumerate(terms, start=1))


def fisher(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """The two-sided exact p for two shares being the same."""
    marked, total = count_a + count_b, total_a + total_b
    if marked in (0, total) or not total_a or not total_b:
        return 1.0
    least, most = max(0, marked - total_b), min(marked, total_a)
    whole = _log_choose(total, marked)
    logs = [_log_choose(total_a, k) + _log_choose(total_b, marked - k) - whole for k in range(least, most + 1)]
    seen = logs[count_a - least]
    return min(1.0, sum(math.exp(each) for each in logs if each <= seen + 1e-9))


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
