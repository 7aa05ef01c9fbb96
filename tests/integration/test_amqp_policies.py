"""The broker's own limits, set in every way there is."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from yarl import URL

from parallax.bus import policies
from parallax.errors import UnavailableError
from tests.harness.rabbitmq import Node

DEFINITIONS = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "definitions.json"
OLD_BROKER = """
import json, sys
definition = json.loads(sys.argv[-5])
if "consumer-timeout" in definition:
    sys.exit("not recognised policy settings: consumer-timeout")
with open(sys.argv[1], "a") as file:
    print(json.dumps(sys.argv[2:]), file=file)
"""
"""Plays ``rabbitmqctl`` of a broker that does not know the newer settings."""


def test_the_definitions_file_says_what_the_module_says() -> None:
    assert json.loads(DEFINITIONS.read_text()) == policies.definitions("parallax")


@pytest.mark.rabbitmq
async def test_the_broker_takes_every_policy(rabbitmq_node: Node, namespace: str, tmp_path: Path) -> None:
    file = tmp_path / "definitions.json"
    file.write_text(json.dumps(policies.definitions(namespace)))
    await asyncio.to_thread(rabbitmq_node.ctl, "import_definitions", str(file))
    listed = json.loads(await asyncio.to_thread(rabbitmq_node.ctl, "list_policies", "--formatter", "json"))
    ours = {each["name"] for each in listed if each["name"].startswith(namespace)}
    for name in ours:
        await asyncio.to_thread(rabbitmq_node.ctl, "clear_policy", name)
    assert ours == {policy.name for policy in policies.policies(namespace)}


async def test_rabbitmqctl_of_an_old_broker_gets_what_it_understands(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    wanted = policies.policies("mine")
    await policies.set_with_ctl((sys.executable, "-c", OLD_BROKER, str(log)), "/", wanted)
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert calls == [
        [
            *("set_policy", "-p", "/", policy.name, policy.pattern, json.dumps(dict(policy.definition))),
            *("--apply-to", "queues", "--priority", str(policy.priority)),
        ]
        for policy in wanted
    ]


async def test_a_failing_rabbitmqctl_says_why() -> None:
    failing = (sys.executable, "-c", "import sys; sys.exit('node down')")
    with pytest.raises(UnavailableError, match="node down"):
        await policies.set_with_ctl(failing, "/", policies.policies("mine"))


class ManagementApi(ThreadingHTTPServer):
    """As much of RabbitMQ's management API as sets policies."""

    daemon_threads = False  # closing waits for the last request

    def __init__(self, *, knows_consumer_timeout: bool, authorization: str) -> None:
        super().__init__(("127.0.0.1", 0), ManagementRequest)
        self.knows_consumer_timeout = knows_consumer_timeout
        self.authorization = authorization
        self.kept: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class ManagementRequest(BaseHTTPRequestHandler):
    """One request to set a policy."""

    def do_PUT(self) -> None:
        """Judge it as the broker would."""
        assert isinstance(self.server, ManagementApi)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != self.server.authorization:
            status = HTTPStatus.UNAUTHORIZED
        elif "consumer-timeout" in body["definition"] and not self.server.knows_consumer_timeout:
            status = HTTPStatus.BAD_REQUEST
        else:
            status = HTTPStatus.CREATED
            self.server.kept[self.path] = body
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@contextmanager
def listening(api: ManagementApi) -> Iterator[ManagementApi]:
    """The API, answering."""
    thread = Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        thread.join()
        api.server_close()


@pytest.mark.parametrize("newer", [True, False])
async def test_the_management_api_gets_every_policy(newer: bool) -> None:
    url = URL("amqp://me:secret@127.0.0.1/v%2Fone")
    with listening(ManagementApi(knows_consumer_timeout=newer, authorization="Basic bWU6c2VjcmV0")) as api:
        applied = await policies.set_up(url, "mine", management_url=api.url)
    assert applied.way == "management API"
    assert applied.policies == tuple(policy.name for policy in policies.policies("mine"))
    assert set(api.kept) == {f"/api/policies/v%2Fone/{name}" for name in applied.policies}
    work = api.kept["/api/policies/v%2Fone/mine-work"]["definition"]
    assert work["dead-letter-exchange"] == "mine.dead"
    assert ("consumer-timeout" in work) == newer


async def test_without_any_way_the_operator_is_told_what_to_do() -> None:
    url = URL("amqp://me:secret@broker.example/")
    with (
        listening(ManagementApi(knows_consumer_timeout=True, authorization="another")) as api,
        pytest.raises(UnavailableError, match="import_definitions") as refused,
    ):
        await policies.set_up(url, "mine", management_url=api.url.replace("//", "//admin:secret@"))
    assert "secret" not in str(refused.value)
