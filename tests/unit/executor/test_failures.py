"""Errors say what to do, whatever their server wrote into them."""

import pytest
from modal import exception

from executor.endpoints.failures import status_failure
from executor.endpoints.modal_failures import result_failure
from executor.endpoints.port import EndpointError

HALF_AN_EMOJI = '{"error": {"message": "all is full \\ud83d"}}'
"""What a server makes that cuts its message in the middle of a character of UTF-16."""


@pytest.mark.parametrize(
    "body", [HALF_AN_EMOJI.encode(), "all is full \ud83d", "all is full \x00", b"all is full \xff"]
)
def test_a_message_that_cannot_be_stored_leaves_the_error_what_it_is(body: bytes | str) -> None:
    failure = status_failure(503, body, "2")
    assert failure.not_ready
    assert failure.retry_after_s == 2.0
    assert failure.info.error_class == "unavailable"
    assert failure.info.message == "HTTP 503: all is full \ufffd"


def test_the_same_holds_for_what_modal_says() -> None:
    failure: EndpointError = result_failure(exception.RemoteError("half \ud83d"))
    assert failure.info.message.endswith("half \ufffd")
