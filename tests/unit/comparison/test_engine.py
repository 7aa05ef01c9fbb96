"""Whole comparisons: verdicts, what is said with them, and data on which nothing may break."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.contracts.comparison import Across, Comparison, Kind, Verdict
from parallax.contracts.rates import Outcome
from results.comparison.engine import Comparer, Subject
from results.comparison.preparing import distances_of, prepare
from results.comparison.questions import compare_question
from results.comparison.significance import Smallest
from results.comparison.subjects import Answer, AskedQuestion, CellKey, Pair, Repeats, groups_of, pairs_of
from results.comparison.tallies import PairTally
from results.comparison.verdicts import judge
from tests.benchmarks.comparison.scenarios import REFUSALS, A, B, answers, missing

WORDS = ("tea", "coffee", "milk", "bread", "rice", "eggs", "beans", "fruit", "toast", "soup", "cheese", "honey")


def text(draw: random.Random, *extra: str) -> str:
    return " ".join([*draw.choices(WORDS, k=8), *extra])


def compare(*questions: AskedQuestion, cells: Sequence[CellKey] = (A, B), **fields: Any) -> Comparison:
    """A comparison of every pair across regions."""
    pairs = tuple(pairs_of(cells, Across.REGION, Repeats()))
    subject = Subject(job_id="job", cells=tuple(cells), pairs=pairs, across=Across.REGION)
    comparer = Comparer(subject._replace(**fields))
    for question in questions:
        comparer.add(question)
    return comparer.document()


def question(index: int, a: Sequence[Answer], b: Sequence[Answer], **fields: Any) -> AskedQuestion:
    return AskedQuestion(index, f"q{index}", {A: a, B: b}, **fields)


def drawn(index: int, samples: int, *extra: str, **fields: Any) -> AskedQuestion:
    """A question whose side b has more words."""
    draw = random.Random(index)
    a, b = [text(draw) for _ in range(samples)], [text(draw, *extra) for _ in range(samples)]
    return question(index, answers(a), answers(b), **fields)


def test_a_difference_is_told_with_its_size_its_kind_and_its_words() -> None:
    found = compare(*(drawn(i, 10, *(["cricket", "curry"] if i == 0 else []), tags=("food",)) for i in range(4)))
    (pair,) = found.pairs
    assert pair.verdict is Verdict.DIFFERS
    assert Kind.WORDING in pair.kinds
    first = pair.questions[0]
    assert first.question_id == "q0", "the largest separation stands first"
    assert first.verdict is Verdict.DIFFERS
    assert {word.word for word in first.words_b} >= {"cricket", "curry"}
    assert first.separation is not None
    assert first.noise is not None
    assert first.separation > first.noise > 0
    assert pair.sentences[0].startswith("a and b differ, p")
    assert "Different on 1 of 4 questions" in " ".join(pair.sentences)
    assert "By tag: food 1 of 4" in " ".join(pair.sentences)
    assert found.headlines == ("1 of 1 pairs differ.",)


def test_no_difference_is_never_called_the_same_and_says_what_would_have_been_found() -> None:
    found = compare(*(drawn(i, 10) for i in range(4)))
    (pair,) = found.pairs
    assert pair.verdict is Verdict.NO_DIFFERENCE_FOUND
    assert pair.sentences[0].startswith("No difference found between a and b")
    assert "would have been found four times of five; with 20 samples" in pair.sentences[0]
    assert {q.verdict for q in pair.questions} == {Verdict.NO_DIFFERENCE_FOUND}
    assert "the same" not in found.model_dump_json().replace('"same_seed"', "")


def test_one_sample_cannot_tell_and_says_how_many_would() -> None:
    (pair,) = compare(*(drawn(i, 1, "cricket") for i in range(8))).pairs
    assert pair.verdict is Verdict.CANNOT_TELL
    assert (pair.p, pair.separation, pair.samples, pair.samples_to_tell) == (None, None, 1, 2)
    assert pair.sentences[0].startswith("Cannot tell: one answer a cell. Answers of a and b are ")
    assert "2 samples a cell would tell" in pair.sentences[0]


def test_a_question_is_unknown_exactly_when_its_least_p_could_not_pass() -> None:
    """With five answers a lone question among eight needs 0.00625 and cannot be below 0.0079."""

    def told(samples: int) -> list[Verdict | None]:
        other = answers([f"cricket and chutney {number}" for number in range(samples)])
        first = question(0, answers([text(random.Random(n)) for n in range(samples)]), other)
        (pair,) = compare(first, *(drawn(i, samples) for i in range(1, 8))).pairs
        assert pair.verdict is Verdict.DIFFERS
        return [question.verdict for question in pair.questions]

    assert set(told(5)) == {Verdict.CANNOT_TELL}
    assert told(6) == [Verdict.DIFFERS] + [Verdict.NO_DIFFERENCE_FOUND] * 7


class Quiet(PairTally):
    """A pair in which nothing was found over all questions, and one question that stands out by itself."""

    def smallest(self) -> Smallest:
        return Smallest(0.2, (0.2,) * 5)


def test_no_question_differs_inside_a_pair_that_does_not() -> None:
    tally = Quiet(Pair(A, B))
    for asked in (drawn(0, 10, "cricket", "curry", "chutney"), drawn(1, 10)):
        cells = prepare(asked, (A, B))
        distances, _ = distances_of(cells, (A, B))
        tally.add(compare_question(tally.pair, asked, (cells.prepared[A], cells.prepared[B]), distances, 1))
    assert min(one.smallest.p for one in tally.tested if one.smallest is not None) < 0.001
    (judged,) = judge([tally])
    assert judged.verdict is Verdict.NO_DIFFERENCE_FOUND
    assert [verdict for verdict, _ in judged.questions] == [Verdict.NO_DIFFERENCE_FOUND] * 2


def test_refusals_are_a_kind_of_difference() -> None:
    plain = [answers([text(random.Random(i * 100 + n)) for n in range(10)]) for i in range(8)]
    some = [[*side[:7], *answers(REFUSALS[:3])] for side in plain]
    (pair,) = compare(*(question(i, plain[i], some[i]) for i in range(8))).pairs
    assert pair.verdict is Verdict.DIFFERS
    assert Kind.REFUSALS in pair.kinds
    assert pair.p_by_kind["refusals"] == 0.001
    assert "Refused or empty: 0 of 80 in a, 24 of 80 in b." in pair.sentences
    assert pair.b.outcomes.refused_in_words == 24
    assert pair.b.outcomes.refused.low < 0.3 < pair.b.outcomes.refused.high


def test_an_empty_answer_is_as_far_as_can_be_from_a_text() -> None:
    (pair,) = compare(question(0, answers(["tea"] * 10), answers([""] * 10))).pairs
    assert pair.questions[0].separation == 1.0
    assert pair.questions[0].between == 1.0
    assert pair.verdict is Verdict.DIFFERS


def test_shared_seeds_are_compared_in_pairs() -> None:
    """Both sides answer alike to the same seed: no p below 1, where free shuffles would only be blind."""
    seeds = range(100, 110)
    same = [text(random.Random(seed)) for seed in seeds]
    (pair,) = compare(question(0, answers(same, seeds=seeds), answers(same, seeds=seeds))).pairs
    assert (pair.p, pair.verdict) == (1.0, Verdict.NO_DIFFERENCE_FOUND)
    assert pair.same_seed is not None
    assert (pair.same_seed.count, pair.same_seed.total) == (10, 10)
    assert "With the same seed both sides gave the same answer 10 of 10 times." in pair.sentences
    other = [text(random.Random(seed), "cricket") for seed in seeds]
    (pair,) = compare(question(0, answers(same, seeds=seeds), answers(other, seeds=seeds))).pairs
    assert pair.verdict is Verdict.DIFFERS


def test_closed_questions_show_shares_and_accuracy() -> None:
    fields: dict[str, Any] = {"choices": ("Agree", "Disagree"), "expected": "Agree"}
    a, b = ["Agree."] * 9 + ["Well"], ["I agree"] * 2 + ["disagree"] * 8
    (pair,) = compare(*(question(i, answers(a), answers(b), **fields) for i in range(3))).pairs
    assert pair.verdict is Verdict.DIFFERS
    assert Kind.LENGTH not in pair.kinds, "how long the answer to a closed question is says nothing"
    first = pair.questions[0]
    assert [(c.choice, c.a.count, c.b.count) for c in first.choices] == [
        ("Agree", 9, 2),
        ("Disagree", 0, 8),
        ("other", 1, 0),
    ]
    assert first.sentence.startswith("choices ")
    assert pair.accuracy is not None
    assert pair.accuracy.difference == pytest.approx(0.7)
    assert pair.accuracy.questions == 3
    assert any(line.startswith("Expected answers: 90 % in a, 20 % in b; +70 points") for line in pair.sentences)


def test_another_script_is_told_right_behind_the_verdict() -> None:
    han = ["\u8db3\u7403\u662f\u6700\u53d7\u6b22\u8fce\u7684\u8fd0\u52a8", "\u677f\u7403"] * 5
    (pair,) = compare(question(0, answers(["Football is loved", "Cricket"] * 5), answers(han))).pairs
    assert pair.sentences[1].startswith("Answers in another script: Han 0 % in a, 100 % in b.")


def test_unequal_missing_is_told() -> None:
    full = answers([text(random.Random(n)) for n in range(10)])
    less = [*full[:6], *(missing(sample) for sample in range(6, 10))]
    (pair,) = compare(*(question(i, full, less) for i in range(4))).pairs
    assert any("Missing answers: 0 of 40 in a, 16 of 40 in b, more than chance" in line for line in pair.sentences)
    both = compare(*(question(i, less, less) for i in range(4))).pairs[0]
    assert any(line.startswith("Missing answers: 16 of 40 in a, 16 of 40 in b: what") for line in both.sentences)


def test_much_cut_off_and_repeated_answers_are_warned_of() -> None:
    texts = [text(random.Random(n)) for n in range(10)]
    cut = [answer._replace(outcome=Outcome.CUT_OFF, cut_off=True) for answer in answers(texts)]
    found = compare(question(0, cut, answers(["42"] * 10)))
    assert any("100 % of the answers are cut off" in warning for warning in found.warnings)
    assert any(warning.startswith("model in b: all samples of a question are alike") for warning in found.warnings)


def test_while_a_job_runs_sizes_are_told_and_verdicts_are_not() -> None:
    found = compare(*(drawn(i, 10, "cricket") for i in range(3)), final=False)
    (pair,) = found.pairs
    assert (pair.verdict, pair.p, pair.kinds, pair.p_by_kind) == (None, None, (), {})
    assert pair.separation is not None
    assert all(q.verdict is None and q.p is None for q in pair.questions)
    assert pair.sentences[0].startswith("Not finished, so sizes only")
    assert found.headlines[0].startswith("Not finished")


def test_controls_are_found_and_told_first() -> None:
    again = A._replace(model_id="model-again")
    cells = [A, again, B]
    pairs = pairs_of(cells, Across.REGION, Repeats({"model": 1, "model-again": 1, "other": 2}))
    assert pairs == [Pair(A, again, control=True), Pair(A, B)]
    draw = random.Random(1)
    sides = {cell: answers([text(draw) for _ in range(8)]) for cell in cells}
    found = compare(AskedQuestion(0, "q", sides), cells=cells, pairs=tuple(pairs))
    assert len(found.controls) == len(found.pairs) == 1
    assert found.headlines[0].startswith("Controls: 1 repeat of the same model, no difference found")
    sides[again] = answers([text(draw, "cricket", "curry") for _ in range(8)])
    found = compare(AskedQuestion(0, "q", sides), cells=cells, pairs=tuple(pairs))
    assert "which DIFFER" in found.headlines[0]


def test_pairs_of_every_kind() -> None:
    cells = [CellKey(job, model, region) for job in ("x", "y") for model in ("m", "n") for region in ("eu", "us")]
    assert len(pairs_of(cells[:4], Across.REGION, Repeats())) == 2
    assert len(pairs_of(cells[:4], Across.MODEL, Repeats())) == 2
    assert len(pairs_of(cells, Across.JOB, Repeats())) == 4
    many = [CellKey("x", "m", region) for region in ("eu", "us", "apac", "af")]
    assert len(pairs_of(many, Across.REGION, Repeats(), against="us")) == 3
    assert [len(group) for group in groups_of(pairs_of(cells[:4], Across.REGION, Repeats()))] == [1, 1]


def test_the_same_job_gives_the_same_document() -> None:
    questions = [drawn(i, 6, "cricket") for i in range(3)]
    assert compare(*questions) == compare(*questions)
    one, turned = compare(*questions).pairs[0], compare(*reversed(questions)).pairs[0]
    assert one.p == turned.p


some_answers = st.lists(
    st.builds(
        lambda sample, outcome, words, seed, cut: Answer(sample, outcome, words, seed, cut, len(words)),
        st.integers(0, 5),
        st.sampled_from(Outcome),
        st.text(max_size=12),
        st.none() | st.integers(0, 4),
        st.booleans(),
    ),
    max_size=5,
)


@given(st.lists(st.tuples(some_answers, some_answers, st.booleans()), max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nothing_breaks_on_any_answers(sides: list[tuple[list[Answer], list[Answer], bool]], final: bool) -> None:
    closed: dict[str, Any] = {"choices": ("yes", "no"), "expected": "no"}
    found = compare(
        *(question(i, a, b, **(closed if shut else {})) for i, (a, b, shut) in enumerate(sides)), final=final
    )
    for pair in found.pairs:
        assert pair.p is None or 0 < pair.p <= 1
        assert pair.separation is None or -1.0001 <= pair.separation <= 1
    assert found.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("what", ["identical", "refused", "empty", "missing", "half missing"])
def test_nothing_breaks_on_uniform_data(what: str, count: int) -> None:
    made = {
        "identical": answers(["42"] * count),
        "refused": answers([REFUSALS[0]] * count),
        "empty": answers([""] * count),
        "missing": [missing(sample) for sample in range(count)],
        "half missing": [*answers(["42"] * count), *(missing(count + sample) for sample in range(count))],
    }[what]
    found = compare(*(question(i, made, made) for i in range(3)))
    (pair,) = found.pairs
    assert pair.verdict in {Verdict.NO_DIFFERENCE_FOUND, Verdict.CANNOT_TELL}
    assert pair.p in {None, 1.0}
    assert all(line for line in pair.sentences)
    empty = compare()
    assert empty.pairs[0].verdict is Verdict.CANNOT_TELL
