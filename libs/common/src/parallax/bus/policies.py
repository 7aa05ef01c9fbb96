"""Limits that the broker itself keeps, as policies: behind the bus's own, in case a foreign consumer misbehaves.

Services work without them. They can be set over the management API, with ``rabbitmqctl``, or by importing
``deploy/rabbitmq/definitions.json``, which is made from this module.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx
from yarl import URL

from parallax.bus.letters import BROKER_DELIVERY_LIMIT
from parallax.errors import UnavailableError

DEAD_DELIVERY_LIMIT: Final = 1_000_000
"""Looking at a dead letter counts as a delivery; RabbitMQ 4 would drop it at the 21st."""
MAX_HEARTBEATS: Final = 10_000
"""Nobody reads older ones; keeps a broker alive whose results service is down."""
CANCELLATIONS_MAX_AGE: Final = "8D"
"""Longer than any task can live: the largest batch deadline is 7 days."""
WAITING_EXPIRES_MS: Final = 8 * 24 * 3_600_000
"""A waiting queue that no executor has consumed for so long belongs to a model that left the catalog; every task in it
is past its deadline (at most 7 days), so that the broker may delete it."""
CONSUMER_TIMEOUT_MS: Final = 1_800_000
"""No delivery is held longer than 20 minutes; one held for 30 belongs to a consumer that hangs."""
MANAGEMENT_PORT: Final = 15672
DEFAULT_PORTS: Final = {"amqp": 5672, "amqps": 5671}
REQUEST_TIMEOUT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 60.0


PROTOCOLS: Final = frozenset({"amqp", "amqp/ssl"})
"""As brokers call them in their status."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy of the broker."""

    name: str
    pattern: str
    definition: Mapping[str, Any]
    newer: Mapping[str, Any] = field(default_factory=dict)
    """What only newer brokers understand (3.12 on); left out where it is refused."""
    priority: int = 10


@dataclass(frozen=True, slots=True)
class Applied:
    """How the policies came to the broker."""

    way: Literal["management API", "rabbitmqctl"]
    policies: tuple[str, ...]


def policies(namespace: str) -> tuple[Policy, ...]:
    """The policies of one installation."""
    ours = f"^{re.escape(namespace)}\\."
    return (
        Policy(
            f"{namespace}-work",
            f"{ours}(dispatcher|executions|results)\\.",
            {"delivery-limit": BROKER_DELIVERY_LIMIT, "dead-letter-exchange": f"{namespace}.dead"},
            newer={"consumer-timeout": CONSUMER_TIMEOUT_MS},
        ),
        Policy(
            f"{namespace}-waiting",
            f"{ours}waiting\\.",
            {
                "delivery-limit": BROKER_DELIVERY_LIMIT,
                "dead-letter-exchange": f"{namespace}.dead",
                "expires": WAITING_EXPIRES_MS,
            },
            newer={"consumer-timeout": CONSUMER_TIMEOUT_MS},
        ),
        Policy(
            f"{namespace}-heartbeats",
            f"{ours}results\\.heartbeats$",
            # No dead-letter exchange: an expired heartbeat would end there.
            {"delivery-limit": BROKER_DELIVERY_LIMIT, "max-length": MAX_HEARTBEATS, "overflow": "drop-head"},
            priority=20,
        ),
        Policy(f"{namespace}-dead", f"{ours}dead\\.", {"delivery-limit": DEAD_DELIVERY_LIMIT}),
        Policy(f"{namespace}-cancellations", f"{ours}cancellations$", {"max-age": CANCELLATIONS_MAX_AGE}),
    )


def definitions(namespace: str, vhost: str = "/") -> dict[str, Any]:
    """The same as a document for ``rabbitmqctl import_definitions``; understood by every version from 3.10 on."""
    return {
        "policies": [
            {
                "vhost": vhost,
                "name": policy.name,
                "pattern": policy.pattern,
                "apply-to": "queues",
                "definition": dict(policy.definition),
                "priority": policy.priority,
            }
            for policy in policies(namespace)
        ]
    }


async def set_up(amqp_url: URL, namespace: str, *, management_url: str | None = None) -> Applied:
    """Set the policies by whatever way there is: the management API, else ``rabbitmqctl`` on this machine.

    Raises:
        UnavailableError: There is neither, or ``rabbitmqctl`` speaks to another broker; the message says what an
            operator can do.
    """
    vhost = amqp_url.path.removeprefix("/") or "/"
    base = URL(management_url) if management_url else URL(f"http://{amqp_url.host}:{MANAGEMENT_PORT}")
    wanted = policies(namespace)
    login = base if base.user else amqp_url
    auth = (login.user or "guest", login.password or "guest")
    base = base.with_user(None)
    try:
        await set_over_http(base, auth, vhost, wanted)
    except UnavailableError as no_api:
        if amqp_url.host not in ("127.0.0.1", "localhost", "::1") or shutil.which("rabbitmqctl") is None:
            raise UnavailableError(
                f"{no_api}. Enable the plugin rabbitmq_management, or have an operator run "
                f"`rabbitmqctl import_definitions` with deploy/rabbitmq/definitions.json; services run without it"
            ) from no_api
        await see_that_ctl_serves(("rabbitmqctl",), amqp_url.port or DEFAULT_PORTS[amqp_url.scheme])
        await set_with_ctl(("rabbitmqctl",), vhost, wanted)
        return Applied("rabbitmqctl", tuple(policy.name for policy in wanted))
    return Applied("management API", tuple(policy.name for policy in wanted))


async def set_over_http(base: URL, auth: tuple[str, str], vhost: str, wanted: Iterable[Policy]) -> None:
    """Set policies over the management API.

    Raises:
        UnavailableError: It does not answer, or refuses.
    """
    async with httpx.AsyncClient(base_url=str(base), auth=auth, timeout=REQUEST_TIMEOUT_S) as client:
        for policy in wanted:
            path = f"/api/policies/{quote(vhost, safe='')}/{quote(policy.name, safe='')}"
            try:
                answer = await client.put(path, json=_document(policy, {**policy.definition, **policy.newer}))
                if answer.status_code == httpx.codes.BAD_REQUEST and policy.newer:
                    answer = await client.put(path, json=_document(policy, policy.definition))
            except httpx.HTTPError as error:
                raise UnavailableError(f"the management API at {base} does not answer: {error}") from error
            if not answer.is_success:
                raise UnavailableError(
                    f"the management API at {base} refused policy {policy.name}: {answer.text[:500]}"
                )


def _document(policy: Policy, definition: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pattern": policy.pattern,
        "definition": dict(definition),
        "priority": policy.priority,
        "apply-to": "queues",
    }


async def see_that_ctl_serves(command: tuple[str, ...], port: int) -> None:
    """See that ``rabbitmqctl`` speaks to the node that listens on a port: a machine may have several.

    Raises:
        UnavailableError: It failed, or speaks to another node.
    """
    answer = await _output((*command, "--quiet", "status", "--formatter", "json"), "see the node's status")
    try:
        ports = sorted({each["port"] for each in json.loads(answer)["listeners"] if each["protocol"] in PROTOCOLS})
    except (ValueError, LookupError, TypeError) as error:
        raise UnavailableError(f"rabbitmqctl gave a status without listeners: {answer[:200]}") from error
    if port not in ports:
        raise UnavailableError(
            f"rabbitmqctl speaks to a node that listens on {ports}, not on {port}: it is another broker. Set "
            f"RABBITMQ_NODENAME to the name of the right one"
        )


async def set_with_ctl(command: tuple[str, ...], vhost: str, wanted: Iterable[Policy]) -> None:
    """Set policies with ``rabbitmqctl`` (``command`` is how it is called).

    Raises:
        UnavailableError: It failed.
    """
    for policy in wanted:
        try:
            await _set_one(command, vhost, policy, {**policy.definition, **policy.newer})
        except UnavailableError:
            if not policy.newer:
                raise
            await _set_one(command, vhost, policy, policy.definition)


async def _set_one(command: tuple[str, ...], vhost: str, policy: Policy, definition: Mapping[str, Any]) -> None:
    arguments = ("--apply-to", "queues", "--priority", str(policy.priority))
    document = json.dumps(dict(definition))
    await _output(
        (*command, "set_policy", "-p", vhost, policy.name, policy.pattern, document, *arguments),
        f"set policy {policy.name}",
    )


async def _output(command: tuple[str, ...], aim: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise UnavailableError(f"rabbitmqctl did not end within {COMMAND_TIMEOUT_S:.0f} s") from error
    if process.returncode != 0:
        said = output.decode(errors="replace").strip()[:500]
        raise UnavailableError(f"rabbitmqctl could not {aim}: {said}")
    return output.decode(errors="replace")
