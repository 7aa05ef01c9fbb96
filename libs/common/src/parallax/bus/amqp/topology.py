"""The exchanges and queues of one installation, declared from the routing table."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldValue

from parallax.bus.amqp.connection import close_channel
from parallax.contracts.routing import RETIRED_BINDINGS, Queue, QueueKind, on_demand, topology
from parallax.errors import UnroutableError

log = logging.getLogger(__name__)

STREAM_ARGUMENTS: Final[Mapping[str, FieldValue]] = {
    "x-queue-type": "stream",
    "x-max-age": "8D",
    "x-stream-max-segment-size-bytes": 1_000_000,
}
"""A task lives at most 7 days (the largest batch deadline), so its cancellation must be readable for longer than that.
Retention drops whole segments: 1 MB is some thousands of cancellations."""
QUORUM_ARGUMENTS: Final[Mapping[str, FieldValue]] = {"x-queue-type": "quorum"}
"""Nothing else: limits and dead-lettering are policies, which can be changed and mean the same on any version."""


class Topology:
    """Names and declarations of one installation on a broker that others may share."""

    def __init__(self, namespace: str, regions: Iterable[str]) -> None:
        self.namespace = namespace
        self.exchange = namespace
        self.dead_exchange = f"{namespace}.dead"
        self._regions = tuple(regions)
        self.queues = topology(self._regions)

    def name(self, queue: Queue) -> str:
        """The queue's name on the broker.

        Raises:
            UnroutableError: It is not a queue of this installation (an unknown region, for example).
        """
        if self.find(queue.name) is None:
            raise UnroutableError(f"there is no queue {queue.name!r} in this installation")
        return f"{self.namespace}.{queue.name}"

    def find(self, name_or_key: str) -> Queue | None:
        """The queue of this name, or the one declared on demand for this routing key; the namespace may stand first."""
        name = name_or_key.removeprefix(f"{self.namespace}.")
        return next((q for q in self.queues if q.name == name), None) or on_demand(name, self._regions)

    def needed(self, keys: Iterable[str]) -> tuple[Queue, ...]:
        """Every queue that exists from the start, and those that messages with these keys need on demand."""
        found = {queue.name: queue for key in keys if (queue := self.find(key)) is not None}
        return tuple({**{queue.name: queue for queue in self.queues}, **found}.values())

    async def declare(self, connection: AbstractConnection, queues: Sequence[Queue] | None = None) -> None:
        """Create whatever is missing of the given queues, or of all, and remove the bindings they no longer have.

        What is there stays as it is.
        """
        wanted = self.queues if queues is None else queues
        channel = await connection.channel(publisher_confirms=False)
        try:
            await channel.exchange_declare(self.exchange, exchange_type="topic", durable=True)
            await channel.exchange_declare(self.dead_exchange, exchange_type="topic", durable=True)
            for queue in wanted:
                channel = await self._declare_queue(channel, queue)
        finally:
            await close_channel(channel)

    async def _declare_queue(self, channel: AbstractChannel, queue: Queue) -> AbstractChannel:
        """Declare and bind a queue; returns the channel to go on with."""
        name, exchange = self.name(queue), self.dead_exchange if queue.dead else self.exchange
        try:
            await channel.queue_declare(name, durable=True, arguments=dict(arguments_of(queue)))
        except ChannelPreconditionFailed as error:
            # Created by another version or by hand: it works as it is, and failing here would stop every service.
            log.warning("queue %s exists with other properties than declared: %s", name, error)
            channel = await channel.connection.channel(publisher_confirms=False)
        for key in queue.keys:
            await channel.queue_bind(name, exchange, routing_key=key)
        for key in RETIRED_BINDINGS.get(queue.name, ()):
            await channel.queue_unbind(name, exchange, routing_key=key)
        return channel


def arguments_of(queue: Queue) -> Mapping[str, FieldValue]:
    """What a queue is declared with."""
    return STREAM_ARGUMENTS if queue.kind is QueueKind.STREAM else QUORUM_ARGUMENTS
