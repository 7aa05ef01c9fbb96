"""A consumer of a queue that attaches again whenever its channel, its connection or its queue was lost."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from aiormq.abc import DeliveredMessage

from parallax.bus import letters
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.connection import ReconnectingConnection
from parallax.bus.amqp.consumer_channel import ConsumerChannel, Pauses, attach, headers_of
from parallax.bus.amqp.delivery import AmqpDelivery
from parallax.bus.amqp.publisher import Publisher
from parallax.bus.amqp.states import queue_consumer as states
from parallax.bus.amqp.states.queue_consumer import Phase
from parallax.bus.amqp.topology import Topology
from parallax.bus.port import Delivery
from parallax.contracts.routing import Queue
from parallax.errors import StaleDeliveryError, UnavailableError, UnroutableError

log = logging.getLogger(__name__)

DEAD_LETTER_PAUSE_S: Final = 2.0
"""Between attempts to move a message to the dead letters while publishing fails."""


class QueueConsumer:
    """See :class:`parallax.bus.port.Consumption`. Its states are those of ``states.queue_consumer``."""

    def __init__(
        self,
        connection: ReconnectingConnection,
        publisher: Publisher,
        topology: Topology,
        queue: Queue,
        *,
        prefetch: int,
        handler: Callable[[Delivery], None],
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._queue = queue
        self._prefetch = prefetch
        self._handler = handler
        self._pauses = Pauses()
        self._state, self._first = states.begin()
        self._channel: ConsumerChannel | None = None
        self._failure: Exception | None = None
        self._effort: asyncio.Task[None] | None = None
        """The attempt or the pause that is under way."""
        self._cancelling: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> bool:
        """Whether the broker has this consumer right now."""
        return self._state.phase is Phase.LIVE

    async def start(self) -> None:
        """Begin to consume.

        Raises:
            UnavailableError: The broker did not give us the consumer.
        """
        self._carry_out(self._first)
        effort = self._effort
        assert effort is not None
        try:
            await effort
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.stop`."""
        self._handle(states.Stop())
        if self._cancelling is not None:
            await asyncio.shield(self._cancelling)

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.close`."""
        if self._state.phase in states.WITH_CHANNEL:
            await self.stop()
        self._handle(states.Close())
        for task in self._settling:
            task.cancel()
        effort = {self._effort} if self._effort is not None else set()
        while tasks := {task for task in (*effort, *self._settling, *self._discarding) if not task.done()}:
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the machine

    def _handle(self, event: states.Event) -> tuple[states.Action, ...]:
        before = self._state
        self._state, actions = states.transition(before, event)
        match before.phase, self._state.phase:
            case Phase.LIVE, Phase.LOST:
                log.warning("the consumer of %s was lost", self._queue.name)
            case Phase.ATTACHING, Phase.LIVE:
                log.info("the consumer of %s is back", self._queue.name)
                self._pauses.reset()
            case _:
                pass
        self._carry_out(actions)
        return actions

    def _carry_out(self, actions: tuple[states.Action, ...]) -> None:
        for action in actions:
            match action:
                case states.Attach(attempt):
                    self._effort = asyncio.create_task(self._attach(attempt), name=f"consume {self._queue.name}")
                case states.Pause():
                    self._effort = asyncio.create_task(self._pause(), name=f"consume {self._queue.name} again")
                case states.AbandonAttempt() | states.CancelPause():
                    if self._effort is not None:
                        self._effort.cancel()
                case states.Cancel():
                    self._cancelling = asyncio.create_task(self._cancel(self._state.attempt))
                case states.Discard():
                    if self._channel is not None:
                        _keep(self._discarding, self._channel.close())
                        self._channel = None
                case states.HandOver() | states.PassBack() | states.DeadLetter():
                    pass  # about the delivery at hand, see _on_message

    async def _attach(self, attempt: int) -> None:
        def on_message(channel: ConsumerChannel, message: DeliveredMessage) -> None:
            self._on_message(attempt, channel, message)

        try:
            self._channel = await attach(
                self._connection,
                self._topology,
                self._queue,
                prefetch=self._prefetch,
                on_message=on_message,
                on_end=lambda: self._handle(states.Lost(attempt)),
            )
        except Exception as error:
            if self._state.phase is Phase.STARTING:
                self._failure = error
            elif isinstance(error, UnavailableError):
                log.warning("the consumer of %s is still lost: %s", self._queue.name, error)
            else:
                log.exception("attaching to %s failed on a bug", self._queue.name)
            self._handle(states.Failed(attempt))
        else:
            # A loss that came before this is not reported again.
            ended = self._channel.ended.is_set()
            self._handle(states.Failed(attempt) if ended else states.Attached(attempt))

    async def _pause(self) -> None:
        await self._pauses.wait()
        self._handle(states.PauseOver())

    async def _cancel(self, attempt: int) -> None:
        assert self._channel is not None, "a live consumer has one"
        try:
            await self._channel.cancel()
        except UnavailableError as error:
            log.warning("the consumer of %s was not cancelled in good order: %s", self._queue.name, error)
            self._handle(states.CancelFailed(attempt))
        else:
            self._handle(states.Cancelled(attempt))

    # --- deliveries

    def _on_message(self, attempt: int, channel: ConsumerChannel, message: DeliveredMessage) -> None:
        delivery = AmqpDelivery(message, channel, self._dead_letter)
        exhausted = delivery.delivery_count >= letters.delivery_bound(delivery.headers)
        for action in self._handle(states.Arrived(attempt, exhausted)):
            match action:
                case states.HandOver():
                    self._hand_over(delivery)
                case states.PassBack():
                    _keep(self._settling, _pass_back(delivery))
                case states.DeadLetter():
                    _keep(self._settling, self._give_up(delivery))
                case _:
                    raise AssertionError(f"{action} is not about a delivery")

    def _hand_over(self, delivery: AmqpDelivery) -> None:
        try:
            self._handler(delivery)
        except Exception:
            log.exception("the handler of %s raised; its delivery stays unsettled", self._queue.name)

    async def _give_up(self, delivery: AmqpDelivery) -> None:
        reason = letters.too_many_deliveries(delivery.delivery_count)
        log.error("dead letter from %s: %s", self._queue.name, reason)
        while True:
            try:
                await delivery.reject(reason)
            except UnavailableError:
                await asyncio.sleep(DEAD_LETTER_PAUSE_S)  # until the broker is back or the delivery has gone stale
            except StaleDeliveryError:
                return
            else:
                return

    async def _dead_letter(self, message: DeliveredMessage, reason: str) -> None:
        """Publish a copy of a message to the dead letters."""
        properties, headers = message.header.properties, headers_of(message)
        key = str(headers.get(letters.KEY_HEADER) or message.routing_key)
        letter = OutgoingMessage(
            self._topology.dead_exchange,
            letters.dead_key(self._queue, key),
            message.body,
            headers={
                **letters.kept_headers(headers),
                letters.REASON_HEADER: letters.clean_reason(reason),
                letters.QUEUE_HEADER: self._queue.name,
                letters.KEY_HEADER: key,
                letters.TIME_HEADER: datetime.now(UTC).isoformat(),
            },
            reply_to=properties.reply_to,
            correlation_id=properties.correlation_id,
        )
        try:
            await self._publisher.send(letter)
        except UnroutableError as error:
            raise UnavailableError(f"no queue for dead letters with the key {letter.key!r}") from error


async def _pass_back(delivery: AmqpDelivery) -> None:
    with suppress(StaleDeliveryError):
        await delivery.pass_on()


def _keep(tasks: set[asyncio.Task[None]], chore: Coroutine[Any, Any, None]) -> None:
    """Run something and remember it until it is done."""
    task = asyncio.create_task(chore)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
