"""Publishing with confirms: when it returns, a queue has the message on disk; how it raises says what is known."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final, assert_never

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError

from parallax.bus.amqp.confirm_batch import ConfirmBatch, OutgoingMessage
from parallax.bus.amqp.connection import (
    ReconnectingConnection,
    close_channel,
    describe,
    is_cancelled_by_caller,
    loss_is_unavailable,
    open_channel,
)
from parallax.bus.amqp.states import publish as states
from parallax.bus.amqp.states.publish import Failure
from parallax.bus.amqp.topology import Topology
from parallax.contracts.messages import Message, encode
from parallax.contracts.routing import expires_s, routing_key
from parallax.errors import PoisonError, UnavailableError, UnconfirmedError, UnroutableError

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S: Final = 10.0
"""For each batch, from asking for the channel to its last confirm. A confirm takes milliseconds; one that takes this
long is not coming (resource alarm, lost majority of a quorum, a broker that stalls)."""
BATCH: Final = 256
"""Most messages written together: more does not make it faster, see ``docs/adr/0008``."""
BATCH_BYTES: Final = 1024 * 1024
"""Most bytes written together, unless a single message has more."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""What RabbitMQ 4 accepts by default; a larger one would close the channel each time it is tried."""
PROBE_KEY: Final = "probe"
"""Bound to no queue: the broker confirms such a message and drops it."""


class Publisher:
    """One confirm channel for everything a service publishes."""

    def __init__(
        self, connection: ReconnectingConnection, topology: Topology, *, timeout_s: float = PUBLISH_TIMEOUT_S
    ) -> None:
        self.connection = connection
        self.topology = topology
        self.timeout_s = timeout_s
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._chores: set[asyncio.Task[None]] = set()

    def outgoing(self, message: Message) -> OutgoingMessage:
        """A message of the contract, addressed."""
        lives_s = expires_s(message)
        return OutgoingMessage(
            self.topology.exchange,
            routing_key(message),
            encode(message),
            expiration_ms=None if lives_s is None else str(1000 * lives_s),
            message=message,
        )

    async def send(self, *messages: OutgoingMessage) -> None:
        """Send messages and wait for their confirms; a missing exchange or queue is declared again, once.

        Raises:
            UnavailableError: Nothing was sent.
            UnconfirmedError: Some may have been delivered, and none will be any more.
            UnroutableError: No queue takes some of them, which it lists; the others were delivered.
            PoisonError: One is too large for the broker; none was sent.
        """
        for message in messages:
            if len(message.body) > MAX_BODY_BYTES:
                raise PoisonError(f"a message of {len(message.body)} bytes is larger than {MAX_BODY_BYTES}")
        await _Call(self, messages).carry_out()

    async def channel(self) -> Channel:
        """The confirm channel, opened again when it was lost.

        Raises:
            UnavailableError: There is no connection, or the broker blocks it.
        """
        connection = await self.connection.connection()
        async with self._opening:
            if self._channel is None or self._channel.is_closed or self._channel.connection is not connection:
                self._channel = await open_channel(connection, confirms=True)
            return self._channel

    def do(self, chore: Coroutine[Any, Any, None]) -> None:
        """Let something go on without its caller."""
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def close(self) -> None:
        """Wait for what goes on without its caller; every part of it is bounded."""
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)


class _Call:
    """One call of ``send``. Its states are those of ``states.publish``."""

    def __init__(self, publisher: Publisher, messages: Sequence[OutgoingMessage]) -> None:
        self._publisher = publisher
        self._waiting = batches(messages)
        self._undelivered: list[OutgoingMessage] = []
        self._batch: ConfirmBatch | None = None
        self._channel: Channel | None = None
        self._deadline = 0.0
        self._reason: BaseException | None = None

    async def carry_out(self) -> None:
        """Do what the state says until the call has ended."""
        state, actions = states.begin(len(self._waiting))
        while state.phase not in (states.Phase.DELIVERED, states.Phase.FAILED):
            (action,) = actions
            cancellation: asyncio.CancelledError | None = None
            try:
                event = await self._act(action)
            except asyncio.CancelledError as error:
                event, cancellation = states.CallerLeft(), error
            except Exception:
                self._finish(states.transition(state, states.TimedOut())[1])  # a bug gives the call up, too
                raise
            state, actions = states.transition(state, event)
            if cancellation is not None:
                self._finish(actions)
                raise cancellation
        if failure := self._finish(actions):
            raise failure from self._reason

    async def _act(self, action: states.Action) -> states.Event:
        """Carry out an action of a call that is under way, and report what came of it."""
        match action:
            case states.Write():
                return await self._write()
            case states.AwaitAnswers():
                return await self._answers()
            case states.Declare():
                return await self._declare()
            case _:
                raise AssertionError(f"{action} ends a call")

    def _finish(self, actions: Sequence[states.Action]) -> Exception | None:
        """Carry out the actions that end a call; returns what is to be raised."""
        failure: Exception | None = None
        for action in actions:
            match action:
                case states.Abort():
                    self._publisher.connection.give_up(self._written_on)
                case states.AbortUnlessAnswered():
                    self._publisher.do(self._abort_unless_answered())
                case states.Fail(how):
                    failure = self._failure(how)
                case _:
                    pass
        return failure

    def _failure(self, how: Failure) -> Exception:
        match how:
            case Failure.UNSENT:
                return UnavailableError(str(self._reason))
            case Failure.UNCONFIRMED:
                return UnconfirmedError(str(self._reason))
            case Failure.UNROUTABLE:
                unroutable = [each.message for each in self._undelivered if each.message is not None]
                key = self._undelivered[0].key
                return UnroutableError(f"no queue takes messages with the key {key!r}", unroutable)
            case _ as never:
                assert_never(never)

    async def _write(self) -> states.Event:
        publisher = self._publisher
        self._deadline = asyncio.get_running_loop().time() + publisher.timeout_s
        try:
            with loss_is_unavailable("publishing"):
                async with asyncio.timeout_at(self._deadline):
                    channel = self._channel = await publisher.channel()
                    batch = ConfirmBatch(channel, self._waiting[0])
                    await batch.write(publisher.connection.check)
        except UnavailableError as error:
            self._reason = error
            return states.Refused()
        self._batch = batch
        return states.Written()

    async def _answers(self) -> states.Event:
        batch = self._batch
        assert batch is not None
        try:
            async with asyncio.timeout_at(self._deadline):
                await batch.answers()
        except TimeoutError:
            batch.forget()
            self._reason = UnconfirmedError(f"publishing was not confirmed within {self._publisher.timeout_s:g} s")
            return states.TimedOut()
        except DeliveryError as error:
            self._reason = error
            return states.Nacked()
        except ChannelNotFoundEntity as error:
            self._reason = error
            return self._missing(error)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled_by_caller():
                raise
            return self._lost(error)
        self._undelivered += batch.undelivered
        sent = self._waiting.pop(0)
        return states.Answered(len(sent) - len(batch.undelivered), len(batch.undelivered))

    def _lost(self, error: BaseException) -> states.Event:
        """The end of the channel or connection; a bug is raised as itself."""
        try:
            with loss_is_unavailable("publishing"):
                raise error
        except UnavailableError as loss:
            self._reason = loss
            return states.Lost()

    def _missing(self, error: ChannelNotFoundEntity) -> states.Event:
        """The broker closed the channel because it knows no exchange of that name: ours, or that of another call."""
        assert self._batch is not None
        batch = self._waiting[0]
        ours = any(each.exchange and f"exchange '{each.exchange}'" in str(error) for each in batch)
        if not ours or len(self._batch.undelivered) < len(batch):
            return states.Lost()
        self._undelivered += [each for waiting in self._waiting for each in waiting]
        self._waiting.clear()
        return states.NoExchange()

    async def _declare(self) -> states.Event:
        publisher = self._publisher
        try:
            with loss_is_unavailable("declaring the queues"):
                async with asyncio.timeout(publisher.timeout_s):
                    needed = publisher.topology.needed(each.key for each in self._undelivered)
                    await publisher.topology.declare(await publisher.connection.connection(), needed)
        except UnavailableError as error:
            self._reason = error
            return states.Refused()
        self._waiting = batches(self._undelivered)
        self._undelivered = []
        return states.Declared(len(self._waiting))

    async def _abort_unless_answered(self) -> None:
        assert self._batch is not None
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._batch.answers()
        except TimeoutError:
            self._publisher.connection.give_up(self._written_on)
        except Exception as error:  # noqa: BLE001 - refused or lost: either way nothing is left to be delivered
            log.info("a publish without its caller ended with %s", describe(error))
        finally:
            self._batch.forget()

    @property
    def _written_on(self) -> AbstractConnection:
        assert self._channel is not None, "something was written"
        return self._channel.connection


async def probe(connection: AbstractConnection, topology: Topology) -> None:
    """Publish something that no queue gets, and wait for its confirm.

    Raises:
        UnavailableError: The connection was lost before.
    """
    with loss_is_unavailable("probing"):
        channel = await open_channel(connection, confirms=True)
        try:
            await channel.basic_publish(b"", exchange=topology.exchange, routing_key=PROBE_KEY, wait=False)
        finally:
            await close_channel(channel)


def batches(messages: Sequence[OutgoingMessage]) -> list[Sequence[OutgoingMessage]]:
    """The messages in their order, as many at a time as are written together."""
    found: list[Sequence[OutgoingMessage]] = []
    first = size_bytes = 0
    for index, message in enumerate(messages):
        size_bytes += len(message.body)
        if index - first == BATCH or (size_bytes > BATCH_BYTES and index > first):
            found.append(messages[first:index])
            first, size_bytes = index, len(message.body)
    if messages:
        found.append(messages[first:])
    return found
