"""The events of a job as they happen, taken up again after every lost connection without missing one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from httpx_sse import EventSource, ServerSentEvent, SSEError

from parallax.client.transport import Transport
from parallax.errors import UnavailableError

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
GIVE_UP_AFTER: Final = 30
"""Attempts without a single event: with the pauses above, about two minutes."""
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. ``number`` grows within a job; ``kind`` is a name like ``batch.completed``."""

    number: str
    kind: str
    data: dict[str, Any]


async def follow_events(
    transport: Transport,
    path: str,
    *,
    after: str | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[JobEvent]:
    """Every event behind ``after`` up to the last one, ``done`` (which is yielded too).

    Raises:
        UnavailableError: The API could not be reached many times in a row.
    """
    last, failures = after, 0
    while True:
        try:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            async with transport.stream(path, headers=headers) as response:
                async for message in EventSource(response).aiter_sse():
                    failures = 0
                    last = message.id or last
                    event = _event(message)
                    if event is not None:
                        yield event
                        if event.kind == DONE:
                            return
        except SSEError as error:
            raise UnavailableError(f"{transport.url}: does not answer with events: {error}") from error
        except UnavailableError:
            if failures >= GIVE_UP_AFTER:
                raise
        failures += 1
        if failures > GIVE_UP_AFTER:
            raise UnavailableError(f"{transport.url}: the events break off again and again")
        await sleep(min(FIRST_PAUSE_S * 2 ** min(failures - 1, 10), LONGEST_PAUSE_S))


def _event(message: ServerSentEvent) -> JobEvent | None:
    if not message.data and message.event != DONE:
        return None
    try:
        data = message.json() if message.data else {}
    except ValueError:
        return None  # a proxy's noise; what matters is also told by the job itself
    return JobEvent(number=message.id, kind=message.event, data=data if isinstance(data, dict) else {})
