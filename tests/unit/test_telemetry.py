"""Logs say what failed, and keep what it failed with to themselves."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from parallax.telemetry import configure_logging, get_logger

configure_logging(sys.argv[1])

def open_door(key):
    raise RuntimeError("the door is stuck")

try:
    open_door("".join(["se", "cret"]))
except RuntimeError as error:
    get_logger("test").error("failed", exc_info=error)
"""


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_a_traceback_tells_no_local_variables(log_format: str) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, check=True)
    assert "the door is stuck" in ran.stderr
    assert "open_door" in ran.stderr
    assert "secret" not in ran.stderr
