"""What so many samples can find: before anything is asked, and afterwards. Standard library only.

Separations that can be found fall like 1 / samples and like 1 / sqrt(questions): S80 = ``TYPICAL_SPREAD`` /
(samples x sqrt(questions)), with the factor measured on the answers in ``tests/benchmarks/comparison``.
"""

import math
from typing import Final, NamedTuple

LEVEL: Final = 0.05
TYPICAL_SPREAD: Final = 0.37
"""S80 x samples x sqrt(questions) of a very noisy model at temperature 0.7; models that vary less see smaller ones."""
_Z: Final = 1.96 + 0.8416
"""z of 97.5 % (two-sided) + z of 80 %."""
MOST_SAMPLES: Final = 100


class Power(NamedTuple):
    """What a plan can find four times out of five, for one pair of cells over all questions."""

    samples: int
    questions: int
    pairs: int
    testable: bool
    """Whether a pair could be found different at all."""
    single_questions: bool
    """Whether a lone question could be found different."""
    separation: float
    """The smallest separation; 1 where nothing can be found."""
    refusals: float
    """The smallest share of refusals against none at all; 1 where nothing can be found."""


def planned(samples: int, questions: int, pairs: int, *, shared_seeds: bool) -> Power:
    """The power of a plan with so many samples per cell."""
    pairs = max(pairs, 1)
    least = least_p(samples, shared_seeds=shared_seeds)
    testable = questions * math.log(least) <= math.log(LEVEL / pairs)
    return Power(
        samples=samples,
        questions=questions,
        pairs=pairs,
        testable=testable,
        single_questions=least <= LEVEL / pairs / questions,
        separation=min(1.0, TYPICAL_SPREAD / (samples * math.sqrt(questions))) if testable else 1.0,
        refusals=_refusals(samples * questions) if testable else 1.0,
    )


def least_p(samples: int, *, shared_seeds: bool) -> float:
    """The smallest p of one question with so many answers a side."""
    if samples < 2:
        return 1.0
    return 2.0 ** (1 - samples) if shared_seeds else min(1.0, 2 / math.comb(2 * samples, samples))


def samples_needed(level: float, questions: int = 1, *, shared_seeds: bool = False) -> int | None:
    """The fewest answers a side whose least p, over so many questions, can be as small as the level."""
    for samples in range(2, MOST_SAMPLES + 1):
        if questions * math.log(least_p(samples, shared_seeds=shared_seeds)) <= math.log(level):
            return samples
    return None


def _refusals(answers: int) -> float:
    """The share that is found against none, by the normal approximation of two shares with a pooled variance."""
    share = 2 * _Z * _Z / (2 * answers + _Z * _Z)
    return min(1.0, share)
