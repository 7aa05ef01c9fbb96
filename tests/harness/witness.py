"""A witness of what users are told: job events on the broker, states in the API's tables, and dead letters."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

from parallax.bus.letters import REASON_HEADER
from tests.harness.installation import Installation

HEARD: Final = ("job.cancelled", "job.finished")
LOOK_S: Final = 0.5
"""Between two looks at what the API would answer."""
RECONNECT_S: Final = 0.2
CONNECT_S: Final = 10.0
HEARD_S: Final = 120.0
MARK_AGAIN_S: Final = 10.0
"""A marker that has not come by then may have been lost with a connection."""
_MARKER: Final = b"all that was announced before is heard"
_TERMINAL: Final = "SELECT job_id, status FROM results.jobs WHERE status IN ('completed', 'failed', 'cancelled')"


class Witness:
    """What was told about each job; anything told twice must have been told alike."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace
        self._name = f"{namespace}.harness"
        self.listening = asyncio.Event()
        """Set once: from then on nothing is missed."""
        self._marked = asyncio.Event()
        self.finished: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        """Different ends that were announced for each job: one, if all is well."""
        self.cancelled: set[str] = set()
        """Jobs whose cancellation was announced."""
        self.shown: dict[str, list[str]] = defaultdict(list)
        """Final states that users could read for each job, in order: one, if all is well."""
        self.dead_letters: list[str] = []

    def contradictions(self, job_id: str) -> list[str]:
        """What users were told about a job that cannot all be true."""
        return contradictions(self.finished[job_id], job_id in self.cancelled, self.shown[job_id])

    async def listen(self) -> None:
        """Hear every message, across every loss of the broker; until cancelled."""
        while True:
            await _attempt(self._listen_once())
            await asyncio.sleep(RECONNECT_S)

    async def _listen_once(self) -> None:
        async with await _connected(self._url) as connection:
            channel, lost = await connection.channel(), asyncio.Event()
            for loss in (connection.close_callbacks, channel.close_callbacks):
                loss.add(lambda *_: lost.set())
            queue = await self._declare(channel)
            await queue.consume(self._hear)
            self.listening.set()
            await lost.wait()

    async def look(self, installation: Installation) -> None:
        """Read the states that users can read, again and again; until cancelled."""
        while True:
            for row in await installation.rows(_TERMINAL):
                states = self.shown[row["job_id"]]
                if not states or states[-1] != row["status"]:
                    states.append(row["status"])
            await asyncio.sleep(LOOK_S)

    async def heard_all(self) -> None:
        """Wait until everything that was announced before is heard: a marker is queued behind it."""
        async with asyncio.timeout(HEARD_S):
            while not self._marked.is_set():
                await _attempt(self._mark())
                with suppress(TimeoutError):
                    async with asyncio.timeout(MARK_AGAIN_S):
                        await self._marked.wait()

    async def _mark(self) -> None:
        async with await _connected(self._url) as connection:
            exchange = (await connection.channel()).default_exchange
            await exchange.publish(aio_pika.Message(_MARKER), self._name)

    async def forget(self) -> None:
        """Remove the queue from the broker."""
        await _attempt(self._forget())

    async def _forget(self) -> None:
        async with await _connected(self._url) as connection:
            await (await connection.channel()).queue_delete(self._name)

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        await channel.set_qos(prefetch_count=100)
        events = await channel.declare_exchange(self._namespace, "topic", durable=True)
        dead = await channel.declare_exchange(f"{self._namespace}.dead", "topic", durable=True)
        queue = await channel.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        for key in HEARD:
            await queue.bind(events, key)
        await queue.bind(dead, "#")
        return queue

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self._note(message)
        await message.ack()

    def _note(self, message: AbstractIncomingMessage) -> None:
        if message.body == _MARKER:
            self._marked.set()
            return
        if message.exchange == f"{self._namespace}.dead":
            reason = str(message.headers.get(REASON_HEADER, message.headers.get("x-death")))
            self.dead_letters.append(f"{message.routing_key}: {reason}; {message.body[:200].decode(errors='replace')}")
            return
        told = json.loads(message.body)
        job_id = told["job_id"]
        if told["kind"] == "job_cancelled":
            self.cancelled.add(job_id)
        elif told not in self.finished[job_id]:
            self.finished[job_id].append(told)


async def _connected(url: str) -> AbstractConnection:
    async with asyncio.timeout(CONNECT_S):
        return await aio_pika.connect(url, timeout=CONNECT_S)


async def _attempt(work: Coroutine[Any, Any, None]) -> None:
    """Do something that may fail in any way: a lost connection even shows as the cancellation of a task."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def contradictions(finished: Sequence[Mapping[str, Any]], cancelled: bool, shown: Sequence[str]) -> list[str]:
    """What cannot all be true: the different ends announced, whether a cancellation was, and the final states shown."""
    ends = [str(end.get("outcome")) for end in finished]
    found = []
    if len(ends) > 1:
        found.append(f"{len(ends)} different ends were announced: {[dict(end) for end in finished]}")
    if cancelled and any(end != "cancelled" for end in ends):
        found.append(f"its cancellation was announced, and its end as {', '.join(ends)}")
    if len(shown) > 1:
        found.append(f"its final state changed: {', '.join(shown)}")
    if ends and shown and ends[-1] != shown[-1]:
        found.append(f"announced as {ends[-1]}, shown as {shown[-1]}")
    return found


@asynccontextmanager
async def witness(installation: Installation) -> AsyncIterator[Witness]:
    """A witness from now on until the end of the block."""
    made = Witness(installation.node.url, installation.namespace)
    tasks = [asyncio.create_task(made.listen()), asyncio.create_task(made.look(installation))]
    try:
        async with asyncio.timeout(HEARD_S):
            await made.listening.wait()
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.forget()
