"""The events of a job as server-sent events: replayed from any number, then as they come, then ``done``.

Numbers of a job's events have no gaps and become visible in their order, so reading what is behind the last
number sent misses nothing. Between them ``progress`` tells how many executions have ended; it has no number,
because the next one replaces it.
"""

import weakref
from collections.abc import AsyncIterator
from typing import Final

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.clock import Clock
from parallax.contracts.answers import Progress
from results.api.moments import Moments
from results.api.problems import RETRY_AFTER_S, ApiError, Kind
from results.api.queries import jobs
from results.api.queries.reading import reading
from results.api.settings import ApiSettings

EVENTS_PER_READ: Final = 200
MAX_EVENT_NUMBER: Final = 2**53 - 1
"""Clients in JavaScript read the numbers back exactly up to here."""
RECONNECT_MS: Final = 2_000
SLOWING: Final = 1.1
"""Each look that finds no progress is followed by a longer pause, so that a waiting job costs little."""
SLOWEST: Final = 4
"""How many times the shortest pause the longest one is; it is reached after 15 looks in vain, about 16 s."""


class _Place:
    """One of the places for streams; given back once, however its stream ends."""

    def __init__(self, streams: "Streams") -> None:
        self._streams = streams
        self._given_back = False
        streams.open += 1

    def give_back(self) -> None:
        if not self._given_back:
            self._given_back = True
            self._streams.open -= 1


class Streams:
    """The event streams of one application, of which only so many may be open."""

    def __init__(self, engine: AsyncEngine, clock: Clock, settings: ApiSettings) -> None:
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._moments = Moments(engine, clock, fresh_s=settings.stream_poll_s / 2)
        self.open = 0
        """Streams that were admitted and have not ended."""

    def follow(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """Everything behind event ``after``, to the end of the job. The job must exist.

        The stream counts from now on, not from its first part: a burst of followers is admitted before any is served.

        Raises:
            ApiError: Too many streams are open.
        """
        if self.open >= self._settings.max_streams:
            raise ApiError(
                Kind.TOO_MANY_STREAMS,
                f"{self.open} streams are open, and no more are allowed",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        place = _Place(self)
        parts = self._placed(place, job_id, after)
        weakref.finalize(parts, place.give_back)  # a stream that nobody began to read runs no code at its end
        return parts

    async def _placed(self, place: _Place, job_id: str, after: int) -> AsyncIterator[bytes]:
        try:
            async for part in self._events(job_id, after):
                yield part
        finally:
            place.give_back()

    async def _events(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        yield format_sse_event(comment="the events of a job, then done", retry=RECONNECT_MS)
        told: Progress | None = None
        silent_s = pause_s = 0.0
        shortest_s = self._settings.stream_poll_s
        while True:
            # The moment is read before the events: an end that is seen here has its event among them.
            moment = await self._moments.of(job_id)
            async with reading(self._engine) as connection:
                events = await jobs.events(connection, job_id, after, EVENTS_PER_READ)
            assert moment is not None, "jobs are never deleted"
            for event in events:
                after = event["number"]
                yield format_sse_event(id=str(after), event=event["kind"], data_str=_text(event["data"]))
            if len(events) == EVENTS_PER_READ:
                continue
            news = bool(events) or moment.progress != told
            if moment.progress != told:
                told = moment.progress
                yield format_sse_event(event="progress", data_str=_text(told))
            if moment.over:
                yield format_sse_event(event="done", data_str=_text(moment.progress))
                return
            pause_s = shortest_s if news else min(pause_s * SLOWING, shortest_s * SLOWEST)
            silent_s = pause_s if news else silent_s + pause_s
            await self._clock.sleep(pause_s)
            if silent_s >= self._settings.stream_ping_s:
                silent_s = 0.0
                yield format_sse_event(comment="still here")


def event_number(header: str | None) -> int:
    """Where a client left off, by its ``Last-Event-ID``.

    Raises:
        ApiError: It is not a number that a stream could have given.
    """
    if header is None or header == "":
        return 0
    if header.isascii() and header.isdigit() and len(header) <= 16 and int(header) <= MAX_EVENT_NUMBER:
        return int(header)
    raise ApiError(Kind.INVALID_REQUEST, "Last-Event-ID is not the id of an event")


def _text(data: BaseModel | dict[str, object]) -> str:
    return to_json(data).decode()
