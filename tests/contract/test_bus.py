"""What every bus promises (``parallax.bus.port``), checked on each of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from yarl import URL

from parallax.bus import letters
from parallax.bus.port import MAX_DELIVERIES, Bus, Consumption, Delivery, Following
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, JobCancelled, decode
from parallax.contracts.outcomes import Reason
from parallax.contracts.routing import Queue
from parallax.errors import StaleDeliveryError, UnavailableError, UnroutableError
from tests.contract.buses import WAIT_S, AmqpInstallation, Installation, MemoryInstallation
from tests.harness.proxy import proxy
from tests.harness.rabbitmq import delete_namespace

QUEUE = routing.PROGRESS
NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
async def installation(request: pytest.FixtureRequest) -> AsyncIterator[Installation]:
    """An empty installation on the memory bus and on RabbitMQ."""
    if request.param == "memory":
        memory = MemoryInstallation()
        yield memory
        await memory.close()
        return
    url, namespace = str(request.getfixturevalue("amqp_url")), f"test-{uuid4().hex[:12]}"
    server = URL(url)
    assert server.host is not None
    async with proxy(server.host, server.port or 5672) as between:
        real = AmqpInstallation(url, namespace, between)
        yield real
        await real.close()
    await delete_namespace(url, namespace)


@pytest.fixture
async def bus(installation: Installation) -> Bus:
    """A client of the installation."""
    return await installation.client()


class Hands:
    """A consumer that keeps every delivery until the test settles it."""

    def __init__(self) -> None:
        self.held: list[Delivery] = []
        self._changed = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self._changed.set()

    async def hold(self, count: int) -> list[Delivery]:
        """Wait until this many were delivered in all."""
        async with asyncio.timeout(WAIT_S):
            while len(self.held) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.held

    def jobs(self) -> list[str]:
        """The job ids of what was delivered."""
        return [job_of(delivery.body) for delivery in self.held]


def cancel(job_id: str) -> CancelJob:
    """A message for ``QUEUE``."""
    return CancelJob(job_id=job_id)


def cancelled(job_id: str) -> JobCancelled:
    """An entry of the cancellation stream."""
    return JobCancelled(job_id=job_id, reason=Reason(code="cancelled", message="by the test"), cancelled_at=NOW)


def job_of(body: bytes) -> str:
    """The job a message is about."""
    message = decode(body)
    assert isinstance(message, CancelJob | JobCancelled)
    return message.job_id


async def is_live(consumer: Consumption | Following) -> bool:
    """Ask anew: a type checker takes a property for a constant."""
    return consumer.live


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def depth_becomes(bus: Bus, queue: Queue, count: int) -> None:
    """Wait until a queue holds so many waiting messages."""
    async with asyncio.timeout(WAIT_S):
        while await bus.depth(queue) != count:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)


async def test_what_is_published_is_delivered_as_it_was(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=10, handler=hands)
    message = CancelJob(job_id="job-1", reason="ünï ☃ \x00")
    await bus.publish(message)
    (delivery,) = await hands.hold(1)
    assert decode(delivery.body) == message
    assert delivery.delivery_count == 0
    assert delivery.reply_to is None
    await delivery.ack()
    await depth_becomes(bus, QUEUE, 0)


async def test_many_messages_of_one_call_all_arrive_once(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=2000, handler=hands)
    await bus.publish(*(cancel(f"job-{n}") for n in range(1000)))
    await hands.hold(1000)
    assert sorted(hands.jobs()) == sorted(f"job-{n}" for n in range(1000))


async def test_a_message_goes_to_every_queue_bound_to_its_key(bus: Bus) -> None:
    await bus.publish(cancelled("job-1"))
    seen: list[bytes] = []
    await bus.follow(routing.CANCELLATIONS, seen.append)
    await depth_becomes(bus, routing.EVENTS, 1)
    assert [job_of(body) for body in seen] == ["job-1"]


async def test_two_consumers_compete_for_the_messages_of_a_queue(installation: Installation) -> None:
    first, second = Hands(), Hands()
    one, other = await installation.client(), await installation.client()
    await one.consume(QUEUE, prefetch=3, handler=first)
    await other.consume(QUEUE, prefetch=3, handler=second)
    await one.publish(*(cancel(f"job-{n}") for n in range(6)))
    await first.hold(3)
    await second.hold(3)
    assert sorted(first.jobs() + second.jobs()) == [f"job-{n}" for n in range(6)]


async def test_no_more_than_prefetch_are_unsettled(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=2, handler=hands)
    await bus.publish(*(cancel(f"job-{n}") for n in range(5)))
    await hands.hold(2)
    await depth_becomes(bus, QUEUE, 3)
    assert len(hands.held) == 2
    await hands.held[0].ack()
    await hands.hold(3)
    await depth_becomes(bus, QUEUE, 2)


@pytest.mark.parametrize("prefetch", [0, -1])
async def test_a_consumer_without_a_bound_is_refused(bus: Bus, prefetch: int) -> None:
    with pytest.raises(ValueError, match="prefetch"):
        await bus.consume(QUEUE, prefetch=prefetch, handler=Hands())


async def test_multiple_settles_every_earlier_delivery(bus: Bus) -> None:
    hands = Hands()
    consumption = await bus.consume(QUEUE, prefetch=3, handler=hands)
    await bus.publish(*(cancel(f"job-{n}") for n in range(3)))
    deliveries = await hands.hold(3)
    await deliveries[1].ack(multiple=True)
    await consumption.close()
    await depth_becomes(bus, QUEUE, 1)
    again = Hands()
    await bus.consume(QUEUE, prefetch=3, handler=again)
    await again.hold(1)
    assert again.jobs() == [job_of(deliveries[2].body)]


async def test_a_delivery_is_settled_once(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=3, handler=hands)
    await bus.publish(cancel("job-0"))
    await hands.hold(1)
    await bus.publish(cancel("job-1"))
    earlier, later = await hands.hold(2)
    await later.ack(multiple=True)
    for settle in (later.ack, later.requeue, earlier.ack, earlier.requeue):
        with pytest.raises(RuntimeError, match="settled before"):
            await settle()
    with pytest.raises(RuntimeError, match="settled before"):
        await earlier.reject("again")
    await bus.publish(cancel("job-2"))
    await hands.hold(3)  # the consumer lives on


async def test_a_requeued_message_comes_back_and_says_so(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=1, handler=hands)
    await bus.publish(cancel("job-1"))
    (delivery,) = await hands.hold(1)
    await delivery.requeue()
    _, again = await hands.hold(2)
    assert again.body == delivery.body
    assert again.delivery_count >= 1


async def test_what_a_closed_consumer_held_goes_to_another(installation: Installation) -> None:
    one, other = await installation.client(), await installation.client()
    first, second = Hands(), Hands()
    consumption = await one.consume(QUEUE, prefetch=2, handler=first)
    await one.publish(cancel("job-1"), cancel("job-2"))
    held = list(await first.hold(2))
    await other.consume(QUEUE, prefetch=2, handler=second)
    await consumption.close()
    await second.hold(2)
    assert sorted(second.jobs()) == ["job-1", "job-2"]
    for settle in (held[0].ack, held[0].requeue):
        with pytest.raises(StaleDeliveryError):
            await settle()
    with pytest.raises(StaleDeliveryError):
        await held[0].reject("too late")


async def test_what_a_closed_client_held_goes_to_another(installation: Installation) -> None:
    one, other = await installation.client(), await installation.client()
    first, second = Hands(), Hands()
    await one.consume(QUEUE, prefetch=2, handler=first)
    await other.publish(cancel("job-1"))
    await first.hold(1)
    await one.close()
    await other.consume(QUEUE, prefetch=2, handler=second)
    await second.hold(1)
    assert second.jobs() == ["job-1"]
    with pytest.raises(UnavailableError):
        await one.publish(cancel("job-2"))


async def test_a_stopped_consumer_takes_nothing_more_but_can_settle(bus: Bus) -> None:
    hands = Hands()
    consumption = await bus.consume(QUEUE, prefetch=10, handler=hands)
    await bus.publish(cancel("job-1"))
    (delivery,) = await hands.hold(1)
    assert await is_live(consumption)
    await consumption.stop()
    assert not await is_live(consumption)
    await bus.publish(cancel("job-2"))
    await delivery.ack()
    await consumption.close()
    await depth_becomes(bus, QUEUE, 1)
    assert hands.jobs() == ["job-1"]


async def test_a_lost_connection_is_made_again_and_its_deliveries_come_back(installation: Installation) -> None:
    bus = await installation.client()
    hands = Hands()
    consumption = await bus.consume(QUEUE, prefetch=2, handler=hands)
    await bus.publish(cancel("job-1"))
    (delivery,) = await hands.hold(1)
    await installation.cut(consumption)
    with pytest.raises(StaleDeliveryError):
        await delivery.ack()
    _, again = await hands.hold(2)
    await again.ack()
    await eventually(lambda: consumption.live)
    await publish_until_done(bus, cancel("job-2"))
    await hands.hold(3)
    assert hands.jobs() == ["job-1", "job-1", "job-2"]


async def publish_until_done(bus: Bus, message: CancelJob | JobCancelled) -> None:
    """Publish as services do: again, while the broker is unavailable."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await bus.publish(message)
            except UnavailableError:
                await asyncio.sleep(0.1)
            else:
                return


async def test_a_rejected_message_is_kept_with_its_reason(bus: Bus) -> None:
    hands, dead = Hands(), Hands()
    await bus.consume(QUEUE, prefetch=1, handler=hands)
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=dead)
    await bus.publish(cancel("job-1"))
    (delivery,) = await hands.hold(1)
    await delivery.reject("nobody \ud800 can read this " + "x" * 5000)
    (letter,) = await dead.hold(1)
    assert letter.body == delivery.body
    reason = letter.headers[letters.REASON_HEADER]
    assert isinstance(reason, str)
    assert reason.startswith("nobody ? can read this xxx")
    assert len(reason) == letters.MAX_REASON_LENGTH
    assert letter.headers[letters.QUEUE_HEADER] == QUEUE.name
    assert letter.headers[letters.KEY_HEADER] == "job.cancel"
    assert letters.TIME_HEADER in letter.headers


async def test_dead_tasks_are_told_from_other_dead_letters(installation: Installation, bus: Bus) -> None:
    hands, dead, unreadable = Hands(), Hands(), Hands()
    await bus.consume(routing.executions("us"), prefetch=1, handler=hands)
    await bus.consume(routing.DEAD_EXECUTIONS, prefetch=1, handler=dead)
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=unreadable)
    await installation.foreign(routing.executions("us"), b"garbage", reply_to=None, correlation_id=None)
    (delivery,) = await hands.hold(1)
    await delivery.reject("not a task")
    (task,) = await dead.hold(1)
    assert task.body == b"garbage"
    await task.reject("not even a dead task")
    (letter,) = await unreadable.hold(1)
    assert letter.body == b"garbage"
    assert letter.headers[letters.REASON_HEADER] == "not even a dead task"


async def test_a_message_that_keeps_coming_back_is_given_up(bus: Bus) -> None:
    seen: list[Delivery] = []
    tasks: set[asyncio.Task[None]] = set()

    def give_back(delivery: Delivery) -> None:
        seen.append(delivery)
        tasks.add(asyncio.ensure_future(delivery.requeue()))

    dead = Hands()
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=dead)
    await bus.consume(QUEUE, prefetch=1, handler=give_back)
    await bus.publish(cancel("job-1"))
    (letter,) = await dead.hold(1)
    assert len(seen) == MAX_DELIVERIES
    assert str(MAX_DELIVERIES) in str(letter.headers[letters.REASON_HEADER])
    await depth_becomes(bus, QUEUE, 0)
    await asyncio.gather(*tasks)


async def test_a_message_without_a_queue_is_refused(bus: Bus) -> None:
    with pytest.raises(UnroutableError):
        await bus.depth(routing.executions("atlantis"))
    with pytest.raises(UnroutableError):
        await bus.consume(routing.executions("atlantis"), prefetch=1, handler=Hands())


async def test_the_stream_is_replayed_in_order_up_to_the_fence(installation: Installation) -> None:
    writer, reader = await installation.client(), await installation.client()
    for n in range(50):
        await writer.publish(cancelled(f"job-{n}"))
    seen: list[bytes] = []
    following = await reader.follow(routing.CANCELLATIONS, seen.append)
    assert [job_of(body) for body in seen] == [f"job-{n}" for n in range(50)]
    assert await is_live(following)
    await writer.publish(cancelled("job-50"))
    await eventually(lambda: len(seen) == 51)
    await following.close()
    assert not await is_live(following)
    await writer.publish(cancelled("job-51"))
    late: list[bytes] = []
    await reader.follow(routing.CANCELLATIONS, late.append)
    assert [job_of(body) for body in late] == [f"job-{n}" for n in range(52)]
    assert len(seen) == 51


async def test_every_follower_sees_every_entry_and_no_marker(installation: Installation) -> None:
    seen: list[list[bytes]] = [[], [], []]
    for each in seen:
        await (await installation.client()).follow(routing.CANCELLATIONS, each.append)
    bus = await installation.client()
    await bus.publish(cancelled("job-1"))
    await eventually(lambda: all(len(each) == 1 for each in seen))
    assert [[job_of(body) for body in each] for each in seen] == [["job-1"]] * 3


async def test_reading_resumes_behind_the_last_entry(installation: Installation) -> None:
    writer, reader = await installation.client(), await installation.client()
    seen: list[bytes] = []
    following = await reader.follow(routing.CANCELLATIONS, seen.append)
    for n in range(5):
        await writer.publish(cancelled(f"job-{n}"))
    await eventually(lambda: len(seen) == 5)
    await installation.cut(following)
    for n in range(5, 10):
        await publish_until_done(writer, cancelled(f"job-{n}"))
    await eventually(lambda: following.live and len(seen) >= 10)
    assert sorted({job_of(body) for body in seen}) == sorted(f"job-{n}" for n in range(10))
    assert [job_of(body) for body in seen[:5]] == [f"job-{n}" for n in range(5)]
    assert len(seen) == 10


async def test_depth_counts_what_waits_and_not_what_is_held(bus: Bus) -> None:
    await bus.publish(*(cancel(f"job-{n}") for n in range(4)))
    await depth_becomes(bus, QUEUE, 4)
    await bus.consume(QUEUE, prefetch=3, handler=Hands())
    await depth_becomes(bus, QUEUE, 1)


async def test_an_answer_reaches_who_asked(installation: Installation, bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=1, handler=hands)
    address, next_reply = await installation.mailbox()
    await installation.foreign(QUEUE, b"{}", reply_to=address, correlation_id="question-7")
    (delivery,) = await hands.hold(1)
    assert (delivery.reply_to, delivery.correlation_id) == (address, "question-7")
    await bus.reply(delivery, cancelled("job-1"))
    async with asyncio.timeout(WAIT_S):
        reply = await next_reply()
    assert job_of(reply.body) == "job-1"
    assert reply.correlation_id == "question-7"


@pytest.mark.parametrize("address", [None, "nobody-listens-here", "x" * 250])
async def test_an_answer_that_nobody_waits_for_is_dropped(
    installation: Installation, bus: Bus, address: str | None
) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=1, handler=hands)
    await installation.foreign(QUEUE, b"{}", reply_to=address, correlation_id=None)
    (delivery,) = await hands.hold(1)
    await bus.reply(delivery, cancelled("job-1"))
    await delivery.ack()


async def test_a_handler_that_raises_does_not_end_the_consumption(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    hands = Hands()

    def stumble(delivery: Delivery) -> None:
        hands(delivery)
        if len(hands.held) == 1:
            raise LookupError("the test's own")

    consumption: Consumption = await bus.consume(QUEUE, prefetch=5, handler=stumble)
    await bus.publish(cancel("job-1"))
    await bus.publish(cancel("job-2"))
    await hands.hold(2)
    assert consumption.live
    assert "the test's own" in caplog.text
