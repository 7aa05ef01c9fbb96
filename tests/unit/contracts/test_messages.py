"""Messages on the wire: strictly written, additive, and readable by every other version."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from parallax.bus.letters import matches
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import (
    KINDS,
    MESSAGE_TYPES,
    CancelJob,
    ExecutionTask,
    ReceivedMessage,
    SubmitJob,
    WaitingTask,
    decode,
    encode,
    unknown_kind,
)
from parallax.contracts.model import read, read_document
from parallax.contracts.outcomes import Receipt
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
from tests.unit.contracts.samples import RECEIPT, SAMPLES

GOLDEN = Path(__file__).parent / "golden"
BY_KIND: dict[str, ReceivedMessage] = {sample.kind: sample for sample in SAMPLES}
FROM_USERS = tuple(sample for sample in SAMPLES if isinstance(sample, SubmitJob | CancelJob))
BETWEEN_SERVICES = tuple(sample for sample in SAMPLES if sample not in FROM_USERS)
LATER: dict[str, dict[str, object]] = {
    "inspect_batch": {"token": None},
    "batch_incomplete": {"token": None, "undecided": 0},
    "executor_heartbeat": {"fences": ()},
}
"""What the previous version does not write, at the value that a reader gives it."""
FREE = {"metadata", "versions", "provider", "job"}
"""Fields that hold whatever their writer likes: nothing in them is unknown."""


def from_a_newer_version(document: Any) -> Any:
    """The document with fields that no version knows yet, at every depth."""
    match document:
        case dict():
            known = {k: v if k in FREE else from_a_newer_version(v) for k, v in document.items()}
            return known | {"surprise": {"of": ["a", 1, None]}}
        case list():
            return [from_a_newer_version(each) for each in document]
        case _:
            return document


def test_every_message_has_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(get_args(ReceivedMessage)) == set(MESSAGE_TYPES)
    assert set(BY_KIND) == KINDS


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_stored_messages_of_every_version_are_still_understood(path: Path) -> None:
    assert decode(path.read_bytes()) == BY_KIND[path.stem]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("previous/*.json")), ids=lambda p: p.stem)
def test_messages_as_the_previous_version_writes_them_are_understood(path: Path) -> None:
    assert decode(path.read_bytes()) == BY_KIND[path.stem].model_copy(update=LATER.get(path.stem, {}))


def test_a_batch_opened_before_questions_were_told_is_still_understood() -> None:
    opened = BY_KIND["batch_opened"].model_copy(update={"question": None})
    assert decode((GOLDEN / "earlier" / "batch_opened.json").read_bytes()) == opened


def test_a_task_written_before_tasks_could_be_moved_is_still_understood() -> None:
    assert decode((GOLDEN / "earlier" / "execution_task.json").read_bytes()) == BY_KIND["execution_task"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_what_is_written_today_is_the_golden_sample(sample: ReceivedMessage) -> None:
    golden = json.loads((GOLDEN / f"v{sample.version}" / f"{sample.kind}.json").read_text(encoding="utf-8"))
    assert json.loads(encode(sample)) == golden


@pytest.mark.parametrize("sample", BETWEEN_SERVICES, ids=lambda s: s.kind)
def test_fields_that_a_newer_service_adds_are_ignored_at_any_depth(sample: ReceivedMessage) -> None:
    body = json.dumps(from_a_newer_version(json.loads(encode(sample)))).encode()
    assert body.count(b"surprise") >= 1
    assert decode(body) == sample
    assert read(type(sample), body) == sample


def test_a_stored_document_of_a_newer_version_is_read_too() -> None:
    assert read_document(Receipt, from_a_newer_version(RECEIPT.model_dump(mode="json"))) == RECEIPT


@pytest.mark.parametrize("sample", FROM_USERS, ids=lambda s: s.kind)
def test_unknown_keys_of_users_are_refused(sample: ReceivedMessage) -> None:
    document = json.loads(encode(sample))
    with pytest.raises(ValidationError, match="surprise"):
        decode(json.dumps(document | {"surprise": 1}).encode())
    if isinstance(sample, SubmitJob):
        document["job"]["questions"][0]["surprise"] = 1
        with pytest.raises(ValidationError, match=r"job\.questions\.0\.surprise"):
            decode(json.dumps(document).encode())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_unknown_versions_are_refused(sample: ReceivedMessage) -> None:
    document = json.loads(encode(sample)) | {"version": 2}
    with pytest.raises(ValidationError) as raised:
        decode(json.dumps(document).encode())
    assert unknown_kind(raised.value) is None


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_writers_know_only_their_own_fields(sample: ReceivedMessage) -> None:
    fields = {name: getattr(sample, name) for name in type(sample).model_fields}
    with pytest.raises(ValidationError, match="surprise"):
        type(sample).model_validate(fields | {"surprise": 1})


def test_a_key_at_its_default_is_not_sent_to_a_dispatcher_that_may_not_know_it() -> None:
    plain = CancelJob(job_id="job-1")
    assert json.loads(encode(plain)) == {"kind": "cancel_job", "version": 1, "job_id": "job-1"}
    assert decode(encode(plain)) == plain


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"kind": "no_such_kind"}', b"\xff\xfe", b'{"kind": "cancel_job", "job_id": 7}'],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"kind": "job_paused", "job_id": "job-1"}', "job_paused"),
        (b'{"kind": "job_started", "job_id": "job-1"}', None),
        (b'{"kind": 3}', None),
        (b"{}", None),
        (b"not JSON", None),
    ],
)
@pytest.mark.parametrize("reader", [decode, lambda body: read(ExecutorHeartbeat, body)], ids=["any", "one"])
def test_a_kind_of_a_newer_version_is_told_from_a_malformed_message(
    reader: Callable[[bytes], BaseModel], body: bytes, kind: str | None
) -> None:
    with pytest.raises(ValidationError) as raised:
        reader(body)
    assert unknown_kind(raised.value) == kind


def test_a_heartbeat_in_an_unknown_state_is_still_a_sign_of_life() -> None:
    document = json.loads(encode(BY_KIND["executor_heartbeat"])) | {"endpoint_state": "napping"}
    heartbeat = read(ExecutorHeartbeat, json.dumps(document))
    assert heartbeat.endpoint_state == "unavailable"
    assert heartbeat.running
    with pytest.raises(ValidationError):
        ExecutorHeartbeat.model_validate_json(json.dumps(document))
    with pytest.raises(ValidationError):
        read(ExecutorHeartbeat, json.dumps(document | {"endpoint_state": 3}))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.kind)
def test_every_message_has_a_queue_to_go_to(sample: ReceivedMessage) -> None:
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


def test_a_queue_of_commands_or_facts_drops_nothing() -> None:
    droppable = {queue.name for queue in topology(["eu"]) if queue.news}
    assert droppable == {"results.events", "results.heartbeats", "cancellations"}


STRICT = {
    "libs/common/src/parallax/contracts/intake.py",
    "services/dispatcher/src/dispatcher/submission.py",
    "services/results/src/results/api/bodies.py",
}
"""Where documents are read that users sent, or that a process of this very version wrote."""


def test_what_services_write_is_read_in_one_way() -> None:
    root = Path(__file__).parents[3]
    strict = {
        path.relative_to(root).as_posix()
        for folder in ("libs", "services")
        for path in (root / folder).rglob("*.py")
        for call in re.findall(r"model_validate_json\(.*", path.read_text(encoding="utf-8"))
        if 'extra="ignore"' not in call
    }
    assert strict == STRICT
