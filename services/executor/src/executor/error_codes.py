"""The codes of errors that an executor writes: a closed set of our own, listed in ``docs/errors.md``.

Users filter and count by them, so that no code may depend on the name of a library's class: that goes into the message.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """What an executor found wrong. Statuses of HTTP have codes of their own, see ``http_code``."""

    # limits
    ATTEMPT_TIMEOUT = "attempt_timeout_s"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout_s"
    STALL_TIMEOUT = "stall_timeout_s"
    BATCH_DEADLINE = "batch_deadline_s"
    # the connection to an OpenAI-compatible server
    CONNECTION_REFUSED = "connection_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    NAME_NOT_RESOLVED = "name_not_resolved"
    TLS_FAILED = "tls_failed"
    CONNECT_FAILED = "connect_failed"
    CONNECTION_BROKEN = "connection_broken"
    # its answers
    MALFORMED_ANSWER = "malformed_answer"
    FOREIGN_REDIRECT = "foreign_redirect"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    # Modal
    PROVIDER_AUTHENTICATION = "provider_authentication"
    PROVIDER_NOT_FOUND = "provider_not_found"
    PROVIDER_REJECTED = "provider_rejected"
    PROVIDER_CLIENT_OUTDATED = "provider_client_outdated"
    PROVIDER_SERIALIZATION = "provider_serialization"
    PROVIDER_RATE_LIMITED = "provider_rate_limited"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_ERROR = "provider_error"
    PROVIDER_CONFLICT = "provider_conflict"
    REQUEST_TOO_LARGE = "request_too_large"
    RESULT_EXPIRED = "result_expired"
    UPLOAD_FAILED = "upload_failed"
    LOOKUP_TIMEOUT = "lookup_timeout"
    FUNCTION_TIMEOUT = "function_timeout"
    REMOTE_EXCEPTION = "remote_exception"
    REMOTE_FAILURE = "remote_failure"
    # this executor
    UNKNOWN_MODEL = "unknown_model"
    FACT_NOT_BUILT = "fact_not_built"
    UNEXPECTED_ERROR = "unexpected_error"


def http_code(status: int) -> str:
    """The code of an HTTP status that is no answer: ``http_429``."""
    return f"http_{status}"
