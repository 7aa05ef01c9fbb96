"""One connection of the protocol layer, which reports its end and the broker's ``connection.blocked``.

The library keeps both to itself. It is told apart from the rest because it overrides what the library does not offer.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiormq import spec
from aiormq.connection import Connection
from yarl import URL

from parallax.bus.amqp.transport import GatheringTransport

HEARTBEAT_S: Final = "8"
"""The broker sends something every 4 s, and allows us a silence of 16 s, in which a busy process may pause."""


class BrokerConnection(Connection):
    """A connection that calls back when it is lost, blocked and unblocked, each at once."""

    HEARTBEAT_GRACE_MULTIPLIER = 1.15  # type: ignore[assignment]
    """Of 9 s: two heartbeats of the broker missed and 2 s of slack. It is looked at every 4 s, so that a silent broker
    is noticed within 15 s (the library's default takes half a minute)."""

    def __init__(
        self,
        url: URL,
        *,
        name: str,
        on_lost: Callable[[], None],
        on_blocked: Callable[[str], None],
        on_unblocked: Callable[[], None],
    ) -> None:
        self._transport = GatheringTransport()
        super().__init__(
            url.update_query({"heartbeat": url.query.get("heartbeat", HEARTBEAT_S)}),
            transport_factory=self._transport,
            client_properties={"connection_name": name},
        )
        self._on_lost = on_lost
        self._on_blocked = on_blocked
        self._on_unblocked = on_unblocked

    def abort(self) -> None:
        """Reset the socket: nothing that the broker has not read is delivered any more."""
        if self._transport.writer is not None:
            self._transport.writer.reset()

    def _on_reader_done(self, task: "asyncio.Task[Any]") -> None:
        super()._on_reader_done(task)
        self._on_lost()

    async def _Connection__handle_connection_blocked(self, frame: spec.Connection.Blocked) -> None:  # noqa: N802
        self._on_blocked(str(frame.reason))

    async def _Connection__handle_connection_unblocked(self, frame: spec.Connection.Unblocked) -> None:  # noqa: N802
        del frame
        self._on_unblocked()


assert hasattr(Connection, "_Connection__handle_connection_blocked"), "another aiormq: see what it does when blocked"
assert hasattr(Connection, "_Connection__handle_connection_unblocked"), "another aiormq: see what it does when blocked"
