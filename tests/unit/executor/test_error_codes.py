"""The codes of errors are public data: documented, and independent of any library."""

import re
import socket
import ssl
from pathlib import Path

import pytest

from executor.endpoints.failures import broken_failure, connect_failure
from executor.endpoints.http1 import BrokenError, ConnectError
from executor.error_codes import ErrorCode, http_code
from parallax.contracts.outcomes import ErrorInfo

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


def test_the_page_of_error_codes_lists_exactly_the_codes_of_executors() -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Written by executors")[1].split("The class of a Modal app")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert {code for code in documented if not code.startswith("http_")} == set(ErrorCode)


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (ConnectionRefusedError("no"), "connection_refused"),
        (TimeoutError("no"), "connect_timeout"),
        (socket.gaierror(-2, "no such name"), "name_not_resolved"),
        (UnicodeError("no such name"), "name_not_resolved"),
        (ssl.SSLCertVerificationError("not trusted"), "tls_failed"),
        (OSError("network is down"), "connect_failed"),
    ],
)
def test_a_connection_that_could_not_be_made_has_a_code_for_its_cause(cause: Exception, code: str) -> None:
    error = connect_failure(ConnectError(cause))
    assert (error.info.code, error.not_ready) == (code, True)
    assert type(cause).__name__ in error.info.message, "the library's name is for people alone"


def test_a_connection_that_broke_has_one_code_whatever_library_noticed() -> None:
    error = broken_failure(BrokenError(ConnectionResetError("reset")), 200)
    assert (error.info.code, error.info.retryable) == ("connection_broken", True)


def test_codes_are_plain_text_in_messages() -> None:
    info = ErrorInfo(error_class="internal", code=ErrorCode.UNEXPECTED_ERROR, message="a bug", retryable=False)
    assert ErrorInfo.model_validate_json(info.model_dump_json()) == info
    assert http_code(429) == "http_429"
