"""What only the memory bus has: its seams for simulation, and time turned by hand."""

from datetime import UTC, datetime

import pytest

from parallax.bus.letters import dead_key, matches
from parallax.bus.memory import Choice, MemoryBroker, MemoryBus
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import CancelJob, JobCancelled, decode
from parallax.contracts.outcomes import Reason
from tests.fakes.clock import LeapingClock

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def heartbeat() -> ExecutorHeartbeat:
    """A sign of life."""
    return ExecutorHeartbeat(
        executor_id="executor-1",
        region="us",
        budget=1,
        running=(),
        models=(),
        endpoint_state="ready",
        started_at=NOW,
        sent_at=NOW,
    )


async def test_a_heartbeat_that_nobody_read_in_time_is_dropped() -> None:
    clock = LeapingClock()
    bus = MemoryBus(MemoryBroker(["us"], clock=clock))
    await bus.publish(heartbeat(), CancelJob(job_id="job-1"))
    clock.leap(routing.HEARTBEAT_EXPIRES_S - 1)
    await bus.publish(heartbeat())
    assert await bus.depth(routing.HEARTBEATS) == 2
    clock.leap(1)
    assert await bus.depth(routing.HEARTBEATS) == 1
    assert await bus.depth(routing.PROGRESS) == 1
    held: list[Delivery] = []
    broker_side = await bus.consume(routing.HEARTBEATS, prefetch=10, handler=held.append)
    await bus.publish(CancelJob(job_id="job-2"))
    await bus.publish(CancelJob(job_id="job-3"))
    assert len(held) == 1
    await broker_side.close()


def hold_still(_: MemoryBroker) -> None:
    """Deliver nothing by itself."""


async def test_a_simulation_decides_every_delivery() -> None:
    broker = MemoryBroker(["us"], wake=hold_still)
    bus = MemoryBus(broker)
    first: list[Delivery] = []
    second: list[Delivery] = []
    await bus.consume(routing.PROGRESS, prefetch=1, handler=first.append)
    await bus.consume(routing.PROGRESS, prefetch=1, handler=second.append)
    await bus.publish(CancelJob(job_id="job-1"), CancelJob(job_id="job-2"))
    assert (first, second) == ([], [])

    def choices() -> list[Choice]:
        return broker.choices()

    assert [choice.queue for choice in choices()] == [routing.PROGRESS.name] * 2
    choices()[1].deliver()
    assert [decode(delivery.body) for delivery in second] == [CancelJob(job_id="job-1")]
    (only,) = choices()
    only.deliver()
    assert [decode(delivery.body) for delivery in first] == [CancelJob(job_id="job-2")]
    assert choices() == []


async def test_reading_a_stream_is_a_choice_too() -> None:
    broker = MemoryBroker(["us"], wake=hold_still)
    bus = MemoryBus(broker)
    reason = Reason(code="cancelled", message="by the test")
    await bus.publish(JobCancelled(job_id="job-1", reason=reason, cancelled_at=NOW))
    seen: list[bytes] = []
    following = broker.add_follower(routing.CANCELLATIONS, seen.append, b"no marker")
    (choice,) = broker.choices()
    choice.deliver()
    assert len(seen) == 1
    assert broker.choices() == []
    await following.close()


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("job.submit", "job.submit", True),
        ("job.submit", "job.cancel", False),
        ("job.*", "job.submit", True),
        ("job.*", "job", False),
        ("job.*", "job.a.b", False),
        ("unreadable.#", "unreadable", True),
        ("unreadable.#", "unreadable.a.b", True),
        ("#.b", "a.b", True),
        ("#.b", "b", True),
        ("#.b", "b.a", False),
        ("*", "", True),
    ],
)
def test_topic_patterns(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@pytest.mark.parametrize("queue", routing.topology(["us", "eu"]), ids=lambda queue: queue.name)
def test_every_dead_message_finds_a_queue_of_dead_letters(queue: routing.Queue) -> None:
    """Whatever was in whichever queue, with the key it came by or any other."""
    dead = [each for each in routing.topology(["us", "eu"]) if each.dead]
    concrete = [key for key in queue.keys if "*" not in key and "#" not in key and not key.startswith("fence.")]
    for key in (*concrete, f"parallax.{queue.name}", "anything", ""):
        homes = [each.name for each in dead if any(matches(p, dead_key(queue, key)) for p in each.keys)]
        assert len(homes) == 1, (key, homes)
