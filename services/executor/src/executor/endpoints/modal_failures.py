"""What an exception of the Modal SDK means for an execution: one table for each of the three stages of a call.

The exceptions are those of modal 1.6; ``ConflictError`` is an ``InvalidError`` there, so the order of rules counts.
"""

from typing import Any, Final

from aiohttp import ClientError
from modal import exception

from executor.endpoints.port import EndpointError
from executor.error_codes import ErrorCode as Code
from parallax.contracts.outcomes import ErrorInfo
from parallax.text import storable

MAX_MESSAGE_CHARS: Final = 1_500

Rule = tuple[type[BaseException] | tuple[type[BaseException], ...], Code, str, bool]
"""Exceptions, their code, the error class, and whether another attempt makes sense. The first match counts."""

_PERMANENT: Final[tuple[Rule, ...]] = (
    ((exception.AuthError, exception.PermissionDeniedError), Code.PROVIDER_AUTHENTICATION, "authentication", False),
    (exception.NotFoundError, Code.PROVIDER_NOT_FOUND, "not_found", False),
    (exception.VersionError, Code.PROVIDER_CLIENT_OUTDATED, "rejected", False),
    (exception.RequestSizeError, Code.REQUEST_TOO_LARGE, "rejected", False),
    (exception.OutputExpiredError, Code.RESULT_EXPIRED, "rejected", False),
    (
        (exception.SerializationError, exception.DeserializationError),
        Code.PROVIDER_SERIALIZATION,
        "protocol",
        False,
    ),
    (exception.ConflictError, Code.PROVIDER_CONFLICT, "server", True),
    ((exception.InvalidError, exception.UnimplementedError), Code.PROVIDER_REJECTED, "rejected", False),
)
_TRANSIENT: Final[tuple[Rule, ...]] = (
    (exception.ResourceExhaustedError, Code.PROVIDER_RATE_LIMITED, "rate_limited", True),
    (
        (exception.ConnectionError, exception.ServiceError, exception.ClientClosed),
        Code.PROVIDER_UNAVAILABLE,
        "unavailable",
        True,
    ),
    (
        (exception.InternalError, exception.InternalFailure, exception.DataLossError),
        Code.PROVIDER_ERROR,
        "server",
        True,
    ),
)
_BEFORE_THE_CALL: Final[tuple[Rule, ...]] = (
    *_PERMANENT,
    *_TRANSIENT,
    # Long prompts are uploaded first, over plain HTTP.
    ((ClientError, OSError, exception.ExecutionError), Code.UPLOAD_FAILED, "connection", True),
)
_OF_THE_CALL: Final[tuple[Rule, ...]] = (
    *_PERMANENT,
    *_TRANSIENT,
    (exception.FunctionTimeoutError, Code.FUNCTION_TIMEOUT, "timeout", True),
    # What could not be rebuilt here was raised by the container's code: it would be raised again.
    (exception.ExecutionError, Code.REMOTE_EXCEPTION, "internal", False),
    (exception.RemoteError, Code.REMOTE_FAILURE, "server", True),
)
_WAIT: Final = (exception.ResourceExhaustedError, exception.ConnectionError, exception.ServiceError)
"""Modal takes no calls just now: nothing was started, so no attempt is used up."""


def lookup_failure(error: Exception) -> EndpointError:
    """The error for a look-up that failed: nothing has been started."""
    return _before(error)


def call_failure(error: Exception) -> EndpointError:
    """The error for a call that could not be started."""
    return _before(error)


def result_failure(error: Exception) -> EndpointError:
    """The error for a call that ended without a result; what is not Modal's was raised by the container's code."""
    return EndpointError(_info(error, _OF_THE_CALL, (Code.REMOTE_EXCEPTION, "internal", False)))


def polling_may_go_on(error: Exception) -> bool:
    """Whether an error says that Modal could not be asked, rather than how the call ended."""
    asking = (*_WAIT, exception.InternalError, exception.ConflictError, ClientError, OSError)
    return isinstance(error, asking) and not isinstance(error, TimeoutError)


def _before(error: Exception) -> EndpointError:
    info = _info(error, _BEFORE_THE_CALL, (Code.UNEXPECTED_ERROR, "internal", False))
    return EndpointError(info, not_ready=isinstance(error, _WAIT), retry_after_s=_retry_after_s(error))


def _info(error: Exception, rules: tuple[Rule, ...], otherwise: tuple[Code, str, bool]) -> ErrorInfo:
    name = type(error).__name__
    code, error_class, retryable = next((rule[1:] for rule in rules if isinstance(error, rule[0])), otherwise)
    message = f"{name}: {error}" if str(error) else name
    return ErrorInfo(
        error_class=error_class, code=code, message=storable(message)[:MAX_MESSAGE_CHARS], retryable=retryable
    )


def _retry_after_s(error: Exception) -> float | None:
    """What Modal asks clients to wait, where it says so."""
    details: list[Any] = getattr(error, "_grpc_details", None) or []
    asked = (getattr(detail, "retry_after_secs", None) for detail in details)
    return next((float(seconds) for seconds in asked if seconds), None)
