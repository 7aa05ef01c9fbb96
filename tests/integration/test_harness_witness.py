"""The witness hears what is announced, whatever happens to the broker in between."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import aio_pika
import pytest

from parallax.bus.amqp import AmqpBus, connect
from parallax.bus.letters import REASON_HEADER
from parallax.contracts.messages import JobFinished
from parallax.contracts.outcomes import Counts, JobOutcome, Reason
from parallax.contracts.routing import DEAD_LETTERS
from parallax.errors import UnavailableError
from tests.harness.rabbitmq import REGIONS, Node
from tests.harness.witness import Witness

PATIENCE_S = 120.0


async def announce(bus: AmqpBus, job_id: str, outcome: JobOutcome) -> None:
    """Publish the end of a job, however long the broker is away."""
    end = JobFinished(
        job_id=job_id,
        outcome=outcome,
        reason=Reason(code="done", message="done"),
        counts=Counts(completed=1),
        not_started=0,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await bus.publish(end)
            except UnavailableError:
                await asyncio.sleep(0.2)
            else:
                return


async def bury(url: str, namespace: str) -> None:
    """Publish a dead letter, as the bus does."""
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange(f"{namespace}.dead")
        letter = aio_pika.Message(b"poison", headers={REASON_HEADER: "it was poison"})
        await exchange.publish(letter, DEAD_LETTERS.keys[2])


@pytest.mark.rabbitmq
@pytest.mark.slow
async def test_a_witness_outlives_the_broker(rabbitmq_node: Node, namespace: str) -> None:
    witness = Witness(rabbitmq_node.url, namespace)
    async with AsyncExitStack() as stack:
        bus = await connect(rabbitmq_node.url, namespace=namespace, regions=REGIONS, name="test")
        stack.push_async_callback(bus.close)
        listening = asyncio.create_task(witness.listen())
        stack.callback(listening.cancel)
        await witness.listening.wait()
        await announce(bus, "before", JobOutcome.COMPLETED)
        for restart in (("stop_app",), ("start_app",)):
            await asyncio.to_thread(rabbitmq_node.ctl, *restart)
        await announce(bus, "after", JobOutcome.CANCELLED)
        await announce(bus, "after", JobOutcome.CANCELLED)
        await announce(bus, "torn", JobOutcome.CANCELLED)
        await announce(bus, "torn", JobOutcome.COMPLETED)
        await bury(rabbitmq_node.url, namespace)
        await witness.heard_all()
        await witness.forget()
    assert [end["outcome"] for end in witness.finished["before"]] == ["completed"]
    assert witness.contradictions("after") == []
    assert witness.contradictions("torn")
    assert len(witness.dead_letters) == 1
    assert "execution.finished: it was poison" in witness.dead_letters[0]
