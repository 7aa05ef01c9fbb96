"""A connection to the broker that is opened again when it is lost, and one translation of what can go wrong with it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import AMQPConnectionError, AMQPError, ChannelInvalidStateError
from prometheus_client import Gauge
from yarl import URL

from parallax.bus.amqp.protocol import BrokerConnection
from parallax.bus.amqp.states import connection as states
from parallax.bus.amqp.states.connection import Phase
from parallax.errors import UnavailableError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 15.0
"""For TCP, TLS, login, topology and probe together; a broker that boots accepts connections before it answers."""
RECONNECT_PAUSE_S: Final = 0.5
"""After a failed attempt every caller fails at once for this long, so that a dead broker is not hammered."""
RECONNECT_INTERVAL_S: Final = 0.1
"""Least time between the beginnings of two attempts, for a broker that accepts a connection and drops it at once."""
CLOSE_TIMEOUT_S: Final = 5.0
"""Closing in good order may take this long; a broker that stopped reading does not answer."""

BLOCKED: Final = Gauge(
    "parallax_bus_blocked", "Whether the broker blocks publishing on a connection (resource alarm).", ["connection"]
)

Prepare = Callable[[AbstractConnection], Awaitable[None]]


@contextmanager
def loss_is_unavailable(what: str) -> Iterator[None]:
    """Turn the many ways in which aiormq reports a lost channel or connection into ``UnavailableError``.

    Two of them are ``CancelledError`` in a task that nobody cancelled and a bare ``Exception``, with which it rejects
    whatever waits when it knows no reason, and one is the end of its iterator of frames.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if is_cancelled_by_caller():
            raise
        raise UnavailableError(f"{what}: the connection was lost") from error
    except (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, StopAsyncIteration) as error:
        raise UnavailableError(f"{what}: {describe(error)}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise UnavailableError(f"{what}: the connection was lost") from error


def is_cancelled_by_caller() -> bool:
    """Whether the current task was cancelled by somebody, and not by the library's own bookkeeping."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def describe(error: BaseException) -> str:
    """An error of the client library as text, always with its class: many come without a message."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class ReconnectingConnection:
    """One connection, kept open from ``start`` to ``close``. Its states are those of ``states.connection``.

    ``prepare`` runs on every new connection before anybody else gets it. ``probe``, where there is one, then publishes
    something harmless: the connection is live when that is confirmed, and blocked when the broker says so instead.
    """

    def __init__(self, url: URL, *, name: str, prepare: Prepare, probe: Prepare | None = None) -> None:
        self._url = url
        self._name = name
        self._prepare = prepare
        self._probe = probe
        self._state, self._first = states.begin()
        self._current: BrokerConnection | None = None
        self._failure: Exception = UnavailableError("not connected yet")
        self._changed = asyncio.Event()
        self._effort: asyncio.Task[None] | None = None
        """The attempt or the pause that is under way."""
        self._chores: set[asyncio.Task[None]] = set()
        self._next_attempt_at = 0.0

    @property
    def live(self) -> bool:
        """Whether there is a connection right now, blocked or not."""
        return self._state.phase in (Phase.LIVE, Phase.BLOCKED)

    @property
    def publishable(self) -> bool:
        """Whether something can be published right now."""
        return self._state.phase is Phase.LIVE

    @property
    def blocked(self) -> bool:
        """Whether the broker reads no publishes from this connection."""
        return self._state.phase is Phase.BLOCKED

    async def start(self) -> None:
        """Connect; a broker that blocks publishing is connected to all the same.

        Raises:
            UnavailableError: The first attempt failed. Others follow, until ``close``.
        """
        self._carry_out(self._first)
        await self._attempted()
        if not self.blocked:
            self.check()

    def check(self) -> None:
        """Raise unless the connection is live.

        Raises:
            UnavailableError: It is not, and this is why.
        """
        match self._state.phase:
            case Phase.LIVE:
                return
            case Phase.CONNECTING:
                raise UnavailableError(f"{self._where}: not connected")
            case Phase.BLOCKED:
                raise UnavailableError(f"the broker blocks publishing: {self._state.reason}")
            case Phase.WAITING if not isinstance(self._failure, UnavailableError):
                raise self._failure
            case Phase.WAITING:
                raise UnavailableError(self._state.reason)
            case Phase.CLOSED:
                raise UnavailableError("this client of the bus is closed")

    async def connection(self) -> AbstractConnection:
        """The connection; waits for an attempt that is under way.

        Raises:
            UnavailableError: There is none, or the broker blocks it.
        """
        await self._attempted()
        self.check()
        assert self._current is not None, "a live connection is there"
        return self._current

    async def channel(self, *, confirms: bool) -> Channel:
        """A new channel.

        Raises:
            UnavailableError: The broker cannot be reached.
        """
        return await open_channel(await self.connection(), confirms=confirms)

    def give_up(self, connection: AbstractConnection) -> None:
        """Reset the socket of a connection on which something was written that was not confirmed in time."""
        if connection is self._current and self.live:
            log.error("resetting the connection %r: a publish was not confirmed in time", self._name)
            self._handle(states.GaveUp(self._state.attempt))

    async def close(self) -> None:
        """Close the connection and open no other."""
        self._handle(states.Close())
        if self._effort is not None:
            await asyncio.gather(self._effort, return_exceptions=True)
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)

    async def _attempted(self) -> None:
        """Wait for the end of the attempt that is under way."""
        while self._state.phase is Phase.CONNECTING:
            self._changed.clear()
            await self._changed.wait()

    # --- the machine

    def _handle(self, event: states.Event) -> None:
        before = self._state
        self._state, actions = states.transition(before, event)
        if self._state != before:
            self._report(before)
            self._changed.set()
        self._carry_out(actions)

    def _report(self, before: states.ConnectionState) -> None:
        BLOCKED.labels(self._name).set(self.blocked)
        match before.phase, self._state.phase:
            case _, Phase.BLOCKED:
                log.warning("the broker blocks publishing on %r: %s", self._name, self._state.reason)
            case Phase.BLOCKED, Phase.LIVE:
                log.info("the broker accepts publishing on %r again", self._name)
            case Phase.CONNECTING, Phase.LIVE:
                log.info("connected to %s as %r", self._where, self._name)
            case Phase.LIVE | Phase.BLOCKED, Phase.CONNECTING:
                log.warning("the connection %r was lost", self._name)
            case _:
                pass

    def _carry_out(self, actions: tuple[states.Action, ...]) -> None:
        for action in actions:
            match action:
                case states.Connect(attempt):
                    self._effort = asyncio.create_task(self._connect(attempt), name=f"connect {self._name}")
                case states.Pause():
                    self._effort = asyncio.create_task(self._pause(), name=f"reconnect {self._name}")
                case states.AbandonAttempt() | states.CancelPause():
                    if self._effort is not None:
                        self._effort.cancel()
                case states.Abort():
                    if self._current is not None:
                        self._current.abort()
                        self._do(abandon(self._current))
                case states.Disconnect():
                    if self._current is not None:
                        self._do(_disconnect(self._current))

    async def _pause(self) -> None:
        await asyncio.sleep(RECONNECT_PAUSE_S)
        self._handle(states.PauseOver())

    async def _connect(self, attempt: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next_attempt_at - loop.time()))
        self._next_attempt_at = loop.time() + RECONNECT_INTERVAL_S
        blocked = asyncio.Event()

        def on_blocked(reason: str) -> None:
            blocked.set()
            self._handle(states.Blocked(attempt, reason))

        connection = self._current = BrokerConnection(
            self._url,
            name=self._name,
            on_lost=lambda: self._handle(states.Lost(attempt)),
            on_blocked=on_blocked,
            on_unblocked=lambda: self._handle(states.Unblocked(attempt)),
        )
        try:
            with loss_is_unavailable(self._where):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.connect()
                    await self._prepare(connection)
                    if self._probe is not None:
                        await self._until_probed(self._probe(connection), blocked)
        except asyncio.CancelledError:
            await abandon(connection)
            raise
        except Exception as error:
            if not isinstance(error, UnavailableError):
                log.exception("connecting %r failed on a bug", self._name)
            await abandon(connection)
            self._failure = error
            self._handle(states.Failed(attempt, str(error)))
        else:
            # A loss that came before this is not reported again.
            alive = connection.is_opened
            self._handle(states.Connected(attempt) if alive else states.Failed(attempt, "lost at once"))

    async def _until_probed(self, probe: Awaitable[None], blocked: asyncio.Event) -> None:
        """Wait until the probe is confirmed or the broker blocks; then the probe waits for the end of the alarm."""
        probing = asyncio.ensure_future(probe)
        waiting = asyncio.create_task(blocked.wait())
        try:
            await asyncio.wait({probing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            probing.cancel()
            raise
        finally:
            waiting.cancel()
            self._do(_forget(probing))
        if probing.done():
            await probing

    @property
    def _where(self) -> str:
        return f"broker {self._url.host}:{self._url.port}"

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def _forget(probing: "asyncio.Future[None]") -> None:
    """Wait for a probe's end; its connection ends it when it is lost."""
    await asyncio.gather(probing, return_exceptions=True)


async def abandon(connection: BrokerConnection) -> None:
    """Reset a connection and let the library end its tasks."""
    connection.abort()
    await _end(connection.close(AMQPConnectionError("the connection was reset")))


async def _disconnect(connection: BrokerConnection) -> None:
    """Close a connection in good order, or reset it when the broker does not take that."""
    closing = asyncio.ensure_future(connection.close())
    if not await _end(closing):
        connection.abort()
        await _end(closing)


async def _end(closing: Awaitable[None]) -> bool:
    """Wait for the library to close something; returns whether it did so in time.

    It is not cancelled: the library answers a cancellation by waiting for the socket to take what is unsent.
    """
    task = asyncio.ensure_future(closing)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    done, _ = await asyncio.wait({task}, timeout=CLOSE_TIMEOUT_S)
    return bool(done)


async def open_channel(connection: AbstractConnection, *, confirms: bool) -> Channel:
    """A new channel of a connection.

    Raises:
        UnavailableError: The connection is lost, or the broker does not answer.
    """
    with loss_is_unavailable("opening a channel"):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if connection.is_closed:  # asked now, because the library raises a bare RuntimeError
                raise ChannelInvalidStateError("the connection is closed")
            channel = await connection.channel(publisher_confirms=confirms)
    assert isinstance(channel, Channel)
    return channel


async def close_channel(channel: AbstractChannel) -> None:
    """Close a channel, whatever state it is in."""
    if not channel.is_closed:
        with suppress(UnavailableError), loss_is_unavailable("closing a channel"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await channel.close()
