"""What the API answers about differences: between regions, models, prompts, or two jobs.

Shares, distances and separations run from 0 to 1. A p or a verdict that must not be told yet is ``null``: of a job
that still runs only sizes are told. ``docs/comparison.md`` explains every number.
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from parallax.contracts.rates import Answer, Outcome, Outcomes, Rate


class Across(StrEnum):
    """What differs between the two sides of a pair."""

    REGION = "region"
    MODEL = "model"
    JOB = "job"
    """The same prompt, model and region in two jobs."""
    PROMPT = "prompt"
    """The same question, model and region in two jobs whose prompts differ."""


class Verdict(StrEnum):
    """What can be said about a pair or about a question of it."""

    DIFFERS = "differs"
    NO_DIFFERENCE_FOUND = "no_difference_found"
    """Which is not "the same": ``visible`` says what would have been found."""
    CANNOT_TELL = "cannot_tell"


class Kind(StrEnum):
    """In what two sides differ."""

    WORDING = "wording"
    REFUSALS = "refusals"
    """Refused or empty answers."""
    CUT_OFF = "cut_off"
    LENGTH = "length"


class Cell(Answer):
    """One model in one region of one job."""

    job_id: str
    model_id: str
    region: str
    outcomes: Outcomes
    within: float | None
    """Mean distance between two answers of this cell to the same question: the repeats on the diagonal."""


class Word(Answer):
    """A word that one side uses more often, with the answers that hold it."""

    word: str
    answers_a: int
    answers_b: int
    share_a: float
    share_b: float


class Choice(Answer):
    """How often one choice of a closed question was made."""

    choice: str
    a: Rate
    b: Rate


class Accuracy(Answer):
    """Shares of expected answers, and their difference with a 95 % interval."""

    a: Rate
    b: Rate
    difference: float
    """Of a minus b, as the mean over questions."""
    low: float
    high: float
    questions: int


class Side(Answer):
    """One side of a pair in one question."""

    answers: int
    """Executions that ended with an answer of any kind, refusals included; the next three are among them."""
    refused: int
    empty: int
    cut_off: int
    missing: int
    """Executions that failed."""
    within: float | None
    median_chars: int
    typical_sample: int | None
    """The sample whose answer is nearest to the others."""
    typical: str | None
    """The beginning of its text."""
    script: str | None
    """The script of most answers."""


class QuestionComparison(Answer):
    """One pair in one question."""

    question_index: int
    question_id: str
    tags: tuple[str, ...]
    closed: bool
    verdict: Verdict | None
    p: float | None
    kinds: tuple[Kind, ...]
    """What differs; empty unless the question does."""
    separation: float | None
    """0: two answers of different sides are as alike as two of the same. 1: all of the difference is between them."""
    noise: float | None
    """The separation that repeats of one side show in at most 95 of 100 cases."""
    visible: float | None
    """The separation that would be found in 80 of 100 cases."""
    between: float | None
    """Mean distance between an answer of a and one of b."""
    a: Side
    b: Side
    words_a: tuple[Word, ...]
    words_b: tuple[Word, ...]
    choices: tuple[Choice, ...]
    accuracy: Accuracy | None
    same_seed: Rate | None
    """How often both sides gave the same answer to the same seed; ``null`` where seeds were not shared."""
    sentence: str


class PairComparison(Answer):
    """Two cells, over all questions."""

    a: Cell
    b: Cell
    label: str
    control: bool
    """Both sides are the same model under the same conditions: what differs here is noise of the provider."""
    verdict: Verdict | None
    p: float | None
    p_by_kind: dict[str, float]
    """What each statistic says by itself: ``everywhere`` and ``sparse`` (both wording), ``refusals``, ``cut_off``,
    ``length``."""
    kinds: tuple[Kind, ...]
    separation: float | None
    noise: float | None
    visible: float | None
    samples: int
    """Answers a side in the median question."""
    samples_to_tell: int | None
    """Answers a side that would be enough to tell anything; ``null`` where there are enough."""
    within_a: float | None
    within_b: float | None
    between: float | None
    questions_different: int
    questions_unknown: int
    accuracy: Accuracy | None
    same_seed: Rate | None
    sentences: tuple[str, ...]
    """The verdict in plain words, then what has to be said with it."""
    questions: tuple[QuestionComparison, ...]
    """The largest separation first."""


class Unmatched(Answer):
    """Something of one job that has no partner in the other."""

    job_id: str
    kind: str
    """``question`` or ``cell``."""
    name: str
    reason: str


class Comparison(Answer):
    """What differs, how much, and how that compares with mere repeats."""

    job_id: str
    with_job_id: str | None
    across: Across
    against: str | None
    final: bool
    """False while a job runs or answers are still being recorded: sizes only."""
    questions: int
    """Questions that are complete and compared."""
    answers: int
    rules_version: int
    """Of the rules that decide what is a refusal."""
    corrections: int
    """Outcomes that were decided by hand."""
    level: float
    """The share of false alarms that the verdicts allow."""
    headlines: tuple[str, ...]
    """The whole in a few sentences, controls first."""
    warnings: tuple[str, ...]
    cells: tuple[Cell, ...]
    controls: tuple[PairComparison, ...]
    pairs: tuple[PairComparison, ...]
    unmatched: tuple[Unmatched, ...]


class ComparisonProgress(Answer):
    """A comparison that is still being computed; ask again for the same."""

    job_id: str
    questions_done: int
    questions: int


class Judgement(Answer):
    """An outcome decided by hand, over the rules."""

    execution_id: UUID
    outcome: Outcome | None
    """``null`` gives the execution back to the rules."""
    by_rules: Outcome
    """What the rules say."""
    rules_version: int
    author: str
    """The id of the key that was used, or ``anonymous``."""
    note: str | None
    at: datetime


class Judgements(Answer):
    """Every decision about a job's outcomes, the newest first."""

    items: tuple[Judgement, ...]
