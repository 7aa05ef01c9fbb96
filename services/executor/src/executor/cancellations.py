"""Which jobs were stopped: what the cancellation stream has said so far. Fences of inspections come with it."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from parallax.bus.ignored import ignored
from parallax.contracts.messages import InspectionFence, JobCancelled, decode
from parallax.contracts.outcomes import Reason
from parallax.contracts.routing import CANCELLATIONS
from parallax.telemetry import get_logger

log = get_logger(__name__)

MAX_JOBS: Final = 50_000
"""About 20 MB; the stream itself is kept for days, and tasks never live longer than their batch deadline."""
MAX_REASON_CHARS: Final = 300


class Cancellations:
    """A follower of the stream. Taking the same entry twice changes nothing."""

    def __init__(self, on_cancel: Callable[[str, Reason], None], on_fence: Callable[[InspectionFence], None]) -> None:
        self._jobs: OrderedDict[str, Reason] = OrderedDict()
        self._on_cancel = on_cancel
        self._on_fence = on_fence

    def take(self, body: bytes) -> None:
        """One entry of the stream; an unreadable one is logged and skipped, so that it cannot hide the next."""
        try:
            message = decode(body)
        except ValidationError as error:
            if ignored(CANCELLATIONS, error):
                return
            log.warning("unreadable entry in the cancellation stream", problems=error.error_count())
            return
        match message:
            case InspectionFence():
                self._on_fence(message)
            case JobCancelled():
                self._cancelled(message)
            case _:
                log.warning("foreign entry in the cancellation stream", kind=message.kind)

    def _cancelled(self, message: JobCancelled) -> None:
        reason = message.reason.model_copy(update={"message": message.reason.message[:MAX_REASON_CHARS]})
        self._on_cancel(message.job_id, reason)
        self._jobs[message.job_id] = reason
        if len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs
