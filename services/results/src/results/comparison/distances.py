"""How far two answers are apart: character n-grams for open questions, same or not for closed ones."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from results.comparison.texts import normalised

Matrix = npt.NDArray[np.float64]

BUCKETS: Final = 8_192
"""4,096 give distances that correlate at .996 with those of 16,384: collisions hardly matter."""
MAX_GRAM: Final = 4
_SHIFT: Final = np.uint64(64 - 13)
_PRIME: Final = np.uint64(0x100000001B3)
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)

Grams = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""The buckets of a text in use, and log(1 + how often)."""


def grams_of(text: str) -> Grams:
    """Counts of the character 1- to 4-grams of a text, hashed: the same on every machine, for ever."""
    padded = f" {normalised(text)} "
    codes = np.frombuffer(padded.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    hashed, buckets = codes, []
    for size in range(1, MAX_GRAM + 1):
        if size > 1:
            hashed = hashed[:-1] * _PRIME + codes[size - 1 :]
        buckets.append(((hashed + np.uint64(size)) * _GOLDEN) >> _SHIFT)
    counts = np.bincount(np.concatenate(buckets).astype(np.int64), minlength=BUCKETS)
    used = np.flatnonzero(counts)
    return used, np.log1p(counts[used]).astype(np.float32)


def open_distances(grams: Sequence[Grams | None]) -> Matrix:
    """1 - cosine of the weighted n-grams; an answer without text (``None``) is as far as can be from every text.

    The weights are inverse document frequencies over exactly these answers.
    """
    size = len(grams)
    texts = [place for place, each in enumerate(grams) if each is not None]
    far = np.zeros(size, dtype=bool)
    far[[place for place, each in enumerate(grams) if each is None]] = True
    distances: Matrix = (far[:, None] != far[None, :]).astype(np.float64)
    if not texts:
        return distances
    vectors = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for row, place in enumerate(texts):
        each = grams[place]
        assert each is not None
        vectors[row, each[0]] = each[1]
    seen = vectors > 0
    vectors *= np.log((1 + len(texts)) / (1 + seen.sum(axis=0, dtype=np.float32))) + np.float32(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = np.clip(1.0 - (vectors @ vectors.T).astype(np.float64), 0.0, 1.0).round(6)
    np.fill_diagonal(apart, 0.0)
    distances[np.ix_(texts, texts)] = apart
    return distances


def closed_distances(chosen: Sequence[int]) -> Matrix:
    """0 where both chose the same, else 1; no answer at all is a choice of its own (-1)."""
    values = np.asarray(chosen)
    distances: Matrix = (values[:, None] != values[None, :]).astype(np.float64)
    return distances
