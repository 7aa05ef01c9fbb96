"""Which jobs were stopped: what the cancellation stream has said so far. Fences of inspections come with it."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from parallax.contracts.messages import InspectionFence, JobCancelled
from parallax.contracts.outcomes import Reason
from parallax.telemetry import get_logger

log = get_logger(__name__)

MAX_JOBS: Final = 50_000
"""About 20 MB; the stream itself is kept for days, and tasks never live longer than their batch deadline."""
MAX_REASON_CHARS: Final = 300

_ENTRY: Final = TypeAdapter[JobCancelled | InspectionFence](
    Annotated[JobCancelled | InspectionFence, Field(discriminator="kind")]
)


class Cancellations:
    """A follower of the stream. Taking the same entry twice changes nothing."""

    def __init__(self, on_cancel: Callable[[str, Reason], None], on_fence: Callable[[InspectionFence], None]) -> None:
        self._jobs: OrderedDict[str, Reason] = OrderedDict()
        self._on_cancel = on_cancel
        self._on_fence = on_fence

    def take(self, body: bytes) -> None:
        """One entry of the stream; an unreadable one is logged and skipped, so that it cannot hide the next."""
        try:
            message = _ENTRY.validate_json(body)
        except ValidationError as error:
            log.warning("unreadable entry in the cancellation stream", problems=error.error_count())
            return
        if isinstance(message, InspectionFence):
            self._on_fence(message)
            return
        reason = message.reason.model_copy(update={"message": message.reason.message[:MAX_REASON_CHARS]})
        self._on_cancel(message.job_id, reason)
        self._jobs[message.job_id] = reason
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs
