"""What came of executions as the API counts it: classes, shares and their intervals."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """The base of everything the API answers; what a newer service adds is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Outcome(StrEnum):
    """What came of an execution, as people count it."""

    ANSWERED = "answered"
    REFUSED_IN_WORDS = "refused_in_words"
    """The text reads like a refusal; found by a list of patterns."""
    REFUSED_BY_FIELD = "refused_by_field"
    """The provider marked the answer as a refusal."""
    REFUSED_BY_FILTER = "refused_by_filter"
    """A filter of the provider stopped the question or the answer."""
    EMPTY = "empty"
    CUT_OFF = "cut_off"
    """Ended by the limit of tokens."""
    FAILED = "failed"
    """Failed, timed out or was cancelled: missing, and no answer of any kind."""


class Rate(Answer):
    """A share with its 95 % Wilson interval."""

    count: int
    total: int
    share: float
    low: float
    high: float


class Outcomes(Answer):
    """How many executions of each class, and the rates that people ask for."""

    answered: int
    refused_in_words: int
    refused_by_field: int
    refused_by_filter: int
    empty: int
    cut_off: int
    failed: int
    refused: Rate
    """Refusals of all three kinds, of everything but what failed."""
    silent: Rate
    """Refused or empty, of the same."""
    cut: Rate
    """Ended by the limit of tokens, of the same."""
    missing: Rate
    """Failed, of everything."""
