"""Modal's gRPC service as something tests can stand up: every call refused until a fake answers it."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server
from grpclib.server import Stream as RpcStream
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto.api_grpc import ModalClientBase

Stream = RpcStream[Any, Any]
Message = Any
"""A protocol buffer: no type information is published for their base class."""


class Refusing:
    """Modal's service, answering nothing; a fake defines what it needs, and a test sees at once what is missing.

    Not a subclass of the generated one, which is abstract in all its three hundred calls.
    """

    def __mapping__(self) -> dict[str, Handler]:
        generated: Any = ModalClientBase
        mapping: dict[str, Handler] = generated.__mapping__(self)
        return mapping

    def __getattr__(self, name: str) -> Callable[[Stream], Coroutine[Any, Any, None]]:
        if name not in ModalClientBase.__abstractmethods__:
            raise AttributeError(name)

        async def refuse(stream: Stream) -> None:
            await stream.recv_message()
            raise GRPCError(Status.UNIMPLEMENTED, f"the fake does not answer {name}")

        return refuse


def metadata_of(stream: Stream) -> dict[str, str]:
    """What the client sent along with a call."""
    return {key: str(value) for key, value in (stream.metadata or {}).items()}


class Faults:
    """Errors to answer with before the real thing, by name of the call."""

    def __init__(self) -> None:
        self._scripted: dict[str, deque[GRPCError]] = {}
        self.lost_answers: dict[str, int] = {}
        """Calls that are carried out, but whose answer is lost on the way."""

    def fail(
        self,
        rpc: str,
        status: Status,
        *,
        times: int = 1,
        details: list[Message] | None = None,
        message: str = "injected",
    ) -> None:
        """Answer the next calls with an error instead."""
        queue = self._scripted.setdefault(rpc, deque())
        queue.extend(GRPCError(status, message, details) for _ in range(times))

    def clear(self, rpc: str) -> None:
        """Forget what was scripted for one call."""
        self._scripted.pop(rpc, None)

    def before(self, rpc: str) -> None:
        """Raise what is scripted next."""
        queue = self._scripted.get(rpc)
        if queue:
            raise queue.popleft()

    def after(self, rpc: str) -> None:
        """Lose the answer if that is scripted."""
        if self.lost_answers.get(rpc, 0) > 0:
            self.lost_answers[rpc] -= 1
            raise GRPCError(Status.UNAVAILABLE, "injected: the answer was lost")


def unary(
    handler: Callable[[Any, Any, Stream], Coroutine[Any, Any, Message]],
) -> Callable[[Any, Stream], Coroutine[Any, Any, None]]:
    """A call with one request and one answer, with the fake's faults around it."""
    name = handler.__name__

    async def serve(self: Any, stream: Stream) -> None:
        request = await stream.recv_message()
        self.authenticate(stream)
        self.faults.before(name)
        answer = await handler(self, request, stream)
        self.faults.after(name)
        await stream.send_message(answer)

    serve.__name__ = name
    return serve


@asynccontextmanager
async def serving(servicer: Refusing) -> AsyncIterator[str]:
    """The service on a free port of the loopback interface; gives its URL."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    server = Server([servicer], status_details_codec=custom_detail_codec)
    await server.start(sock=listener)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait_for(server.wait_closed(), timeout=10)
        listener.close()
