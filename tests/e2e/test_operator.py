"""What operators type: commands over the broker, dead letters, keys."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from yarl import URL

from parallax.bus.amqp import connect
from parallax.bus.port import Delivery
from parallax.contracts.messages import CancelJob, SubmitJob
from parallax.contracts.routing import PROGRESS, SUBMISSIONS
from tests.e2e.command import PATIENCE_S, Parallax, write_catalog, write_job
from tests.harness.rabbitmq import NativeNode, Node

SETUP = ("broker", "setup", "--management", "http://127.0.0.1:9")
"""Where no management API answers."""


def beside(node: Node, tmp_path: Path, **changed: str) -> Parallax:
    """The command on the machine of a broker, whose ``rabbitmqctl`` it may use."""
    if not isinstance(node, NativeNode):
        pytest.skip("this broker has no rabbitmqctl here")
    scripts = node.node.installed.scripts
    return Parallax(
        tmp_path / "no-home",
        {
            **node.node.environment(),
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PARALLAX_AMQP_URL": node.url,
            "PARALLAX_CATALOG": str(write_catalog(tmp_path / "catalog.yaml", "http://127.0.0.1:9/v1")),
            **changed,
        },
    )


@pytest.mark.rabbitmq
async def test_setup_declares_the_queues_and_sets_the_policies(
    rabbitmq_node: Node, namespace: str, tmp_path: Path
) -> None:
    parallax = beside(rabbitmq_node, tmp_path, PARALLAX_NAMESPACE=namespace)
    done = await parallax(*SETUP)
    assert done.code == 0, done.err
    assert done.out.startswith("queues declared; policies ")
    assert done.out.endswith("set by rabbitmqctl\n")
    queues = await asyncio.to_thread(rabbitmq_node.ctl, "list_queues", "name", "policy", "--formatter", "json")
    policy_of = {each["name"]: each["policy"] for each in json.loads(queues)}
    assert policy_of[f"{namespace}.executions.us"] == f"{namespace}-work"
    assert policy_of[f"{namespace}.cancellations"] == f"{namespace}-cancellations"
    for name in {policy for queue, policy in policy_of.items() if queue.startswith(f"{namespace}.")}:
        await asyncio.to_thread(rabbitmq_node.ctl, "clear_policy", name)


@pytest.mark.rabbitmq
async def test_setup_touches_no_other_broker_of_the_machine(
    rabbitmq_node: Node, namespace: str, tmp_path: Path
) -> None:
    """A forwarded port, so that the address is another one and all else is as it should be."""
    parallax = beside(rabbitmq_node, tmp_path)
    target = URL(rabbitmq_node.url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        parallax.environment |= {"PARALLAX_AMQP_URL": str(target.with_port(port)), "PARALLAX_NAMESPACE": namespace}
        refused = await parallax(*SETUP)
    assert refused.code == 4, refused.err
    assert f"not on {port}: it is another broker. Set RABBITMQ_NODENAME" in " ".join(refused.err.split())
    listed = json.loads(await asyncio.to_thread(rabbitmq_node.ctl, "list_policies", "--formatter", "json"))
    assert not [each for each in listed if each["name"].startswith(namespace)]


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy bytes until the source ends."""
    while data := await source.read(65536):
        sink.write(data)
    sink.close()


async def next_of(deliveries: "asyncio.Queue[Delivery]") -> Delivery:
    async with asyncio.timeout(PATIENCE_S):
        return await deliveries.get()


@pytest.mark.rabbitmq
async def test_submit_and_cancel_go_over_the_broker(amqp_url: str, namespace: str, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", "http://127.0.0.1:9/v1")
    parallax = Parallax(
        tmp_path / "no-home",
        {"PARALLAX_AMQP_URL": amqp_url, "PARALLAX_NAMESPACE": namespace, "PARALLAX_CATALOG": str(catalog)},
    )
    bus = await connect(amqp_url, namespace=namespace, regions=("us", "eu", "apac"), name="test")
    try:
        submissions: asyncio.Queue[Delivery] = asyncio.Queue()
        progress: asyncio.Queue[Delivery] = asyncio.Queue()
        await bus.consume(SUBMISSIONS, prefetch=1, handler=submissions.put_nowait)
        await bus.consume(PROGRESS, prefetch=1, handler=progress.put_nowait)
        sent = await parallax("submit", str(write_job(tmp_path / "job.json", 2)), "--job-id", "by-mail")
        assert sent.code == 0, sent.err
        assert "job by-mail: sent, 12 executions in 2 batches" in sent.out
        submission = await next_of(submissions)
        message = SubmitJob.model_validate_json(submission.body)
        assert (message.job_id, len(message.job.questions)) == ("by-mail", 2)
        await submission.ack()
        cancelled = await parallax("cancel", "by-mail", "--reason", "no need")
        assert cancelled.code == 0, cancelled.err
        request = await next_of(progress)
        assert CancelJob.model_validate_json(request.body).reason == "no need"
        await request.ack()
    finally:
        await bus.close()
    assert not (tmp_path / "no-home").exists()


@pytest.mark.rabbitmq
async def test_dead_letters_are_listed_replayed_and_dropped(amqp_url: str, namespace: str, tmp_path: Path) -> None:
    parallax = Parallax(tmp_path / "no-home", {"PARALLAX_AMQP_URL": amqp_url, "PARALLAX_NAMESPACE": namespace})
    bus = await connect(amqp_url, namespace=namespace, regions=(), name="test")
    try:
        deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        await bus.consume(SUBMISSIONS, prefetch=1, handler=deliveries.put_nowait)
        await bus.publish_raw(SUBMISSIONS, b"\x1b[2Jgarbage")
        await (await next_of(deliveries)).reject("is not a message")

        [letter] = (await parallax("dead-letters", "list", "--json")).document()
        assert letter["reason"] == "is not a message"
        shown = await parallax("dead-letters", "show", letter["id"])
        assert "\\x1b[2Jgarbage" in shown.out
        assert "\x1b" not in shown.out

        replayed = await parallax("dead-letters", "replay", letter["id"])
        assert (replayed.code, replayed.out) == (0, "1 sent back\n"), replayed.err
        again = await next_of(deliveries)
        assert again.body == b"\x1b[2Jgarbage"
        await again.reject("still none")

        [letter] = (await parallax("dead-letters", "list", "--json")).document()
        dropped = await parallax("dead-letters", "drop", letter["id"], "--yes")
        assert (dropped.code, dropped.out) == (0, "1 dropped\n"), dropped.err
        assert (await parallax("dead-letters", "list")).out == "there are no dead letters\n"
        assert (await parallax("dead-letters", "show", letter["id"])).code == 2
    finally:
        await bus.close()


async def test_keys_are_made_listed_and_revoked(database_url: str, tmp_path: Path) -> None:
    parallax = Parallax(tmp_path / "no-home", {"PARALLAX_DATABASE_URL": database_url})
    assert (await parallax("migrate")).code == 0
    made = await parallax("keys", "create", "--scope", "submit", "--label", "nightly", "--days", "30")
    assert made.code == 0, made.err
    key = made.out.strip()
    assert key.startswith("plx_")
    [listed] = (await parallax("keys", "list", "--json")).document()
    assert (listed["label"], listed["scope"], listed["revoked_at"]) == ("nightly", "submit", None)
    assert listed["key_id"] in key
    assert (await parallax("keys", "revoke", listed["key_id"])).code == 0
    table = await parallax("keys", "list")
    assert key not in table.out
