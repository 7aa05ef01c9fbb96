"""Garbage in every queue is buried or refused, the services live on, and the next good message is handled."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from parallax.bus.letters import REASON_HEADER, matches
from parallax.contracts.messages import CancelJob, encode
from parallax.contracts.routing import (
    CANCELLATIONS,
    DEAD_LETTERS,
    HEARTBEATS,
    Queue,
    QueueKind,
    routing_key,
    topology,
)
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.harness.results import Inbox
from tests.integration.whole_stage import REGIONS, Whole, job, whole
from tests.unit.contracts.samples import SAMPLES

QUEUES: Final = tuple(queue for queue in topology(REGIONS) if queue != DEAD_LETTERS)

UNKNOWN_KIND: Final = b'{"kind": "nonsense", "version": 1}'
"""Perhaps a newer version knows it; a queue of news drops it."""

GARBAGE: Final = (
    b"",
    b"\xff\xfe\x00\x01",
    b"null",
    b"0",
    b'"text"',
    b"[]",
    b"{}",
    b'{"kind": ',
    b'{"kind": null}',
    UNKNOWN_KIND,
    b'{"kind": "fence_marker", "version": 1, "token": "stray"}',
    b'{"kind": "cancel_job", "version": 2, "job_id": "NO ID"}',
    b'{"job_id": "\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 10_000,
    b'{"job_id": NaN}',
)
"""What is no message of any queue."""

WRONG: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    1.5,
    10**30,
    "",
    "x" * 5_000,
    "\x00",
    "\ud800",
    [],
    {},
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-12:00",
)
"""Values of every type and beyond every range."""


def spoilt(document: Any) -> Iterator[Any]:
    """The document with one of its values replaced, or left out, at a time."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield {name: other for name, other in document.items() if name != key}
            yield from ({**document, key: worse} for worse in (*WRONG, *spoilt(value)))
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from ([*document[:place], worse, *document[place + 1 :]] for worse in (*WRONG, *spoilt(value)))


def spoilt_messages(queue: Queue) -> list[bytes]:
    """Every message of a queue, with one thing wrong at a time."""
    return [
        json.dumps(document).encode()
        for sample in SAMPLES
        if any(matches(key, routing_key(sample)) for key in queue.keys)
        for document in spoilt(json.loads(encode(sample)))
    ]


WITH_SAMPLES: Final = tuple(queue for queue in QUEUES if spoilt_messages(queue))


async def assert_it_still_works(stage: Whole) -> None:
    """A job that is answered and one that is cancelled: together they use every queue."""
    await stage.submit("good", job(questions=2))
    await stage.submit("stalled", job(questions=1, regions=["eu"]) | {"questions": [{"id": "q", "text": "Stall"}]})
    end = await stage.finished("good")
    assert end["counts"] == {"completed": 18, "failed": 0, "timed_out": 0, "cancelled": 0}
    await stage.until_status("stalled", "running")
    await stage.bus.publish(CancelJob(job_id="stalled"))
    end = await stage.finished("stalled")
    assert (end["status"], end["counts"]["cancelled"]) == ("cancelled", 3)
    await stage.until_heard_of("eu-1")
    await stage.assert_healthy()


def endpoints() -> dict[str, FakeEndpoint]:
    """One for each region; a question of the stalled job is never answered."""
    stall: dict[str, tuple[Step, ...]] = {"Stall": (Step(stall_after=0),)}
    return {region: FakeEndpoint(by_prompt=stall) for region in REGIONS}


async def publish(stage: Whole, queue: Queue, bodies: list[bytes]) -> None:
    """Publish bodies as the queue's own messages."""
    for body in bodies:
        await stage.bus.publish_raw(queue, body)


@pytest.mark.parametrize("queue", QUEUES, ids=[queue.name for queue in QUEUES])
async def test_what_is_no_message_becomes_one_dead_letter(database_url: str, queue: Queue) -> None:
    async with whole(database_url, endpoints()) as stage:
        dead = await Inbox.of(stage.broker, DEAD_LETTERS)
        await publish(stage, queue, [*GARBAGE])
        await assert_it_still_works(stage)
        if queue.kind is not QueueKind.STREAM:  # nothing is taken from a stream: its readers skip what they cannot read
            refused = set(GARBAGE) - ({UNKNOWN_KIND} if queue.news else set())
            letters = [await dead.next_delivery() for _ in refused]
            assert {letter.body for letter in letters} == refused
            assert all(letter.headers[REASON_HEADER] for letter in letters)
    assert dead.empty


@pytest.mark.slow
@pytest.mark.parametrize("queue", WITH_SAMPLES, ids=[queue.name for queue in WITH_SAMPLES])
async def test_a_message_with_anything_wrong_is_handled_or_buried_at_once(database_url: str, queue: Queue) -> None:
    """At once: it is told from a bug, which would come back twenty times."""
    async with whole(database_url, endpoints()) as stage:
        dead = await Inbox.of(stage.broker, DEAD_LETTERS)
        await publish(stage, queue, spoilt_messages(queue))
        if queue != CANCELLATIONS:
            await stage.until_taken(queue)
        await assert_it_still_works(stage)
    if queue not in (CANCELLATIONS, HEARTBEATS):  # the one keeps everything, and good heartbeats come to the last
        assert stage.broker.depth(queue) == 0
    while not dead.empty:
        letter = await dead.next_delivery()
        assert not str(letter.headers[REASON_HEADER]).startswith("delivered "), letter.body[:500]
