"""Writes the AsyncAPI 3.0 description of every message, generated from the models and the routing table.

``python -m parallax.asyncapi docs/asyncapi.yaml`` writes it, ``--check`` fails when the file is not current.
"""

import sys
from typing import Any, Final

import yaml
from pydantic.json_schema import models_json_schema

from parallax import __version__
from parallax.contracts.messages import MESSAGE_TYPES, ExecutionTask, FenceMarker, Message
from parallax.contracts.routing import Queue, executions, key_of, topology, waiting
from parallax.generated import keep

_SCHEMAS: Final = "#/components/schemas/{model}"
_CONSUMERS: Final = {
    "dispatcher": "the dispatcher",
    "executions": "the executors of the region",
    "waiting": "the executors of the region, which move tasks there while their model accepts no calls",
    "results": "the results service",
    "cancellations": "every executor, from the first entry on",
    "dead": "people, through `parallax dead-letters`, and the dispatcher for executions",
}


def document() -> dict[str, Any]:
    """The whole description."""
    references, schemas = models_json_schema([(model, "validation") for model in MESSAGE_TYPES], ref_template=_SCHEMAS)
    del references
    public = [model for model in MESSAGE_TYPES if model is not FenceMarker]
    queues = [queue for queue in topology(()) if not queue.dead]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Parallax messages",
            "version": __version__,
            "description": (
                "One topic exchange carries every message; its name is the installation's namespace (`parallax` by "
                "default). Queue names are given without the namespace and the dot that the bus puts in front. Bodies "
                "are JSON in UTF-8. A later version may add fields and kinds: readers ignore what they do not know. In "
                "`SubmitJob` and `CancelJob`, which come from users, unknown keys are refused."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {
            **{_slug(queue): _channel(queue) for queue in queues},
            "executions": _channel(executions("REGION")),
            "waiting": _waiting_channel(),
        },
        "operations": {f"publish_{model.__name__}": _operation(model) for model in public},
        "components": {
            "messages": {model.__name__: _message(model) for model in MESSAGE_TYPES},
            "schemas": schemas["$defs"],
        },
    }


def _slug(queue: Queue) -> str:
    return queue.name.replace(".", "_")


def _carried(queue: Queue) -> list[type[Message]]:
    return [model for model in MESSAGE_TYPES if key_of(model, "REGION") in queue.keys]


def _channel(queue: Queue) -> dict[str, Any]:
    consumer = _CONSUMERS[queue.name.split(".", maxsplit=1)[0]]
    return {
        "address": queue.name,
        "description": f"A {queue.kind.value} queue consumed by {consumer}; bound to {', '.join(queue.keys)}.",
        "messages": {m.__name__: {"$ref": f"#/components/messages/{m.__name__}"} for m in _carried(queue)},
    }


def _waiting_channel() -> dict[str, Any]:
    """Not among the messages' own channels: an executor alone publishes there, what it took from ``executions``."""
    task = ExecutionTask.__name__
    return {**_channel(waiting("REGION", "MODEL")), "messages": {task: {"$ref": f"#/components/messages/{task}"}}}


def _operation(model: type[Message]) -> dict[str, Any]:
    queue = next(q for q in (*topology(()), executions("REGION")) if key_of(model, "REGION") in q.keys and not q.dead)
    channel = "executions" if model is ExecutionTask else _slug(queue)
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": (model.__doc__ or "").strip().splitlines()[0],
        "messages": [{"$ref": f"#/channels/{channel}/messages/{model.__name__}"}],
    }


def _message(model: type[Message]) -> dict[str, Any]:
    return {
        "name": model.model_fields["kind"].default,
        "title": model.__name__,
        "description": (model.__doc__ or "").strip(),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def text() -> str:
    """The document as it stands in the repository."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:], text(), source="the models say"))
