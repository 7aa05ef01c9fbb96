"""The job a user submits: questions x models x regions x samples, parameters and limits.

The same model serves the job file, the ``SubmitJob`` message and the API's request body. What a single
field may hold is said here; what needs the whole document or the catalog is checked in
``parallax.contracts.intake``.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue

from parallax.contracts.model import JobId, Name, RegionName, Strict

MAX_QUESTIONS = 20_000
"""A job travels as one message; RabbitMQ 4 refuses messages over 16 MiB by default."""
MAX_MODELS = 100
MAX_REGIONS = 20
MAX_SAMPLES = 100
MAX_BATCH_EXECUTIONS = 5_000
"""Executions of one question (models x regions x samples): they are published inside one transaction."""
MAX_BATCH_BYTES = 256 * 1024 * 1024
"""Prompts of one question: every execution carries its own copy, and a broker has to hold all of them."""
MAX_QUESTION_CHARS = 200_000
MAX_SYSTEM_PROMPT_CHARS = 20_000
MAX_JOB_BYTES = 15 * 1024 * 1024
MAX_DEPTH = 64
"""Levels of nesting in a job: parsers of JSON give up at some 200, and a job travels inside other documents."""
MAX_VALUES = 1_000_000
"""Numbers, texts, lists and objects of a job in all. A parser needs up to 64 bytes for each, so that the largest job
takes no more than 300 MB; 20,000 questions may have 45 tags or 26 columns of metadata each."""
MAX_KEYS = 600_000
"""Keys of all the objects of a job: keys that all differ cost a parser some 200 bytes each."""
MAX_ONLY = 100_000
"""Executions that ``only`` names, which a retry does: they travel in one message."""
MAX_METADATA_BYTES = 64 * 1024
"""Metadata of a job, or of a question, as compact JSON in UTF-8: it is copied into events, rows and answers."""
MAX_TAGS = 50
MAX_CHOICES = 20
"""Answers to a question with more choices are hardly ever one of them word for word."""
MAX_ATTEMPT_TIMEOUT_S = 1200.0
"""RabbitMQ closes a channel whose delivery is unacknowledged for 30 minutes; one attempt stays well below."""


class Barrier(StrEnum):
    """What must be complete before the next question starts."""

    QUESTION = "question"
    """Every model in every region: one lane."""
    REGION = "region"
    """Every model of the same region: one lane per region, so that a fast region need not wait for a slow one."""


Metadata = Annotated[
    dict[str, JsonValue], Field(description=f"JSON of the user's own; at most {MAX_METADATA_BYTES} bytes when compact.")
]
"""Kept as it is. The bound is checked when a job is submitted, not when an older one is read."""

Choice = Annotated[str, Field(min_length=1, max_length=200)]
"""One choice of a closed question."""


def _absent(value: object) -> bool:
    """What is not said is not written, so that an older service can read every question that says nothing new."""
    return value is None


class Question(Strict):
    """One question, asked of every model in every region."""

    id: Name
    text: Annotated[str, Field(min_length=1, max_length=MAX_QUESTION_CHARS)]
    tags: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=MAX_TAGS, strict=False)
    ] = ()
    metadata: Metadata = Field(default_factory=dict)
    choices: Annotated[tuple[Choice, ...], Field(min_length=2, max_length=MAX_CHOICES, strict=False)] | None = Field(
        default=None, exclude_if=_absent
    )
    """Makes the question a closed one: answers are compared by the choice they name."""
    expected: Choice | None = Field(default=None, exclude_if=_absent)
    """The choice that counts as right."""


class Parameters(Strict):
    """Sampling parameters of one call; what is ``None`` is left to the endpoint's default.

    ``seed`` is the seed of sample 0; sample *n* is called with ``seed + n``, so that samples differ.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=8)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None

    def merged_under(self, override: "Parameters") -> "Parameters":
        """These parameters, with every one that ``override`` sets replaced."""
        return self.model_copy(update=override.model_dump(exclude_none=True))


class ModelSelection(Strict):
    """A model as this job uses it: its id in the results, its name in the catalog, its own parameters and regions."""

    id: Name
    model: Name | None = None
    """Name in the catalog; the id when absent."""
    parameters: Parameters = Parameters()
    regions: Annotated[tuple[RegionName, ...], Field(min_length=1, max_length=MAX_REGIONS)] | None = None
    """Where it runs; the job's regions when absent."""

    @property
    def catalog_name(self) -> str:
        """The model's name in the catalog."""
        return self.model or self.id


class Limits(Strict):
    """What bounds a job in time and attempts. Every duration is in seconds."""

    attempt_timeout_s: Annotated[float, Field(gt=0, le=MAX_ATTEMPT_TIMEOUT_S)] = 120.0
    """One attempt, from the start of its call to the end of its answer."""
    first_byte_timeout_s: Annotated[float, Field(gt=0, le=MAX_ATTEMPT_TIMEOUT_S)] | None = None
    """A stricter limit on the time to the first byte of an answer; the attempt's when absent."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    batch_deadline_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = 3600.0
    """One batch, from its opening, waiting in queues included."""
    job_deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0
    """The job, from its start (not from its submission)."""


class StopRule(Strict):
    """Ends a hopeless job: when the failure rate over the batches so far is reached, after some batches."""

    failure_rate: Annotated[float, Field(gt=0, le=1)]
    after_batches: Annotated[int, Field(ge=1, le=MAX_QUESTIONS)] = 1


class ExecutionRef(Strict):
    """Names one execution inside a job."""

    question_id: Name
    model_id: Name
    region: RegionName
    sample: Annotated[int, Field(ge=0, lt=MAX_SAMPLES)] = 0


class JobHead(Strict):
    """A job but for its questions: small, whatever their number."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    models: Annotated[tuple[ModelSelection, ...], Field(min_length=1, max_length=MAX_MODELS)]
    regions: Annotated[tuple[RegionName, ...], Field(min_length=1, max_length=MAX_REGIONS)]
    system_prompt: Annotated[str, Field(max_length=MAX_SYSTEM_PROMPT_CHARS)] | None = None
    """May name ``{region}``, ``{region_name}``, ``{model}`` and ``{question_id}``; braces are doubled to be literal."""
    parameters: Parameters = Parameters()
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    barrier: Barrier = Barrier.QUESTION
    limits: Limits = Limits()
    min_success_rate: Annotated[float, Field(ge=0, le=1)] = 0.67
    """Share of completed executions below which the finished job is ``failed``."""
    stop_when: StopRule | None = None
    retry_of: JobId | None = None
    """The job this one repeats a part of."""
    metadata: Metadata = Field(default_factory=dict)


class JobSpec(JobHead):
    """A whole job. See ``docs/jobs.md`` for the file format."""

    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=MAX_QUESTIONS)]
    only: Annotated[tuple[ExecutionRef, ...], Field(min_length=1, max_length=MAX_ONLY)] | None = None
    """Restricts the job to these executions of its matrix; how a retry asks for just what failed."""
