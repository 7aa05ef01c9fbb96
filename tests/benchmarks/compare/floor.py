"""The raw floor: what the same messages and rows cost when nothing decides anything.

``python -m tests.benchmarks.compare.floor publisher|executor|recorder``, laid out like Parallax: the publisher
sends the tasks of one question, an executor per region answers each with a fact, the recorder inserts what is
waiting and says which questions are complete. Persistent messages in quorum queues, publisher confirms, a commit
before every acknowledgement; no validation, no deadlines, no cancellation, nothing survives a restart.

All that a message says is in its ``message_id``; its body is bytes of the size of the corresponding message of
Parallax. A ``done`` message names a question that is complete, and the publisher sends the next one.
"""

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from os import environ
from typing import Final

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.benchmarks.compare.figures import BATCH_SIZE, REGIONS

PREFETCH: Final = 10
"""Of an executor: the default concurrency of one of Parallax."""
RECORDER_PREFETCH: Final = 1000
MAX_FLUSH: Final = 500
PUBLISH_TIMEOUT_S: Final = 30.0
QUORUM: Final = {"x-queue-type": "quorum"}

FACTS: Final = "bench-floor.facts"
DONE: Final = "bench-floor.done"


def tasks(region: str) -> str:
    """The queue of one region."""
    return f"bench-floor.tasks.{region}"


QUEUES: Final = (FACTS, DONE, *(tasks(region) for region in REGIONS))

INSERT: Final = (
    "INSERT INTO executions (job_id, question_index, cell, region, started_at, completed_at, fact)"
    " SELECT * FROM unnest"
    "($1::text[], $2::int[], $3::int[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::text[])"
    " ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Done:
    """A question that is complete; the next one is sent while it is below ``last``."""

    job: str
    question: int
    last: int
    """Index of the job's last question; -1 lets the recorder say nothing, for a run without a barrier."""

    def encode(self) -> str:
        """As a message id."""
        return f"{self.job}/{self.question}/{self.last}"

    @classmethod
    def decode(cls, text: str | None) -> "Done":
        """From a message id."""
        job, question, last = (text or "").split("/")
        return cls(job, int(question), int(last))


class Link:
    """Two connections, as every service of Parallax has them: one publishes, one consumes."""

    def __init__(self, publishing: AbstractChannel, consuming: AbstractChannel) -> None:
        self._publishing = publishing
        self._consuming = consuming

    @classmethod
    async def connect(cls, url: str) -> "Link":
        """Connect."""
        publishing = await (await aio_pika.connect(url)).channel(publisher_confirms=True, on_return_raises=True)
        return cls(publishing, await (await aio_pika.connect(url)).channel())

    async def queue(self, name: str, prefetch: int) -> aio_pika.abc.AbstractQueue:
        """A durable quorum queue, and how much of it is taken at once."""
        await self._consuming.set_qos(prefetch_count=prefetch)
        return await self._consuming.declare_queue(name, durable=True, arguments=dict(QUORUM))

    async def publish(self, queue: str, message_id: str, body: bytes) -> None:
        """Publish a persistent message; returns when it is confirmed."""
        message = aio_pika.Message(body, message_id=message_id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        async with asyncio.timeout(PUBLISH_TIMEOUT_S):
            await self._publishing.default_exchange.publish(message, queue, mandatory=True)


async def publisher(link: Link, body: bytes) -> None:
    """Send the tasks of the question that follows a complete one."""
    queue = await link.queue(DONE, 100)

    async def on_done(message: AbstractIncomingMessage) -> None:
        done = Done.decode(message.message_id)
        question = done.question + 1
        if done.last < 0 or question <= done.last:
            await asyncio.gather(
                *(
                    link.publish(tasks(REGIONS[cell % 3]), f"{done.job}/{question}/{done.last}/{cell}", body)
                    for cell in range(BATCH_SIZE)
                )
            )
        await message.ack()

    await queue.consume(on_done)


async def executor(link: Link, region: str, body: bytes) -> None:
    """Answer every task of a region with a fact, at once."""
    queue = await link.queue(tasks(region), PREFETCH)

    async def on_task(message: AbstractIncomingMessage) -> None:
        started, completed = time.time(), time.time()
        await link.publish(FACTS, f"{message.message_id}/{region}/{started}/{completed}", body)
        await message.ack()

    await queue.consume(on_task)


class Recorder:
    """Inserts what is waiting in one statement, then says which questions are complete, then acknowledges."""

    def __init__(self, link: Link, database: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._link = link
        self._database = database
        self._waiting: list[AbstractIncomingMessage] = []
        self._arrived = asyncio.Event()
        self._counts: Counter[str] = Counter()

    async def start(self) -> None:
        """Begin to take facts."""
        queue = await self._link.queue(FACTS, RECORDER_PREFETCH)
        await queue.consume(self._take)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._waiting.append(message)
        self._arrived.set()

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:MAX_FLUSH], self._waiting[MAX_FLUSH:]
            if not self._waiting:
                self._arrived.clear()
            await self._flush(batch)

    async def _flush(self, messages: list[AbstractIncomingMessage]) -> None:
        facts = [(message.message_id or "").split("/") for message in messages]
        await self._database.execute(
            INSERT,
            [fact[0] for fact in facts],
            [int(fact[1]) for fact in facts],
            [int(fact[3]) for fact in facts],
            [fact[4] for fact in facts],
            [datetime.fromtimestamp(float(fact[5]), UTC) for fact in facts],
            [datetime.fromtimestamp(float(fact[6]), UTC) for fact in facts],
            [message.body.decode() for message in messages],
        )
        await asyncio.gather(*(self._link.publish(DONE, done.encode(), b"") for done in self._completed(facts)))
        await messages[-1].ack(multiple=True)

    def _completed(self, facts: list[list[str]]) -> list[Done]:
        completed = []
        for job, question, last, *_ in facts:
            key = f"{job}/{question}"
            self._counts[key] += 1
            if self._counts[key] == BATCH_SIZE:
                del self._counts[key]
                if int(last) >= 0:
                    completed.append(Done(job, int(question), int(last)))
        return completed


async def main(role: str, environment: Mapping[str, str]) -> None:
    """Run one process of the floor until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    link = await Link.connect(environment["BENCH_AMQP_URL"])
    recording: asyncio.Task[None] | None = None
    if role == "publisher":
        await publisher(link, b"x" * int(environment["BENCH_TASK_BYTES"]))
    elif role == "executor":
        await executor(link, environment["BENCH_REGION"], b"x" * int(environment["BENCH_FACT_BYTES"]))
    else:
        recorder = Recorder(link, await asyncpg.connect(environment["BENCH_DATABASE_URL"]))
        await recorder.start()
        recording = asyncio.create_task(recorder.run())
    stopped = asyncio.create_task(stopping.wait())
    finished, _ = await asyncio.wait([stopped, *filter(None, [recording])], return_when=asyncio.FIRST_COMPLETED)
    for task in finished:
        task.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], environ))
