"""What is recorded in place of a fact that is refused, so that its batch need not wait for its deadline."""

from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError

from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.model import Name, RegionName
from parallax.contracts.outcomes import ErrorInfo, ExecutionStatus
from parallax.contracts.plan import BatchRef
from parallax.errors import PoisonError
from parallax.text import storable
from results.facts import Fact, Opening, read_news

REFUSED: Final = "fact_refused"
"""Code of the error of such a fact."""
MAX_REASON_CHARS: Final = 2_000


class _Identity(BaseModel):
    """Which execution a message is about, whatever else it says."""

    kind: Literal["execution_finished"]
    execution_id: UUID
    batch: BatchRef
    batch_size: Annotated[int, Field(ge=1)]
    question_id: Name
    model_id: Name
    model: Name
    region: RegionName
    sample: Annotated[int, Field(ge=0)]


def substitute(body: bytes, reason: str, now: datetime) -> Fact | None:
    """The synthetic fact that the execution failed because what was said of it cannot be stored.

    ``None`` when the message does not say of which execution it is, or contradicts itself there: then nothing but its
    sender knows. An observed fact that arrives later replaces it, as it replaces every synthetic one.
    """
    try:
        identity = _Identity.model_validate_json(body, extra="ignore")
        fact = ExecutionFinished(
            **{name: value for name, value in identity if name != "kind"},
            status=ExecutionStatus.FAILED,
            observed=False,
            error=ErrorInfo(
                error_class="dead_letter",
                code=REFUSED,
                message=storable(f"its fact was refused: {reason}")[:MAX_REASON_CHARS],
                retryable=False,
            ),
            completed_at=now,
        )
        made = read_news(fact.model_dump_json().encode())
    except (ValidationError, PoisonError):
        return None
    assert not isinstance(made, Opening)
    return made
