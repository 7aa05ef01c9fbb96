"""Messages of kinds that only a newer version knows, dropped from queues whose readers may do without them."""

from typing import Final

from prometheus_client import Counter
from pydantic import ValidationError

from parallax.contracts.messages import unknown_kind
from parallax.contracts.routing import Queue
from parallax.telemetry import get_logger

IGNORED: Final = Counter(
    "parallax_messages_ignored", "Messages of an unknown kind that were dropped, by queue.", ["queue"]
)

MAX_KIND_CHARS: Final = 100
"""A kind comes from elsewhere: a log line holds no more of it, and a metric nothing."""

log = get_logger(__name__)


def ignored(queue: Queue, error: Exception) -> bool:
    """Whether a message that could not be read is one to drop; if so, that is logged and counted."""
    kind = unknown_kind(error) if queue.news and isinstance(error, ValidationError) else None
    if kind is None:
        return False
    log.info("message_ignored", queue=queue.name, kind=kind[:MAX_KIND_CHARS])
    IGNORED.labels(queue.name).inc()
    return True
