"""Messages on the wire: strict, additive, and readable by every later version."""

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from parallax.bus.letters import matches
from parallax.contracts.messages import MESSAGE_TYPES, ExecutionTask, Message, WaitingTask, decode, encode
from parallax.contracts.routing import (
    DEAD_EXECUTIONS,
    Queue,
    expires_s,
    key_of,
    on_demand,
    region_queues,
    routing_key,
    topology,
    waiting,
)
from tests.unit.contracts.samples import SAMPLES

GOLDEN = Path(__file__).parent / "golden"
BY_KIND: dict[str, Message] = {sample.kind: sample for sample in SAMPLES}


def test_every_message_has_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(get_args(Message)) == set(MESSAGE_TYPES)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_stored_messages_of_every_version_are_still_understood(path: Path) -> None:
    assert decode(path.read_bytes()) == BY_KIND[path.stem]


def test_a_batch_opened_before_questions_were_told_is_still_understood() -> None:
    opened = BY_KIND["batch_opened"].model_copy(update={"question": None})
    assert decode((GOLDEN / "earlier" / "batch_opened.json").read_bytes()) == opened


def test_a_task_written_before_tasks_could_be_moved_is_still_understood() -> None:
    assert decode((GOLDEN / "earlier" / "execution_task.json").read_bytes()) == BY_KIND["execution_task"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_what_is_written_today_is_the_golden_sample(sample: Message) -> None:
    golden = json.loads((GOLDEN / f"v{sample.version}" / f"{sample.kind}.json").read_text(encoding="utf-8"))
    assert json.loads(encode(sample)) == golden


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_unknown_fields_and_versions_are_refused(sample: Message) -> None:
    document = json.loads(encode(sample))
    for change in ({"surprise": 1}, {"version": 2}):
        with pytest.raises(ValidationError):
            decode(json.dumps(document | change).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"kind": "no_such_kind"}', b"\xff\xfe", b'{"kind": "cancel_job", "job_id": 7}'],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(body)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_every_message_has_a_queue_to_go_to(sample: Message) -> None:
    bound = {key for queue in topology(["eu"]) if not queue.dead for key in queue.keys}
    assert routing_key(sample) in bound
    assert routing_key(sample) == key_of(type(sample), "eu")


def test_a_moved_task_is_the_same_message_under_the_key_of_its_waiting_queue() -> None:
    """Models' names may hold dots, so that the key has more words than that of a region."""
    task = BY_KIND["execution_task"]
    moved = WaitingTask.model_validate({**dict(task), "model": "org.model-1.5"})
    assert routing_key(moved) == "execution.wait.eu.org.model-1.5"
    assert routing_key(moved) in waiting("eu", "org.model-1.5").keys
    assert decode(encode(moved)) == ExecutionTask.model_validate(dict(moved))
    assert any(matches(pattern, routing_key(moved)) for pattern in DEAD_EXECUTIONS.keys)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("waiting.eu.m", waiting("eu", "m")),
        ("execution.wait.eu.m.1", waiting("eu", "m.1")),
        ("waiting.mars.m", None),
        ("waiting.eu.", None),
        ("executions.eu", None),
    ],
)
def test_only_waiting_queues_of_known_regions_are_declared_on_demand(name: str, found: Queue | None) -> None:
    assert on_demand(name, ["eu", "us"]) == found


def test_a_region_s_queues_are_its_own_and_one_for_each_model() -> None:
    names = [queue.name for queue in region_queues("eu", ["a", "b"])]
    assert names == ["executions.eu", "waiting.eu.a", "waiting.eu.b"]


def test_only_heartbeats_may_be_dropped() -> None:
    assert [sample.kind for sample in SAMPLES if expires_s(sample) is not None] == ["executor_heartbeat"]
