"""Messages on the wire: strict, additive, and readable by every later version."""

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from parallax.contracts.messages import MESSAGE_TYPES, Message, decode, encode
from parallax.contracts.routing import expires_s, key_of, routing_key, topology
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


@pytest.mark.parametrize(
    ("kind", "later"),
    [
        ("inspect_batch", {"token": None}),
        ("batch_incomplete", {"token": None, "undecided": 0}),
        ("executor_heartbeat", {"fences": ()}),
    ],
)
def test_messages_from_before_inspections_were_fenced_are_still_understood(kind: str, later: dict[str, object]) -> None:
    assert decode((GOLDEN / "earlier" / f"{kind}.json").read_bytes()) == BY_KIND[kind].model_copy(update=later)


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


def test_only_heartbeats_may_be_dropped() -> None:
    assert [sample.kind for sample in SAMPLES if expires_s(sample) is not None] == ["executor_heartbeat"]
