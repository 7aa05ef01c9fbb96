"""Dead letters on a real broker: listed as often as one likes, replayed to where they came from, dropped."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiormq
import pytest
from aiormq import spec

from parallax.bus import amqp, deadletters, letters
from parallax.bus.amqp import AmqpBus, letterbox
from parallax.bus.letters import DeadLetter
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob
from parallax.contracts.routing import Queue
from parallax.errors import InvalidInputError
from tests.harness.rabbitmq import REGIONS, Node

pytestmark = pytest.mark.rabbitmq

WAIT_S = 30.0


@pytest.fixture
async def bus(amqp_url: str, namespace: str) -> AsyncIterator[AmqpBus]:
    """A client of the installation."""
    made = await amqp.connect(amqp_url, namespace=namespace, regions=REGIONS, name="letters")
    yield made
    await made.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


async def reject_all(bus: AmqpBus, queue: Queue, reason: str, count: int) -> None:
    """Take what a queue holds and dead-letter it."""
    held: list[Delivery] = []
    consumption = await bus.consume(queue, prefetch=count, handler=held.append)
    await eventually(lambda: len(held) == count)
    for delivery in held:
        await delivery.reject(reason)
    await consumption.close()


async def letters_of(bus: AmqpBus) -> list[DeadLetter]:
    """Every dead letter."""
    page = await deadletters.list_letters(bus)
    assert page.complete
    return list(page.letters)


async def test_a_letter_tells_where_it_came_from_and_why(bus: AmqpBus) -> None:
    await bus.publish(CancelJob(job_id="job-1"))
    await reject_all(bus, routing.PROGRESS, "nobody understands it", 1)
    (letter,) = await letters_of(bus)
    assert letter.kept_in == routing.DEAD_LETTERS.name
    assert letter.queue == routing.PROGRESS.name
    assert letter.key == "job.cancel"
    assert letter.reason == "nobody understands it"
    assert letter.dead_at is not None
    assert CancelJob.model_validate_json(letter.body).job_id == "job-1"
    assert await deadletters.find_letter(bus, letter.id) == letter
    assert await deadletters.find_letter(bus, letter.id[:-1]) == letter


async def test_looking_never_makes_a_letter_disappear(rabbitmq_node: Node, namespace: str, bus: AmqpBus) -> None:
    """With the limit that RabbitMQ 4 sets by itself, and no dead-letter exchange behind it."""
    await bus.publish(CancelJob(job_id="job-1"), CancelJob(job_id="job-2"))
    await reject_all(bus, routing.PROGRESS, "no", 2)
    limit = ("set_policy", namespace, f"^{namespace}\\.dead\\.", '{"delivery-limit": 20}', "--apply-to", "queues")
    await asyncio.to_thread(rabbitmq_node.ctl, *limit)
    try:
        first = await letters_of(bus)
        assert len(first) == 2
        for _ in range(3 * letterbox.RENEW_AFTER):
            again = await letters_of(bus)
            assert sorted(again, key=str) == sorted(first, key=str)
    finally:
        await asyncio.to_thread(rabbitmq_node.ctl, "clear_policy", namespace)


async def test_a_replayed_letter_goes_back_alone_and_keeps_its_way(bus: AmqpBus) -> None:
    queue = routing.executions("us")
    await bus.publish_raw(queue, b"task one", headers={"tenant": "t1"}, correlation_id="c1")
    await bus.publish_raw(queue, b"task two")
    await reject_all(bus, queue, "no", 2)
    one, two = sorted(await letters_of(bus), key=lambda letter: letter.body)
    assert one.kept_in == routing.DEAD_EXECUTIONS.name
    assert await deadletters.replay_letters(bus, [one.id]) == 1
    assert await letters_of(bus) == [two]
    held: list[Delivery] = []
    await bus.consume(queue, prefetch=1, handler=held.append)
    await eventually(lambda: len(held) == 1)
    assert held[0].body == b"task one"
    assert held[0].headers["tenant"] == "t1"
    assert held[0].correlation_id == "c1"
    assert letters.REASON_HEADER not in held[0].headers
    await held[0].reject("still no")
    died_again = {letter.body: letter.kept_in for letter in await letters_of(bus)}
    assert died_again == {b"task one": routing.DEAD_EXECUTIONS.name, b"task two": routing.DEAD_EXECUTIONS.name}


async def test_a_dropped_letter_is_gone_and_the_others_stay(bus: AmqpBus) -> None:
    await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(3)))
    await reject_all(bus, routing.PROGRESS, "no", 3)
    first, second, third = await letters_of(bus)
    assert await deadletters.drop_letters(bus, [first.id, third.id]) == 2
    assert await letters_of(bus) == [second]


async def test_a_name_that_fits_none_or_several_changes_nothing(bus: AmqpBus) -> None:
    await bus.publish(CancelJob(job_id="job-1"), CancelJob(job_id="job-2"))
    await reject_all(bus, routing.PROGRESS, "no", 2)
    found = await letters_of(bus)
    common = found[0].id[: deadletters.MIN_PREFIX]
    assert all(letter.id.startswith(common) for letter in found), "ids of one publisher share their beginning"
    with pytest.raises(InvalidInputError, match="2 dead letters begin"):
        await deadletters.drop_letters(bus, [common])
    for name in ("no-such-letter", found[0].id[:3]):
        with pytest.raises(InvalidInputError, match="no dead letter"):
            await deadletters.drop_letters(bus, [found[0].id, name])
    assert await letters_of(bus) == found


async def test_a_letter_of_unknown_origin_can_only_be_dropped(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    body = b"thrown in by hand"
    await channel.basic_publish(body, exchange=f"{namespace}.dead", routing_key="unreadable.somewhere")
    nameless = spec.Basic.Properties(headers={"x-parallax-queue": "executions.atlantis"}, message_id="from-atlantis")
    await channel.basic_publish(b"sunk", exchange=f"{namespace}.dead", routing_key="job.x", properties=nameless)
    await connection.close()
    found = {letter.body: letter for letter in await letters_of(bus)}
    for letter in found.values():
        with pytest.raises(InvalidInputError, match="can only be dropped"):
            await deadletters.replay_letters(bus, [letter.id])
    assert len(await letters_of(bus)) == 2
    await deadletters.drop_letters(bus, [letter.id for letter in found.values()])
    assert await letters_of(bus) == []


async def test_what_the_broker_gave_up_by_policy_is_a_letter_too(
    rabbitmq_node: Node, amqp_url: str, namespace: str, bus: AmqpBus
) -> None:
    """A foreign consumer that gives a message back for ever: the broker's own limit strikes."""
    policy = f'{{"delivery-limit": 2, "dead-letter-exchange": "{namespace}.dead"}}'
    pattern = f"^{namespace}\\.dispatcher\\."
    await asyncio.to_thread(rabbitmq_node.ctl, "set_policy", namespace, pattern, policy, "--apply-to", "queues")
    connection = await aiormq.connect(amqp_url)
    try:
        await bus.publish(CancelJob(job_id="job-1"))
        channel = await connection.channel()
        found: list[DeadLetter] = []
        async with asyncio.timeout(WAIT_S):
            while not found:
                message = await channel.basic_get(f"{namespace}.{routing.PROGRESS.name}")
                if isinstance(message.delivery, spec.Basic.GetOk):
                    assert message.delivery.delivery_tag is not None
                    await channel.basic_nack(message.delivery.delivery_tag, requeue=True)
                found = await letters_of(bus)
        (letter,) = found
        assert (letter.queue, letter.key) == (routing.PROGRESS.name, "job.cancel")
        assert "delivery_limit" in letter.reason
        await deadletters.replay_letters(bus, [letter.id])
        assert await bus.depth(routing.PROGRESS) == 1
    finally:
        await connection.close()
        await asyncio.to_thread(rabbitmq_node.ctl, "clear_policy", namespace)


async def test_a_list_is_bounded_and_says_so(bus: AmqpBus) -> None:
    await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(4)))
    await bus.publish_raw(routing.executions("us"), b"task")
    await reject_all(bus, routing.PROGRESS, "no", 4)
    await reject_all(bus, routing.executions("us"), "no", 1)
    every = {letter.id: letter for letter in await letters_of(bus)}
    size_bytes = max(len(letter.body) for letter in every.values())
    for most, most_bytes, expected in ((2, deadletters.PAGE_BYTES, 2), (100, 2 * size_bytes, 2), (100, 1, 1)):
        page = await deadletters.list_letters(bus, most=most, most_bytes=most_bytes)
        assert not page.complete
        assert len(page.letters) >= expected, "one that is too large for a page is a page"
        assert len(page.letters) <= most
        assert sum(len(letter.body) for letter in page.letters) <= max(most_bytes, size_bytes)
    assert {letter.id: letter for letter in await letters_of(bus)} == every, "and every letter is still there"


async def test_what_lies_behind_the_limit_is_named_as_unseen(bus: AmqpBus, monkeypatch: pytest.MonkeyPatch) -> None:
    await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(3)))
    await reject_all(bus, routing.PROGRESS, "no", 3)
    monkeypatch.setattr(letterbox, "MAX_LETTERS", 2)
    with pytest.raises(InvalidInputError, match="among the oldest 2, and there are others"):
        await deadletters.drop_letters(bus, ["no-such-letter"])
