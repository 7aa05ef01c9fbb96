"""What of a long story explains its end."""

import re
from collections.abc import Sequence
from typing import Final

MOST_LINES: Final = 120
_SUBJECT: Final = re.compile(r"job-\d+")
_ALWAYS: Final = re.compile(
    r" at (publish|begin|commit|committed|ack|requeue|reject|depth)|is killed|is dead|asked to stop|starts$|loses"
    r"|drops every|is stopped|goes on$|dropped by|clock jumps|storm is over|gave up|VIOLATION"
)


def essence(story: Sequence[str], violation: str) -> list[str]:
    """The faults, and what happened to the jobs that the violation names, oldest first; the end when it is long."""
    subjects = set(_SUBJECT.findall(violation))
    kept = [
        line
        for line in story
        if "executor_heartbeat" not in line
        and (not subjects or subjects & set(_SUBJECT.findall(line)) or _ALWAYS.search(line))
    ]
    left_out = len(kept) - MOST_LINES
    return kept if left_out <= 0 else [f"... {left_out} earlier lines left out", *kept[-MOST_LINES:]]
