"""A control plane like Modal's, as far as a client that calls deployed classes can tell. The real SDK talks to it.

Containers are coroutines of this process: a call is a task running the handler of its class, cancelling it raises
``CancelledError`` in that task alone, as Modal does in an asynchronous method that takes concurrent inputs.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal._serialization import deserialize_data_format, deserialize_proto_params, serialize, serialize_data_format
from modal_proto import api_pb2

from tests.fakes.modal_rpc import Faults, Refusing, Stream, metadata_of, serving, unary

TOKEN_ID = "ak-test"
TOKEN_SECRET = "as-test"

Handler = Callable[[str, Any], Awaitable[object]]
"""What a container does with an input: (value of the class parameter ``model``, request) -> answer."""

_PICKLE = api_pb2.DATA_FORMAT_PICKLE
_FORMATS = [_PICKLE, api_pb2.DATA_FORMAT_CBOR]
_Result = api_pb2.GenericResult


class ContainerTimeoutError(Exception):
    """Raised by a handler: the input ran into the function's own timeout."""


class ContainerLostError(Exception):
    """Raised by a handler: Modal lost the container."""


@dataclass(slots=True)
class Deployed:
    """A class, or a function, that can be called."""

    app: str
    name: str
    method: str
    """Of a class; empty for a function."""
    handler: Handler
    web_url: str = ""

    @property
    def function_id(self) -> str:
        """The id of its service function."""
        return f"fu-{self.app}-{self.name}"


@dataclass(slots=True)
class Call:
    """One function call, as the control plane remembers it."""

    call_id: str
    deployed: Deployed
    model: str
    request: Any
    uploaded: bool
    """Whether the arguments came through blob storage."""
    data_format: api_pb2.DataFormat.ValueType
    """How the client encoded the arguments; the result comes back the same way."""
    task: asyncio.Task[api_pb2.FunctionGetOutputsItem] | None = None
    started_at: float = field(default_factory=time.monotonic)
    polls: int = 0
    """How often its result was asked for."""
    cancels: list[float] = field(default_factory=list)
    """When a cancellation arrived, each time."""
    terminated_containers: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing runs for it any more."""
        return self.task is not None and self.task.done()


class ControlPlane(Refusing):
    """The service. ``deploy`` classes, then let a client call them."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.calls: list[Call] = []
        self.deployed: dict[tuple[str, str], Deployed] = {}
        self.lookups = 0
        self.blobs: dict[str, bytes] = {}
        self.hold: dict[str, asyncio.Event] = {}
        """Calls to answer only after an event."""
        self.holding = asyncio.Semaphore(0)
        """Released once for every call that is being held."""
        self.storage_url = ""
        self.changed = asyncio.Event()
        """Set whenever a call begins, is cancelled or ends."""
        self._bound: dict[str, tuple[Deployed, str]] = {}
        self._by_key: dict[str, Call] = {}
        self._ids = count(1)

    def deploy(self, app: str, name: str, handler: Handler, *, method: str = "generate") -> None:
        """Make a class callable."""
        self.deployed[(app, name)] = Deployed(app, name, method, handler)

    def deploy_function(self, app: str, name: str, handler: Handler, *, web_url: str = "") -> None:
        """Make a function callable, or, with a URL, known as a web endpoint."""
        deployed = Deployed(app, name, "", handler, web_url)
        self.deployed[(app, name)] = deployed
        self._bound[deployed.function_id] = (deployed, "")

    @property
    def running(self) -> list[Call]:
        """Calls whose input still runs."""
        return [call for call in self.calls if not call.ended]

    def authenticate(self, stream: Stream) -> None:
        """Turn away whoever has no valid token."""
        metadata = metadata_of(stream)
        if (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")) != (TOKEN_ID, TOKEN_SECRET):
            raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")

    async def close(self) -> None:
        """End every call."""
        tasks = [call.task for call in self.calls if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @unary
    async def ClientHello(self, _: Empty, __: Stream) -> api_pb2.ClientHelloResponse:  # noqa: N802
        return api_pb2.ClientHelloResponse()

    @unary
    async def ClassGet(self, request: api_pb2.ClassGetRequest, _: Stream) -> api_pb2.ClassGetResponse:  # noqa: N802
        deployed = self._find(request.app_name, request.object_tag)
        return api_pb2.ClassGetResponse(class_id=f"cs-{deployed.app}-{deployed.name}")

    @unary
    async def FunctionGet(  # noqa: N802
        self, request: api_pb2.FunctionGetRequest, _: Stream
    ) -> api_pb2.FunctionGetResponse:
        self.lookups += 1
        deployed = self._find(request.app_name, request.object_tag.removesuffix(".*"))
        ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=api_pb2.Function(function_name=deployed.name))
        return api_pb2.FunctionGetResponse(
            function_id=deployed.function_id,
            handle_metadata=_handle(deployed),
            function=api_pb2.FunctionData(ranked_functions=[ranked]),
        )

    @unary
    async def FunctionBindParams(  # noqa: N802
        self, request: api_pb2.FunctionBindParamsRequest, _: Stream
    ) -> api_pb2.FunctionBindParamsResponse:
        deployed = next(d for d in self.deployed.values() if d.function_id == request.function_id)
        model = str(deserialize_proto_params(request.serialized_params)["model"])
        bound_id = f"fu-bound-{deployed.app}-{hashlib.sha256(model.encode()).hexdigest()[:12]}"
        self._bound[bound_id] = (deployed, model)
        return api_pb2.FunctionBindParamsResponse(bound_function_id=bound_id, handle_metadata=_handle(deployed))

    @unary
    async def FunctionMap(  # noqa: N802
        self, request: api_pb2.FunctionMapRequest, stream: Stream
    ) -> api_pb2.FunctionMapResponse:
        if "FunctionMap" in self.hold:
            self.holding.release()
            await self.hold["FunctionMap"].wait()
        call = self._call_of(request, metadata_of(stream)["x-idempotency-key"])
        item = api_pb2.FunctionPutInputsResponseItem(idx=0, input_id=f"in-{call.call_id}", input_jwt="jwt")
        return api_pb2.FunctionMapResponse(
            function_call_id=call.call_id, pipelined_inputs=[item], function_call_jwt="jwt"
        )

    @unary
    async def FunctionGetOutputs(  # noqa: N802
        self, request: api_pb2.FunctionGetOutputsRequest, _: Stream
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self._known(request.function_call_id)
        call.polls += 1
        self.changed.set()
        assert call.task is not None
        await asyncio.wait({call.task}, timeout=request.timeout)
        if not call.task.done():
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        return api_pb2.FunctionGetOutputsResponse(outputs=[call.task.result()])

    @unary
    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest, _: Stream) -> Empty:  # noqa: N802
        call = self._known(request.function_call_id)
        call.cancels.append(time.monotonic())
        self.changed.set()
        call.terminated_containers |= request.terminate_containers
        assert call.task is not None
        call.task.cancel()
        return Empty()

    @unary
    async def BlobCreate(self, _: api_pb2.BlobCreateRequest, __: Stream) -> api_pb2.BlobCreateResponse:  # noqa: N802
        blob_id = f"bl-{next(self._ids)}"
        urls = api_pb2.UploadUrlList(items=[f"{self.storage_url}/{blob_id}"])
        return api_pb2.BlobCreateResponse(blob_ids=[blob_id], upload_urls=urls)

    @unary
    async def BlobGet(self, request: api_pb2.BlobGetRequest, _: Stream) -> api_pb2.BlobGetResponse:  # noqa: N802
        return api_pb2.BlobGetResponse(download_url=f"{self.storage_url}/{request.blob_id}")

    def _find(self, app: str, name: str) -> Deployed:
        if (app, name) not in self.deployed:
            raise GRPCError(Status.NOT_FOUND, f"no class {name!r} in app {app!r}")
        return self.deployed[(app, name)]

    def _known(self, call_id: str) -> Call:
        call = next((call for call in self.calls if call.call_id == call_id), None)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"no function call {call_id!r}")
        return call

    def _call_of(self, request: api_pb2.FunctionMapRequest, key: str) -> Call:
        """A new call, or the one that an earlier request with the same idempotency key began."""
        if key in self._by_key:
            return self._by_key[key]
        deployed, model = self._bound[request.function_id]
        item = request.pipelined_inputs[0].input
        uploaded = item.WhichOneof("args_oneof") == "args_blob_id"
        body = self.blobs[item.args_blob_id] if uploaded else item.args
        args, _ = deserialize_data_format(body, item.data_format, None)
        call = Call(f"fc-{next(self._ids)}", deployed, model, args[0] if args else None, uploaded, item.data_format)
        call.task = asyncio.create_task(_run(call), name=call.call_id)
        call.task.add_done_callback(lambda _: self.changed.set())
        self.calls.append(call)
        self.changed.set()
        self._by_key[key] = call
        return call


async def _run(call: Call) -> api_pb2.FunctionGetOutputsItem:
    """Run the input to its end; whatever happens is a result."""
    started = time.time()
    try:
        answer = await call.deployed.handler(call.model, call.request)
        result = _Result(status=_Result.GENERIC_STATUS_SUCCESS, data=serialize_data_format(answer, call.data_format))
    except asyncio.CancelledError:
        result = _Result(status=_Result.GENERIC_STATUS_TERMINATED, exception="input was cancelled")
    except ContainerTimeoutError as error:
        result = _Result(status=_Result.GENERIC_STATUS_TIMEOUT, exception=str(error))
    except ContainerLostError as error:
        result = _Result(status=_Result.GENERIC_STATUS_INTERNAL_FAILURE, exception=str(error))
    except Exception as error:  # noqa: BLE001 - a container reports whatever the user's code raised
        data = serialize(error) if call.data_format == _PICKLE else b""
        result = _Result(status=_Result.GENERIC_STATUS_FAILURE, exception=repr(error), data=data)
    return api_pb2.FunctionGetOutputsItem(result=result, idx=0, data_format=call.data_format, input_started_at=started)


def _handle(deployed: Deployed) -> api_pb2.FunctionHandleMetadata:
    """What a client learns about a class by looking it up."""
    kind = api_pb2.Function.FUNCTION_TYPE_FUNCTION
    if not deployed.method:
        return api_pb2.FunctionHandleMetadata(
            function_name=deployed.name,
            function_type=kind,
            web_url=deployed.web_url,
            app_id=f"ap-{deployed.app}",
            supported_input_formats=_FORMATS,
            supported_output_formats=_FORMATS,
        )
    text = api_pb2.GenericPayloadType(base_type=api_pb2.PARAM_TYPE_STRING)
    parameter = api_pb2.ClassParameterSpec(name="model", type=api_pb2.PARAM_TYPE_STRING, full_type=text)
    method = api_pb2.FunctionHandleMetadata(
        function_name=f"{deployed.name}.{deployed.method}",
        function_type=kind,
        is_method=True,
        use_method_name=deployed.method,
        app_id=f"ap-{deployed.app}",
        supported_input_formats=_FORMATS,
        supported_output_formats=_FORMATS,
    )
    return api_pb2.FunctionHandleMetadata(
        function_name=f"{deployed.name}.*",
        function_type=kind,
        app_id=f"ap-{deployed.app}",
        class_parameter_info=api_pb2.ClassParameterInfo(
            format=api_pb2.ClassParameterInfo.PARAM_SERIALIZATION_FORMAT_PROTO, schema=[parameter]
        ),
        method_handle_metadata={deployed.method: method},
        supported_input_formats=_FORMATS,
        supported_output_formats=_FORMATS,
    )


@asynccontextmanager
async def control_plane(plane: ControlPlane) -> AsyncIterator[str]:
    """Serve a control plane and its blob storage; gives the URL for ``MODAL_SERVER_URL``."""
    async with _storage(plane), serving(plane) as url:
        try:
            yield url
        finally:
            await plane.close()


@asynccontextmanager
async def _storage(plane: ControlPlane) -> AsyncIterator[None]:
    """Blob storage: what is put under a URL can be got from there, and the ETag is its MD5 sum, as S3 does it."""

    async def put(request: web.Request) -> web.Response:
        body = await request.read()
        plane.blobs[request.match_info["blob"]] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})

    async def get(request: web.Request) -> web.Response:
        return web.Response(body=plane.blobs[request.match_info["blob"]])

    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.add_routes([web.put("/{blob}", put), web.get("/{blob}", get)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        plane.storage_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        await runner.cleanup()
