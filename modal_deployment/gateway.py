"""How the web endpoint reaches the class that answers: the same calls an executor makes."""

import asyncio
from typing import Any, Final

from modal_deployment.answering import Document

CANCEL_BUDGET_S: Final = 5.0
"""Longest wait for Modal to take a cancellation; the client has left by then."""


async def call(method: Any, request: Document) -> Document:
    """Call a method of a Modal class and wait for its answer; cancelling the awaiting task cancels the call.

    Leaving a call alone does not stop it: without the cancellation the container would go on generating.
    """
    function_call = await method.spawn.aio(request)
    finished = False
    try:
        answer: Document = await function_call.get.aio()
        finished = True
    finally:
        if not finished:
            cancelling = asyncio.ensure_future(function_call.cancel.aio(terminate_containers=False))
            await asyncio.wait({cancelling}, timeout=CANCEL_BUDGET_S)
            cancelling.cancel()
    return answer
