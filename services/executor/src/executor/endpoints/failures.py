"""What an HTTP status or a broken connection means for an execution: one table."""

import math
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from executor.endpoints.answers import error_message
from executor.endpoints.http1 import BrokenError, ConnectError
from executor.endpoints.port import EndpointError
from executor.error_codes import ErrorCode, http_code
from parallax.contracts.outcomes import ErrorInfo
from parallax.text import storable

NOT_READY: Final = frozenset({303, 425, 429, 503})
"""The server is there and takes no calls just now: wait at the gate, no attempt is used up."""

MAX_MESSAGE_CHARS: Final = 1_500

_CLASSES: Final = {
    303: ("unavailable", True),
    401: ("authentication", False),
    403: ("authentication", False),
    404: ("not_found", False),
    408: ("timeout", True),
    425: ("unavailable", True),
    429: ("rate_limited", True),
    503: ("unavailable", True),
}
"""Error class and whether another attempt makes sense; other 5xx do, anything else does not."""


def status_failure(status: int, body: bytes | str, retry_after: str | None, *, streamed: bool = False) -> EndpointError:
    """The error for a status that is no answer; ``streamed`` when it was reported inside an answer already begun."""
    said = storable(error_message(body) if isinstance(body, bytes) else body).strip()[:MAX_MESSAGE_CHARS]
    message = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    error_class, retryable = _class_of(status)
    info = ErrorInfo(error_class=error_class, code=http_code(status), message=message, retryable=retryable)
    return EndpointError(
        info,
        http_status=status,
        retry_after_s=retry_after_s(retry_after, datetime.now(UTC)),
        not_ready=status in NOT_READY and not streamed,
    )


def connect_failure(error: ConnectError) -> EndpointError:
    """The error for a connection that could not be made: the endpoint is not there, so wait for it."""
    info = ErrorInfo(
        error_class="unavailable",
        code=_connect_code(error.cause),
        message=f"no connection: {error}"[:MAX_MESSAGE_CHARS],
        retryable=True,
    )
    return EndpointError(info, not_ready=True)


def broken_failure(error: BrokenError, status: int | None) -> EndpointError:
    """The error for a connection that broke in the middle of a call: try again."""
    message = str(error)[:MAX_MESSAGE_CHARS]
    info = ErrorInfo(error_class="connection", code=ErrorCode.CONNECTION_BROKEN, message=message, retryable=True)
    return EndpointError(info, http_status=status)


def _connect_code(cause: Exception) -> ErrorCode:
    match cause:
        case ConnectionRefusedError():
            return ErrorCode.CONNECTION_REFUSED
        case TimeoutError():
            return ErrorCode.CONNECT_TIMEOUT
        case socket.gaierror() | UnicodeError():  # a name that IDNA cannot encode
            return ErrorCode.NAME_NOT_RESOLVED
        case ssl.SSLError():
            return ErrorCode.TLS_FAILED
        case _:
            return ErrorCode.CONNECT_FAILED


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """The seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _class_of(status: int) -> tuple[str, bool]:
    if known := _CLASSES.get(status):
        return known
    return ("server", True) if status >= 500 else ("rejected", False)
