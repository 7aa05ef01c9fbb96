"""Distances, shuffles and corrections are what their formulas say."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.comparison.distances import Matrix, closed_distances, grams_of, open_distances
from results.comparison.intervals import fisher, mean_difference, newcombe, student, wilson
from results.comparison.shuffles import Design, Traits, labels_of, measure
from results.comparison.significance import benjamini_hochberg, could_pass, selected_level, smallest_p

texts = st.lists(st.none() | st.text(max_size=40), min_size=4, max_size=9)


def random_distances(size: int, seed: int = 1) -> Matrix:
    """Some distances."""
    values = np.random.default_rng(seed).random((size, size)).round(6)
    distances: Matrix = np.triu(values, 1) + np.triu(values, 1).T
    return distances


def no_traits(size: int) -> Traits:
    return Traits(np.zeros(size), np.zeros(size), np.zeros(size))


@given(texts)
@settings(max_examples=60, deadline=None)
def test_distances_are_distances(some: list[str | None]) -> None:
    found = open_distances([None if text is None else grams_of(text) for text in some])
    assert (found == found.T).all()
    assert (found.diagonal() == 0).all()
    assert 0 <= found.min() <= found.max() <= 1
    for a, b in itertools.product(range(len(some)), repeat=2):
        if some[a] == some[b]:
            assert found[a, b] == 0
        if (some[a] is None) != (some[b] is None):
            assert found[a, b] == 1, "what says nothing is as far as can be from a text"


def test_closed_questions_are_the_same_or_not() -> None:
    assert closed_distances([0, 1, 0, -1]).tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]


def test_case_and_spaces_do_not_matter_and_words_do() -> None:
    found = open_distances([grams_of(t) for t in ("Tea with milk", "TEA  with\nmilk", "Coffee, black", "Tea with rum")])
    assert found[0, 1] == 0
    assert 0 < found[0, 3] < found[0, 2] <= 1


@given(st.integers(2, 5), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_the_energy_distance_is_its_formula(n: int, m: int) -> None:
    d = random_distances(n + m, seed=10 * n + m)
    design = Design(n, m, paired=False)
    found = measure(design, d, no_traits(n + m), labels_of(design, 1, seed=3))
    a, b = range(n), range(n, n + m)
    between = np.mean([d[i, j] for i in a for j in b])
    within = [np.mean([d[i, j] for i, j in itertools.permutations(side, 2)]) for side in (a, b)]
    assert found.between[0] == pytest.approx(between)
    assert found.wording[0] == pytest.approx(2 * between - sum(within))


@given(st.integers(2, 6))
@settings(max_examples=10, deadline=None)
def test_the_paired_form_leaves_out_an_answer_s_own_pair(n: int) -> None:
    d = random_distances(2 * n, seed=n)
    design = Design(n, n, paired=True)
    labels = labels_of(design, 20, seed=3)
    found = measure(design, d, no_traits(2 * n), labels)
    others = list(itertools.permutations(range(n), 2))
    for row, kept in enumerate(labels):
        a = [i if kept[i] == 1 else n + i for i in range(n)]
        b = [n + i if kept[i] == 1 else i for i in range(n)]
        between = np.mean([d[a[i], b[j]] for i, j in others])
        within = sum(np.mean([d[side[i], side[j]] for i, j in others]) for side in (a, b))
        assert found.between[row] == pytest.approx(between, abs=1e-8)
        assert found.wording[row] == pytest.approx(2 * between - within, abs=1e-8)


def test_traits_are_differences_of_means_under_every_labelling() -> None:
    design = Design(2, 3, paired=False)
    traits = Traits(np.array([1.0, 1, 0, 0, 0]), np.array([0.0, 0, 1, 1, 1]), np.arange(5.0))
    found = measure(design, random_distances(5), traits, labels_of(design, 200, seed=1))
    assert (found.silent[0], found.cut[0], found.length[0]) == (1, -1, -2.5)
    assert abs(found.silent).max() == 1
    assert abs(found.silent.mean()) < 0.2


def test_every_labelling_comes_about_equally_often() -> None:
    labels = labels_of(Design(2, 2, paired=False), 6_000, seed=7)[1:]
    assert (labels.sum(axis=1) == 2).all()
    _, counts = np.unique(labels, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850


def test_the_same_names_give_the_same_shuffles() -> None:
    design = Design(5, 5, paired=False)
    assert (labels_of(design, 50, seed=1) == labels_of(design, 50, seed=1)).all()
    assert (labels_of(design, 50, seed=1) != labels_of(design, 50, seed=2)).any()


@pytest.mark.parametrize(
    ("design", "least"),
    [
        (Design(1, 9, paired=False), 1.0),
        (Design(2, 2, paired=False), 1 / 3),
        (Design(5, 5, paired=False), 2 / 252),
        (Design(2, 3, paired=False), 1 / 10),
        (Design(8, 8, paired=True), 1 / 128),
    ],
)
def test_the_least_p_of_a_design(design: Design, least: float) -> None:
    assert design.least_p == pytest.approx(least)


def test_the_smallest_p_is_never_zero_and_needs_no_correction() -> None:
    draw = np.random.default_rng(1)
    calm = draw.normal(size=1_000)
    striking = draw.normal(size=1_000)
    striking[0] = 99.0
    found = smallest_p([calm, striking, np.zeros(1_000)])
    assert found.each[1] == 0.001
    assert found.each[2] == 1.0
    assert 0.001 <= found.p <= 0.003
    assert smallest_p([np.zeros(1_000)]).p == 1.0


def test_the_smallest_p_keeps_its_level() -> None:
    """With four related statistics, 5 % of null labellings are at or below 5 %."""
    draw = np.random.default_rng(5)
    alarms = 0
    for _ in range(400):
        base = draw.normal(size=200)
        alarms += smallest_p([base, base + draw.normal(size=200), draw.normal(size=200), abs(base)]).p <= 0.05
    assert 8 <= alarms <= 34


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_benjamini_hochberg_is_its_definition(ps: list[float], level: float) -> None:
    passing = [k for k in range(1, len(ps) + 1) if sum(p <= level * k / len(ps) + 1e-12 for p in ps) >= k]
    assert len(benjamini_hochberg(dict(enumerate(ps)), level)) == max(passing, default=0)


def test_levels_inside_selected_families() -> None:
    assert selected_level(0.05, 2, 10) == pytest.approx(0.01)
    assert selected_level(0.05, 0, 0) == 0
    assert could_pass(0.008, 0, 8, 0.05) is False, "five samples: a lone question cannot pass among eight"
    assert could_pass(0.002, 0, 8, 0.05)
    assert could_pass(0.008, 1, 8, 0.05)


def test_intervals_agree_with_published_numbers() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, table II
    assert newcombe(0, 0, 1, 2) == (-1, 1)
    assert fisher(3, 4, 1, 4) == pytest.approx(0.4857, abs=1e-4)  # the lady tasting tea, two-sided
    assert fisher(0, 10, 6, 10) == pytest.approx(0.0108, abs=1e-4)
    assert fisher(0, 5, 0, 5) == 1
    assert [round(student(df), 2) for df in (1, 2, 3, 9, 30)] == [12.71, 4.3, 3.18, 2.26, 2.04]
    assert mean_difference([0.5]) is None
    assert mean_difference([0.0, 0.2]) == pytest.approx((0.1 - 1.2706, 0.1 + 1.2706), abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30))
def test_wilson_holds_the_share(count: int, more: int) -> None:
    low, high = wilson(count, count + more)
    assert 0 <= low <= high <= 1
    if count + more:
        assert low <= count / (count + more) <= high


def test_a_design_s_least_p_is_reached() -> None:
    """A complete separation gives exactly the least p, over all labellings of a small design."""
    d = np.array(closed_distances([0, 0, 0, 1, 1, 1]))
    design = Design(3, 3, paired=False)
    found = measure(design, d, no_traits(6), labels_of(design, 19_999, seed=random.Random(1).getrandbits(64)))
    p = smallest_p([found.wording]).p
    assert math.isclose(p, design.least_p, abs_tol=0.01)
