"""Shuffled labels: what the numbers would be if region, model or time did not matter.

Two designs. Without shared seeds, answers of one question are dealt out again to both sides. Where both sides were
called with the same seeds, answers with the same seed belong together and only change sides, because an endpoint that
honours seeds makes them alike; shuffling them freely would be exact too, and blind.
"""

import hashlib
import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from results.comparison.distances import Matrix

SHUFFLES: Final = 999
"""With the observed one 1,000 labellings: the least p is 0.001."""
MORE_SHUFFLES: Final = 19_999
"""For single questions at the end of the scale, so that a correction for some 1,000 questions has room."""
_CHUNK: Final = 2_000
"""Labellings that are measured at once: bounds the memory of cells with 100 samples."""

Labels = npt.NDArray[np.int8]
Values = npt.NDArray[np.float64]


class Design(NamedTuple):
    """How many answers stand on both sides, and whether they come in pairs of the same seed."""

    count_a: int
    count_b: int
    paired: bool

    @property
    def testable(self) -> bool:
        """Whether there is anything to compare a difference with: two answers on each side."""
        return min(self.count_a, self.count_b) >= 2

    @property
    def least_p(self) -> float:
        """The smallest p that this many answers can have at all."""
        if not self.testable:
            return 1.0
        if self.paired:
            return 2.0 ** (1 - self.count_a)
        symmetric = 2 if self.count_a == self.count_b else 1
        return min(1.0, symmetric / math.comb(self.count_a + self.count_b, self.count_a))


class Traits(NamedTuple):
    """What is compared besides the wording, one number per answer, side a first."""

    silent: Values
    """1 for refused or empty."""
    cut: Values
    length: Values
    """log(1 + characters), in standard deviations of the question."""


class Measured(NamedTuple):
    """The statistics under every labelling; the first is the observed one."""

    wording: Values
    """The energy distance: 2 mean d(A,B) - mean d(A,A') - mean d(B,B'), over different answers."""
    between: Values
    """mean d(A,B)."""
    silent: Values
    cut: Values
    length: Values
    """Means of the traits of A minus those of B."""


def seed_of(*names: str) -> int:
    """A seed that depends on names alone: the same job gives the same p for ever."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode("utf-8", "replace")).digest()[:16], "big")


def labels_of(design: Design, shuffles: int, seed: int) -> Labels:
    """The observed labelling and so many shuffled ones: 1 for side a (unpaired), or 1 and -1 for sides kept and
    changed (paired).
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if design.paired:
        labels = rng.integers(0, 2, size=(shuffles + 1, design.count_a), dtype=np.int8) * np.int8(2) - np.int8(1)
        labels[0] = 1
        return labels
    labels = np.zeros((shuffles + 1, design.count_a + design.count_b), dtype=np.int8)
    labels[:, : design.count_a] = 1
    labels[1:] = rng.permuted(labels[1:], axis=1)
    return labels


@lru_cache(maxsize=4)
def many_labels(design: Design) -> Labels:
    """The labellings of the second, finer look at a question. They may be the same for every question: each p is
    exact by itself, and only sums over questions need shuffles of their own.
    """
    return labels_of(design, MORE_SHUFFLES, seed_of("more", *map(str, design)))


def measure(design: Design, distances: Matrix, traits: Traits, labels: Labels) -> Measured:
    """Every statistic under every labelling. Side a stands first in ``distances`` and ``traits``; when paired, both
    sides stand in the order of their seeds.

    Rounded, so that labellings which mean the same are equal whatever the order of their sums.
    """
    look = _paired if design.paired else _unpaired
    parts = [
        look(design, distances, np.stack(traits), labels[start : start + _CHUNK].astype(np.float64))
        for start in range(0, len(labels), _CHUNK)
    ]
    return Measured(*(np.concatenate(column).round(9) for column in zip(*parts, strict=True)))


def _unpaired(design: Design, distances: Matrix, traits: Values, labels: Values) -> tuple[Values, ...]:
    n, m = design.count_a, design.count_b
    inside = ((labels @ distances) * labels).sum(axis=1)
    across = labels @ distances.sum(axis=1) - inside
    other = distances.sum() - inside - 2 * across
    between = across / (n * m)
    wording = 2 * between - inside / (n * (n - 1)) - other / (m * (m - 1))
    differences = (labels @ traits.T) * (1 / n + 1 / m) - traits.sum(axis=1) / m
    return wording, between, *differences.T


def _paired(design: Design, distances: Matrix, traits: Values, labels: Values) -> tuple[Values, ...]:
    n = design.count_a
    aa, ab, bb = distances[:n, :n], distances[:n, n:], distances[n:, n:]
    changing = aa + bb - ab - ab.T
    np.fill_diagonal(changing, 0.0)
    places = n * (n - 1)
    wording = -((labels @ changing) * labels).sum(axis=1) / places
    everything = aa + bb + ab + ab.T
    np.fill_diagonal(everything, 0.0)
    between = everything.sum() / (4 * places) + wording / 4
    differences = labels @ (traits[:, :n] - traits[:, n:]).T / n
    return wording, between, *differences.T
