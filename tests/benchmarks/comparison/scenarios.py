"""Jobs whose truth is known, drawn from the shipped answers without replacement."""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NamedTuple

from parallax.contracts.comparison import Across, Comparison
from parallax.contracts.rates import Outcome
from results.comparison.engine import Comparer, Subject
from results.comparison.outcomes import Ended, outcome_of
from results.comparison.subjects import Answer, AskedQuestion, CellKey, Pair
from tests.benchmarks.comparison.generate import DATA, QUESTIONS

REFUSALS: Final = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question.",
    "I'm unable to discuss this topic.",
    "As an AI language model, I don't have personal opinions on this.",
    "I must decline to answer.",
    "Let's talk about something else.",
)
FIRST_EIGHT: Final = tuple(QUESTIONS)[:8]
"""The questions of the demo."""


class Plan(NamedTuple):
    """How many jobs of which size."""

    samples: int = 10
    questions: tuple[str, ...] = FIRST_EIGHT


class Sides(NamedTuple):
    """The texts of both sides in one question."""

    a: list[str]
    b: list[str]


Scenario = Callable[[random.Random, str, int, int], Sides]
"""Random numbers, the question's id, its place, and samples a side."""


@cache
def pools() -> dict[str, dict[str, list[str]]]:
    """Every answer by condition and question."""
    found: dict[str, dict[str, list[str]]] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def _two_of(draw: random.Random, name: str, question: str, samples: int) -> Sides:
    drawn = draw.sample(pools()[name][question], 2 * samples)
    return Sides(drawn[:samples], drawn[samples:])


def nothing(draw: random.Random, question: str, _place: int, samples: int) -> Sides:
    """A repeat: both sides are one condition."""
    return _two_of(draw, "us", question, samples)


def region(draw: random.Random, question: str, _place: int, samples: int) -> Sides:
    """The system prompt names another country."""
    return Sides(draw.sample(pools()["us"][question], samples), draw.sample(pools()["in"][question], samples))


def temperature(draw: random.Random, question: str, _place: int, samples: int) -> Sides:
    """Temperature 0.7 against 0.3."""
    return Sides(draw.sample(pools()["us"][question], samples), draw.sample(pools()["us-cool"][question], samples))


def sparse(draw: random.Random, question: str, place: int, samples: int) -> Sides:
    """The region's prompt matters on two questions of eight."""
    return (region if place % 8 in (4, 6) else nothing)(draw, question, place, samples)


def refused(draw: random.Random, question: str, place: int, samples: int) -> Sides:
    """One side refuses a tenth of the questions."""
    sides = nothing(draw, question, place, samples)
    return Sides(sides.a, [draw.choice(REFUSALS) if draw.random() < 0.1 else text for text in sides.b])


def cut(draw: random.Random, question: str, place: int, samples: int) -> Sides:
    """A quarter of one side's answers end in the middle."""
    sides = nothing(draw, question, place, samples)
    return Sides(sides.a, [_half(text) if draw.random() < 0.25 else text for text in sides.b])


CUT_MARK: Final = "\N{SYMBOL FOR END OF TRANSMISSION}"
"""Stands behind a text that was cut, until it becomes an answer."""


def _half(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)]) + CUT_MARK


SCENARIOS: Final[dict[str, Scenario]] = {
    "nothing (A/A)": nothing,
    "region in the system prompt": region,
    "one tenth refused": refused,
    "one quarter cut off": cut,
    "temperature 0.7 against 0.3": temperature,
    "2 of 8 questions differ": sparse,
}
A: Final = CellKey("job", "model", "a")
B: Final = CellKey("job", "model", "b")


def answers(texts: Sequence[str], *, seeds: Sequence[int] | None = None) -> list[Answer]:
    """Answers as the ledger would have them."""
    made: list[Answer] = []
    for sample, marked in enumerate(texts):
        text = marked.removesuffix(CUT_MARK)
        reason = "length" if text != marked else "stop"
        outcome = outcome_of(Ended(completed=True, text=text, finish_reason=reason))
        seed = None if seeds is None else seeds[sample]
        made.append(Answer(sample, outcome, text, seed, cut_off=reason == "length", chars=len(text)))
    return made


def missing(sample: int) -> Answer:
    """An execution that failed."""
    return Answer(sample, Outcome.FAILED, "")


def compared(scenario: Scenario, number: int, plan: Plan) -> Comparison:
    """One job of a scenario, compared."""
    draw = random.Random(f"{scenario.__name__}-{number}")
    job_id = f"job-{number}"
    a, b = A._replace(job_id=job_id), B._replace(job_id=job_id)
    comparer = Comparer(Subject(job_id, (a, b), (Pair(a, b),), Across.REGION))
    for place, question in enumerate(plan.questions):
        sides = scenario(draw, question, place, plan.samples)
        comparer.add(AskedQuestion(place, question, {a: answers(sides.a), b: answers(sides.b)}))
    return comparer.document()
