"""Calls the class of a Modal app through the SDK: spawn, follow, cancel.

A spawned call lives at Modal, not in our connection: leaving it alone does not stop it, so every way out of
``call`` that is not its end goes through ``FunctionCall.cancel``. The format of requests and answers is that of
``modal_deployment/answering.py``; ``docs/modal.md`` describes it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

import modal
import modal.exception

from executor.endpoints.modal_answers import model_answer, remote_error
from executor.endpoints.modal_failures import call_failure, lookup_failure, polling_may_go_on, result_failure
from executor.endpoints.port import CallTrace, EndpointError, ModelAnswer, ModelRequest
from executor.error_codes import ErrorCode
from parallax.contracts.outcomes import ErrorInfo
from parallax.errors import InvalidInputError

METHOD: Final = "generate"
REQUEST_VERSION: Final = 1
LOOKUP_TIMEOUT_S: Final = 20.0
"""How long one call waits for a look-up; the SDK itself tries for a minute when Modal cannot be reached."""
POLL_S: Final = 25.0
"""One long poll; below the 30 s after which middleboxes drop silent connections."""
ABORT_BUDGET_S: Final = 5.0
"""Longest that a cancelled call is held up by cancelling it at Modal."""
CONFIRM_S: Final = 2.0
"""How long to wait for Modal to confirm that a cancelled call has ended; part of the abort budget."""
FIRST_BACKOFF_S: Final = 0.25
LAST_BACKOFF_S: Final = 5.0
"""Between polls of a running call while Modal does not answer them."""


def create_modal_endpoint(url: str, env: Mapping[str, str]) -> "ModalEndpoint":
    """The endpoint of ``modal://APP/CLASS``, with the credentials of the environment.

    Sets up the SDK for this process, see ``report_throttling_at_once``.

    Raises:
        InvalidInputError: The URL is not of that form, or a credential is missing.
    """
    report_throttling_at_once(os.environ)
    parts = urlsplit(url)
    class_name = parts.path.removeprefix("/")
    if not parts.netloc or not class_name or "/" in class_name or parts.query or parts.fragment:
        raise InvalidInputError(f"endpoint {url!r:.200} is not of the form modal://APP/CLASS")
    missing = [name for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET") if not env.get(name)]
    if missing:
        raise InvalidInputError(
            f"endpoint {url}: {' and '.join(missing)} not set; "
            "create a token at https://modal.com/settings/tokens and put both parts into the environment"
        )
    token_id, secret = env["MODAL_TOKEN_ID"], env["MODAL_TOKEN_SECRET"]

    async def connect() -> modal.Client:
        return await modal.Client.from_credentials.aio(token_id, secret)

    return ModalEndpoint(parts.netloc, class_name, connect=connect)


def report_throttling_at_once(environment: MutableMapping[str, str]) -> None:
    """Let the SDK raise when Modal throttles a request, instead of waiting: the circuit breaker decides for all calls.

    The SDK reads this setting from the process's environment alone, at each request; a user's own choice stays.
    """
    environment.setdefault("MODAL_MAX_THROTTLE_WAIT", "0")


class ModalEndpoint:
    """One class of one app; its parameter ``model`` chooses the containers."""

    provider: Final = "modal"
    reports_first_byte: Final = False
    """The SDK says nothing between the start of a call and its result."""

    def __init__(
        self,
        app: str,
        class_name: str,
        *,
        connect: Callable[[], Coroutine[Any, Any, modal.Client]],
        lookup_timeout_s: float = LOOKUP_TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> None:
        self.versions: Mapping[str, str] = {"modal": modal.__version__}
        self._app = app
        self._class_name = class_name
        self._connect = connect
        self._lookup_timeout_s = lookup_timeout_s
        self._poll_s = poll_s
        self._opening: asyncio.Task[modal.Client] | None = None
        self._lookups: dict[str, asyncio.Task[Any]] = {}
        self._starting: dict[asyncio.Future[Any], CallTrace] = {}
        self._running: set[modal.FunctionCall[Any]] = set()
        self._aborts: set[asyncio.Task[None]] = set()

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Ask once; see the port."""
        method = await self._method(request.model)
        function_call = await self._spawn(method, request, trace)
        self._running.add(function_call)
        try:
            document = await self._follow(function_call, trace)
        finally:
            self._running.discard(function_call)
        error = remote_error(document)
        if error is not None:
            raise EndpointError(error)
        return model_answer(document)

    async def close(self) -> None:
        """Cancel what still runs and close the connection."""
        for spawning, trace in tuple(self._starting.items()):
            self._keep(asyncio.create_task(self._abort_spawned(spawning, trace)))
        for function_call in tuple(self._running):
            self._start_abort(function_call)
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=ABORT_BUDGET_S)
        pending = [*self._aborts, *self._lookups.values()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if self._opening is not None:
            client = (await asyncio.gather(self._stopped_opening(self._opening), return_exceptions=True))[0]
            if isinstance(client, modal.Client):
                await client.close.aio()

    @staticmethod
    async def _stopped_opening(opening: asyncio.Task[modal.Client]) -> modal.Client:
        if not opening.done():
            opening.cancel()
        return await opening

    # --- look-up -------------------------------------------------------------------------------------------------

    async def _method(self, model: str) -> Any:
        """The method to call for a model, looked up once and shared by every call.

        The look-up goes on when the caller that began it gives up: the next one will want it too.
        """
        lookup = self._lookups.get(model)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(model), name=f"look up {self._app} {model}")
            lookup.add_done_callback(self._looked_up)
            self._lookups[model] = lookup
        await asyncio.wait({lookup}, timeout=self._lookup_timeout_s)
        if not lookup.done():
            message = f"looking up {self._class_name} of app {self._app} took over {self._lookup_timeout_s:g} s"
            info = ErrorInfo(error_class="unavailable", code=ErrorCode.LOOKUP_TIMEOUT, message=message, retryable=True)
            raise EndpointError(info, not_ready=True)
        try:
            return lookup.result()
        except Exception as error:
            raise lookup_failure(error) from error

    async def _look_up(self, model: str) -> Any:
        instance: Any = modal.Cls.from_name(self._app, self._class_name, client=await self._client())
        await instance.hydrate.aio()
        method = getattr(instance(model=model), METHOD)
        await method.hydrate.aio()
        return method

    async def _client(self) -> modal.Client:
        """The connection, opened by whoever needs it first; a failure is tried again by the next."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._connect(), name=f"connect to Modal for {self._app}")
        return await asyncio.shield(self._opening)

    def _looked_up(self, lookup: asyncio.Task[Any]) -> None:
        """Forget a look-up that failed, so that the next call looks up anew: the app may have been deployed since."""
        if lookup.cancelled() or lookup.exception() is not None:
            self._lookups = {model: other for model, other in self._lookups.items() if other is not lookup}

    # --- one call ------------------------------------------------------------------------------------------------

    async def _spawn(self, method: Any, request: ModelRequest, trace: CallTrace) -> modal.FunctionCall[Any]:
        """Start the call. A cancellation in between waits for the call's id, to cancel what has been started."""
        spawning = asyncio.ensure_future(method.spawn.aio(request_document(request)))
        self._starting[spawning] = trace
        try:
            function_call: modal.FunctionCall[Any] = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait({self._keep(asyncio.create_task(self._abort_spawned(spawning, trace)))})
            raise
        except Exception as error:
            if isinstance(error, modal.exception.NotFoundError):
                self._lookups.pop(request.model, None)
            raise call_failure(error) from error
        finally:
            del self._starting[spawning]
        trace.provider_call_id = function_call.object_id
        return function_call

    async def _abort_spawned(self, spawning: asyncio.Future[Any], trace: CallTrace) -> None:
        await asyncio.wait({spawning}, timeout=ABORT_BUDGET_S)
        if not spawning.done():
            spawning.cancel()
            await asyncio.wait({spawning}, timeout=ABORT_BUDGET_S)
        elif not spawning.cancelled() and spawning.exception() is None:
            trace.provider_call_id = spawning.result().object_id
            await self._cancel(spawning.result())

    async def _follow(self, function_call: modal.FunctionCall[Any], trace: CallTrace) -> object:
        """Wait for the result; whoever leaves without one cancels the call, which may still run for all we know."""
        following = asyncio.ensure_future(self._result(function_call))
        following.add_done_callback(_seen)
        ended = False
        try:
            await asyncio.wait({following})
            document = following.result()
            ended = True
        finally:
            if not ended:
                # First things first: the provider charges until it hears of this.
                abort = self._start_abort(function_call)
                following.cancel()
                await asyncio.wait({abort, following}, timeout=ABORT_BUDGET_S)
        if isinstance(document, Mapping) and isinstance(document.get("region"), str):
            trace.region_observed = document["region"][:200]
        return document

    async def _result(self, function_call: modal.FunctionCall[Any]) -> object:
        """Poll until the call has ended. While Modal cannot be asked the call may well go on, and so do we.

        Bounded by the caller, who cancels this task when the attempt has taken too long.

        Raises:
            EndpointError: The call ended without a result, or we may not ask for it.
        """
        loop = asyncio.get_running_loop()
        backoff_s = FIRST_BACKOFF_S
        while True:
            asked = loop.time()
            try:
                return await function_call.get.aio(timeout=self._poll_s)
            except TimeoutError as error:
                # The SDK's word for "still running"; one that comes early was raised by the function itself.
                if loop.time() - asked < self._poll_s / 2:
                    raise result_failure(error) from error
                backoff_s = FIRST_BACKOFF_S
            except Exception as error:
                if not polling_may_go_on(error):
                    raise result_failure(error) from error
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    def _start_abort(self, function_call: modal.FunctionCall[Any]) -> asyncio.Task[None]:
        """Cancel in a task of its own, so that cancelling the caller again does not stop it."""
        return self._keep(asyncio.create_task(self._cancel(function_call), name=f"cancel {function_call.object_id}"))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)
        return task

    @staticmethod
    async def _cancel(function_call: modal.FunctionCall[Any]) -> None:
        """Cancel at Modal and see the call end. Other inputs of its container go on: they are other people's."""
        try:
            async with asyncio.timeout(ABORT_BUDGET_S):
                await function_call.cancel.aio(terminate_containers=False)
                await function_call.get.aio(timeout=CONFIRM_S)
        except Exception:  # noqa: BLE001, S110 - how a cancelled call ends, or that Modal is away, changes nothing any more
            pass


def _seen(ended: asyncio.Future[Any]) -> None:
    """Look at how something ended that nobody may be waiting for any more, so that asyncio does not complain."""
    if not ended.cancelled():
        ended.exception()


def request_document(request: ModelRequest) -> dict[str, Any]:
    """The request as the class takes it: plain values, so that both sides may be of different versions."""
    return {
        "version": REQUEST_VERSION,
        "request_id": f"{request.execution_id}/{request.attempt}",
        "model": request.model,
        "upstream": request.upstream,
        "revision": request.revision,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "parameters": request.parameters.model_dump(mode="json", exclude_none=True),
    }
