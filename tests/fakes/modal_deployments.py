"""Takes deployments as Modal does and remembers what they said, as far as ``modal deploy`` can tell. Builds nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from tests.fakes.modal_rpc import Faults, Refusing, Stream, serving, unary

BUILDER_VERSION = "2025.06"


class Deployments(Refusing):
    """The service that ``modal deploy`` talks to."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.published: dict[str, list[str]] = {}
        """Names of the functions of each deployed app."""
        self.functions: dict[str, dict[str, Any]] = {}
        """What each app said about its functions, by app and function name."""
        self.images: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        """Names of the secrets and volumes that were asked for, by id."""
        self._apps: dict[str, str] = {}
        self._ids = count(1)

    def authenticate(self, stream: Stream) -> None:
        """Anybody may deploy here."""

    @unary
    async def ClientHello(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return api_pb2.ClientHelloResponse(image_builder_version=BUILDER_VERSION)

    @unary
    async def EnvironmentGetOrCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    @unary
    async def AppGetByDeploymentName(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return api_pb2.AppGetByDeploymentNameResponse()

    @unary
    async def AppCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        app_id = f"ap-{next(self._ids)}"
        self._apps[app_id] = request.description
        return api_pb2.AppCreateResponse(app_id=app_id, app_page_url="http://127.0.0.1/app")

    @unary
    async def AppHeartbeat(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return Empty()

    @unary
    async def MountBatchedCheckExistence(self, request: Any, _: Stream) -> Any:  # noqa: N802
        return api_pb2.MountBatchedCheckExistenceResponse(checked_at=Timestamp(seconds=1))

    @unary
    async def MountPutFile(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return api_pb2.MountPutFileResponse(exists=True, checked_at=Timestamp(seconds=1))

    @unary
    async def MountGetOrCreate(self, _: Any, __: Stream) -> Any:  # noqa: N802
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="00")
        return api_pb2.MountGetOrCreateResponse(mount_id=f"mo-{next(self._ids)}", handle_metadata=metadata)

    @unary
    async def VolumeGetOrCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        volume_id = self._named("vo", request.deployment_name)
        metadata = api_pb2.VolumeMetadata(name=request.deployment_name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume_id, metadata=metadata)

    @unary
    async def SecretGetOrCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        secret_id = self._named("st", request.deployment_name or "anonymous")
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=api_pb2.SecretMetadata())

    @unary
    async def ImageGetOrCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        image_id = f"im-{next(self._ids)}"
        self.images[image_id] = request.image
        built = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        metadata = api_pb2.ImageMetadata(image_builder_version=BUILDER_VERSION)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=built, metadata=metadata)

    @unary
    async def FunctionPrecreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name, function_type=request.function_type, definition_id="de-1"
        )
        function_id = request.existing_function_id or f"fu-{next(self._ids)}"
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    @unary
    async def FunctionCreate(self, request: Any, _: Stream) -> Any:  # noqa: N802
        function = request.function_data if request.HasField("function_data") else request.function
        app = self._apps[request.app_id]
        self.functions.setdefault(app, {})[function.function_name] = function
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=function.function_name,
            function_type=function.function_type,
            class_parameter_info=function.class_parameter_info,
            definition_id="de-1",
        )
        ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=request.function)
        return api_pb2.FunctionCreateResponse(
            function_id=request.existing_function_id,
            function=request.function,
            handle_metadata=metadata,
            function_data=api_pb2.FunctionData(ranked_functions=[ranked]),
        )

    @unary
    async def ClassCreate(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return api_pb2.ClassCreateResponse(class_id=f"cs-{next(self._ids)}")

    @unary
    async def AppPublish(self, request: Any, _: Stream) -> Any:  # noqa: N802
        self.published[request.name] = [*request.function_ids]
        return api_pb2.AppPublishResponse(url="http://127.0.0.1/deployed", deployed_at=1.0)

    @unary
    async def AppClientDisconnect(self, _: Any, __: Stream) -> Any:  # noqa: N802
        return Empty()

    def image_lines(self, image_id: str) -> str:
        """The build commands of an image and of those it is based on."""
        image = self.images[image_id]
        below = "\n".join(self.image_lines(base.image_id) for base in image.base_images)
        return "\n".join([below, *image.dockerfile_commands])

    def _named(self, kind: str, name: str) -> str:
        new_id = f"{kind}-{next(self._ids)}"
        self.names[new_id] = name
        return new_id


@asynccontextmanager
async def deployments() -> AsyncIterator[tuple[Deployments, str]]:
    """A place to deploy to, and its URL for ``MODAL_SERVER_URL``."""
    service = Deployments()
    async with serving(service) as url:
        yield service, url
