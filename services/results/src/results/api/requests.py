"""The bodies of requests, apart from the job itself, which is ``parallax.contracts.job.JobSpec``."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from parallax.contracts.model import JobId, Name, RegionName
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.rates import Outcome


def _storable(text: str) -> str:
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("holds a NUL character or half of a surrogate pair")
    return text


StorableText = Annotated[str, AfterValidator(_storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
"""Text a database can keep."""


class Request(BaseModel):
    """The base of every request body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CancelRequest(Request):
    """Why the job is cancelled."""

    reason: Annotated[StorableText, Field(min_length=1, max_length=2_000)] = "cancelled by user"


class RetryRequest(Request):
    """Which executions the derived job repeats."""

    status: Annotated[tuple[ExecutionStatus, ...], Field(min_length=1, max_length=4, strict=False)] = (
        ExecutionStatus.FAILED,
        ExecutionStatus.TIMED_OUT,
    )
    question: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    model: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    region: Annotated[tuple[RegionName, ...], Field(max_length=20)] = ()
    job_id: JobId | None = None
    """The id of the derived job, so that the request can be repeated safely."""


class JudgeRequest(Request):
    """What an answer is, whatever the rules say; ``null`` leaves it to the rules again."""

    outcome: Annotated[Outcome | None, Field(strict=False)]
    note: Annotated[StorableText, Field(min_length=1, max_length=2_000)] | None = None
    """Why."""
