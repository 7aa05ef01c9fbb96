"""A witness of what users are told: job events on the broker, states in the API's tables, and dead letters."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import AMQPError

from parallax.bus.letters import REASON_HEADER
from tests.harness.installation import Installation

HEARD: Final = ("job.cancelled", "job.finished")
LOOK_S: Final = 0.5
"""Between two looks at what the API would answer."""
RECONNECT_S: Final = 0.2
LOSSES: Final = (AMQPError, OSError, RuntimeError, TimeoutError, asyncio.TimeoutError)
_TERMINAL: Final = "SELECT job_id, status FROM results.jobs WHERE status IN ('completed', 'failed', 'cancelled')"


class Witness:
    """What was told about each job; anything told twice must have been told alike."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._name = f"{installation.namespace}.harness"
        self._queue: AbstractQueue | None = None
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
            with suppress(*LOSSES):
                async with asyncio.timeout(30):
                    connection = await aio_pika.connect(self._installation.node.url, timeout=10)
                async with connection:
                    self._queue = await self._declare(await connection.channel())
                    await self._queue.consume(self._hear)
                    await connection.closed()
            self._queue = None
            await asyncio.sleep(RECONNECT_S)

    async def look(self) -> None:
        """Read the states that users can read, again and again; until cancelled."""
        while True:
            for row in await self._installation.rows(_TERMINAL):
                states = self.shown[row["job_id"]]
                if not states or states[-1] != row["status"]:
                    states.append(row["status"])
            await asyncio.sleep(LOOK_S)

    async def heard_all(self) -> None:
        """Wait until nothing that was announced is still unheard."""
        async with asyncio.timeout(60):
            while True:
                with suppress(*LOSSES):
                    if self._queue is not None and not (await self._queue.declare()).message_count:
                        return
                await asyncio.sleep(RECONNECT_S)

    async def forget(self) -> None:
        """Remove the queue from the broker."""
        with suppress(*LOSSES):
            async with asyncio.timeout(10), await aio_pika.connect(self._installation.node.url) as connection:
                await (await connection.channel()).queue_delete(self._name)

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        await channel.set_qos(prefetch_count=100)
        namespace = self._installation.namespace
        events = await channel.declare_exchange(namespace, "topic", durable=True)
        dead = await channel.declare_exchange(f"{namespace}.dead", "topic", durable=True)
        queue = await channel.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        for key in HEARD:
            await queue.bind(events, key)
        await queue.bind(dead, "#")
        return queue

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self._note(message)
        with suppress(*LOSSES):
            await message.ack()

    def _note(self, message: AbstractIncomingMessage) -> None:
        if message.exchange == f"{self._installation.namespace}.dead":
            reason = str(message.headers.get(REASON_HEADER, message.headers.get("x-death")))
            self.dead_letters.append(f"{message.routing_key}: {reason}; {message.body[:200].decode(errors='replace')}")
            return
        told = json.loads(message.body)
        job_id = told["job_id"]
        if told["kind"] == "job_cancelled":
            self.cancelled.add(job_id)
        elif told not in self.finished[job_id]:
            self.finished[job_id].append(told)


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
    made = Witness(installation)
    tasks = [asyncio.create_task(made.listen()), asyncio.create_task(made.look())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.forget()
