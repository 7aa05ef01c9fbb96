"""What every exception of the SDK means for an execution, by the stage in which it comes."""

import aiohttp
import pytest
from modal import exception

from executor.endpoints.modal_failures import call_failure, lookup_failure, polling_may_go_on, result_failure
from executor.error_codes import ErrorCode

PERMANENT = [
    (exception.AuthError("bad token"), "authentication"),
    (exception.PermissionDeniedError("not yours"), "authentication"),
    (exception.NotFoundError("no such app"), "not_found"),
    (exception.InvalidError("what?"), "rejected"),
    (exception.UnimplementedError("not here"), "rejected"),
    (exception.VersionError("too old"), "rejected"),
    (exception.RequestSizeError("too large"), "rejected"),
    (exception.OutputExpiredError("gone"), "rejected"),
    (exception.SerializationError("cannot"), "protocol"),
    (exception.DeserializationError("cannot"), "protocol"),
]
RETRYABLE = [
    (exception.ConnectionError("away"), "unavailable"),
    (exception.ServiceError("away"), "unavailable"),
    (exception.ResourceExhaustedError("rate limit"), "rate_limited"),
    (exception.InternalError("oops"), "server"),
    (exception.InternalFailure("oops"), "server"),
    (exception.DataLossError("oops"), "server"),
    (exception.ConflictError("aborted"), "server"),
]


@pytest.mark.parametrize(("error", "error_class"), PERMANENT)
def test_permanent_errors_are_permanent_in_every_stage(error: Exception, error_class: str) -> None:
    for failure in (lookup_failure(error), call_failure(error), result_failure(error)):
        assert (failure.info.error_class, failure.info.retryable) == (error_class, False)
        assert not failure.not_ready
        assert failure.info.code in set(ErrorCode)
        assert type(error).__name__ in failure.info.message, "the library's name is for people alone"
        assert str(error) in failure.info.message


@pytest.mark.parametrize(("error", "error_class"), RETRYABLE)
def test_what_may_pass_is_worth_another_attempt_in_every_stage(error: Exception, error_class: str) -> None:
    for failure in (lookup_failure(error), call_failure(error), result_failure(error)):
        assert (failure.info.error_class, failure.info.retryable) == (error_class, True)


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (exception.ResourceExhaustedError("rate limit"), True),
        (exception.ConnectionError("away"), True),
        (exception.ServiceError("away"), True),
        (exception.InternalError("oops"), False),
        (exception.ConflictError("aborted"), False),
        (exception.AuthError("bad token"), False),
    ],
)
def test_only_what_starts_nothing_waits_at_the_gate(error: Exception, waits: bool) -> None:
    assert call_failure(error).not_ready is waits
    assert not result_failure(error).not_ready, "a call was made: it used up its attempt"


@pytest.mark.parametrize(
    ("error", "error_class", "retryable"),
    [
        (exception.FunctionTimeoutError("1200 s"), "timeout", True),
        (exception.RemoteError("cancelled"), "server", True),
        (exception.ExecutionError("could not rebuild"), "internal", False),
        (ZeroDivisionError("in the container"), "internal", False),
    ],
)
def test_how_a_call_ended(error: Exception, error_class: str, retryable: bool) -> None:
    failure = result_failure(error)
    assert (failure.info.error_class, failure.info.retryable) == (error_class, retryable)


@pytest.mark.parametrize(
    "error", [aiohttp.ClientError("reset"), OSError("unreachable"), exception.ExecutionError("upload failed: 503")]
)
def test_an_upload_that_fails_is_worth_another_attempt(error: Exception) -> None:
    failure = call_failure(error)
    assert (failure.info.error_class, failure.info.retryable, failure.not_ready) == ("connection", True, False)


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (exception.ServiceError("away"), True),
        (exception.ConnectionError("away"), True),
        (exception.ResourceExhaustedError("rate limit"), True),
        (exception.InternalError("oops"), True),
        (OSError("unreachable"), True),
        (TimeoutError("the function's own"), False),
        (exception.RemoteError("cancelled"), False),
        (exception.FunctionTimeoutError("1200 s"), False),
        (exception.AuthError("revoked"), False),
        (ZeroDivisionError("in the container"), False),
    ],
)
def test_polling_goes_on_while_modal_cannot_be_asked(error: Exception, goes_on: bool) -> None:
    assert polling_may_go_on(error) is goes_on


def test_an_error_without_words_and_one_with_too_many() -> None:
    assert call_failure(exception.InternalError()).info.message == "InternalError"
    assert len(call_failure(exception.InternalError("x" * 9_999)).info.message) <= 2_000
