"""What every bus promises (``parallax.bus.port``), checked on each of them."""

import asyncio
from collections.abc import Sequence

import pytest

from parallax.bus import letters
from parallax.bus.port import MAX_DELIVERIES, Bus, Consumption, Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, decode
from parallax.errors import StaleDeliveryError, UnavailableError, UnroutableError
from tests.contract.buses import WAIT_S, Installation
from tests.contract.hands import (
    QUEUE,
    Hands,
    cancel,
    cancelled,
    depth_becomes,
    eventually,
    is_live,
    is_publishable,
    job_of,
    publish_until_done,
)
from tests.fakes.executor_stage import task


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


@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), (3, 0, 6, 1, 7, 2, 5, 4)])
async def test_what_is_settled_in_one_moment_is_settled_each_in_its_way(bus: Bus, order: Sequence[int]) -> None:
    hands = Hands()
    consumption = await bus.consume(QUEUE, prefetch=8, handler=hands)
    await bus.publish(*(cancel(f"job-{n}") for n in range(8)))
    deliveries = sorted(await hands.hold(8), key=lambda each: job_of(each.body))
    for number in order:
        if number == 2:
            await deliveries[number].requeue()
        elif number == 4:
            await deliveries[number].reject("no")
        elif number != 5:
            await deliveries[number].ack()
    await consumption.close()
    await depth_becomes(bus, QUEUE, 2)
    again = Hands()
    await bus.consume(QUEUE, prefetch=8, handler=again)
    await again.hold(2)
    assert sorted(again.jobs()) == ["job-2", "job-5"]


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


async def test_the_error_names_what_has_no_queue_and_the_rest_is_delivered(installation: Installation) -> None:
    """A task of a region that left the catalog, in one publish with others."""
    bus = await installation.client()
    lost = [task(region="atlantis", sample=sample) for sample in range(2)]
    with pytest.raises(UnroutableError, match="atlantis") as refused:
        await bus.publish(cancel("job-1"), lost[0], cancel("job-2"), lost[1])
    assert list(refused.value.messages) == lost
    await depth_becomes(bus, QUEUE, 2)
    hands = Hands()
    await bus.consume(QUEUE, prefetch=10, handler=hands)
    await hands.hold(2)
    assert sorted(hands.jobs()) == ["job-1", "job-2"]


async def test_a_bus_is_publishable_until_it_is_closed(bus: Bus) -> None:
    assert await is_publishable(bus)
    await bus.close()
    assert not await is_publishable(bus)
    with pytest.raises(UnavailableError):
        await bus.publish(cancel("job-1"))


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
