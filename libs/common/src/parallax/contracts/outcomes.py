"""What came of executions and jobs: the parts that messages, answers and receipts are made of."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from parallax.contracts.job import Parameters
from parallax.contracts.model import Name, RegionName, Strict, Timestamp

Text = Annotated[str, Field(max_length=2_000)]
"""Prose for people: reasons and error messages, cut to a bounded length by whoever writes them."""


class ExecutionStatus(StrEnum):
    """How an execution ended. There is no other way to end."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


class JobOutcome(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Counts(Strict):
    """Executions by terminal status."""

    completed: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[int, Field(ge=0)] = 0
    timed_out: Annotated[int, Field(ge=0)] = 0
    cancelled: Annotated[int, Field(ge=0)] = 0

    @property
    def total(self) -> int:
        """Executions that have ended."""
        return self.completed + self.failed + self.timed_out + self.cancelled


class Reason(Strict):
    """Why something ended: a stable code for machines and a sentence for people."""

    code: Name
    message: Text


class ErrorInfo(Strict):
    """What went wrong with an execution or an attempt.

    ``error_class`` is the kind of failure: ``timeout``, ``rate_limited``, ``unavailable``, ``connection``, ``server``,
    ``protocol``, ``rejected``, ``authentication``, ``not_found``, ``cancelled``, ``dead_letter``, ``deadline``
    or ``internal``; ``code`` is more precise (an HTTP status, the name of the limit that struck).
    """

    error_class: Name
    code: Name
    message: Text
    retryable: bool


class AttemptOutcome(StrEnum):
    """How one try ended."""

    OK = "ok"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


class Attempt(Strict):
    """One try of an execution against the model endpoint."""

    number: Annotated[int, Field(ge=1)]
    started_at: Timestamp
    duration_s: Annotated[float, Field(ge=0)]
    outcome: AttemptOutcome
    http_status: int | None = None
    error: ErrorInfo | None = None
    provider_call_id: Text | None = None
    """The provider's own name of the call: a Modal function call id or an OpenAI completion id."""


class Usage(Strict):
    """Tokens that the provider counted."""

    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


class ChatMessage(Strict):
    """One message of the prompt."""

    role: Literal["system", "user"]
    content: str


class Output(Strict):
    """What the model said. An empty text and a refusal are answers, not errors."""

    text: str
    refusal: str | None = None


class Timings(Strict):
    """Where the time went, in seconds; ``None`` where the provider does not say."""

    queue_s: float | None = None
    """From the publication of the task to the start of its first attempt."""
    first_byte_s: float | None = None
    """From the start of the last attempt to the first byte of its answer."""
    total_s: float | None = None
    """From the start of the last attempt to the end of its answer."""
    provider: dict[str, JsonValue] = Field(default_factory=dict)
    """Timings as the provider reported them."""


class Receipt(Strict):
    """What proves how an answer came about."""

    prompt_sha256: str
    output_sha256: str | None = None
    """SHA-256 of the output's text in UTF-8, as it was received; ``None`` without an answer."""
    model: Name
    """The model's name in the catalog."""
    model_requested: str
    """The name that was sent to the endpoint."""
    model_reported: str | None = None
    """The name that the endpoint says answered."""
    model_revision: str | None = None
    region_claimed: RegionName
    region_observed: str | None = None
    """The region seen from inside the provider, where it says; ``None`` is honest, never a guess."""
    provider: Name
    executor_id: Name
    parameters: Parameters
    timings: Timings = Timings()
    versions: dict[str, str] = Field(default_factory=dict)
    replaced_characters: int = 0
    """Characters no database stores (NUL, lone surrogates) that were replaced by U+FFFD in the output."""
