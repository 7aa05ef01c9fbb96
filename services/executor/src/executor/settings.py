"""What an operator may set on an executor."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from parallax.contracts.model import MAX_NAME_LENGTH
from parallax.errors import InvalidInputError

MAX_BUDGET: Final = 2_000
"""The budget is the prefetch of the region's queue, and quorum queues cap that at 2,000."""

WAITING_PREFETCH: Final = 64
"""Tasks of a waiting queue held at once by an executor whose budget allows it. As many as the budget, so that a model
that has recovered gets all of it again; a larger budget holds a quarter, because every model may hold as many."""


def waiting_prefetch(budget: int) -> int:
    """How many tasks of one model's waiting queue an executor holds at once. They hold no slot."""
    return min(budget, max(WAITING_PREFETCH, budget // 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One executor of one region. Durations are in seconds."""

    region: str = "us"
    executor_id: str = "executor-1"
    budget: int = 10
    """Calls at once, and tasks of the region's queue held at once."""
    heartbeat_s: float = 5.0
    """Results counts an executor as live for 15 s after a heartbeat, so that two may get lost."""
    grace_s: float = 30.0
    """How long calls in flight may go on after a request to stop, before they are aborted and handed back."""
    hand_back_after_s: float = 1_200.0
    """A task that waits this long is published again: RabbitMQ closes channels that hold one for 30 minutes."""
    retry_base_s: float = 0.5
    retry_cap_s: float = 30.0
    breaker_base_s: float = 0.5
    """First wait after an endpoint refused calls; it doubles with every probe that is refused too."""
    breaker_cap_s: float = 15.0
    """Longest wait between two probes: what a recovered endpoint may stand idle for."""
    recent_facts: int = 1_000
    """Facts remembered for redelivered tasks; a connection returns at most one budget of them."""


def from_environment(env: Mapping[str, str]) -> Settings:
    """The settings of this process.

    Raises:
        InvalidInputError: A variable is missing or out of bounds; the message names it.
    """
    region = env.get("PARALLAX_REGION", "")
    if not region:
        raise InvalidInputError(
            "PARALLAX_REGION is not set: it names the region this executor serves, for example 'us'"
        )
    return Settings(
        region=region,
        executor_id=_executor_id(env.get("PARALLAX_EXECUTOR_ID"), region),
        budget=int(_number(env, "PARALLAX_CONCURRENCY", 10, low=1, high=MAX_BUDGET)),
        heartbeat_s=_number(env, "PARALLAX_EXECUTOR_HEARTBEAT_S", 5.0, low=0.1, high=10),
        grace_s=_number(env, "PARALLAX_GRACE_S", 30.0, low=0, high=1_500),
    )


def _executor_id(given: str | None, region: str) -> str:
    if given is None:
        host = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:60]
        return f"{region}-{host}-{uuid4().hex[:6]}"
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}", given):
        raise InvalidInputError(
            f"PARALLAX_EXECUTOR_ID={given!r:.200} is not a name: letters, digits, dot, underscore and dash, "
            f"at most {MAX_NAME_LENGTH} characters"
        )
    return given


def _number(env: Mapping[str, str], name: str, default: float, *, low: float, high: float) -> float:
    text = env.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidInputError(f"{name}={text!r:.100} is not a number from {low:g} to {high:g}")
    return value
