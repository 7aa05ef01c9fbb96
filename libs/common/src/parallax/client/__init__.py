"""A small typed client of the HTTP API, for programs and for the ``parallax`` command."""

from parallax.client.client import ParallaxClient
from parallax.client.errors import AccessDeniedError, ConflictError, NotFoundError
from parallax.client.events import JobEvent
from parallax.client.results import Results

__all__ = [
    "AccessDeniedError",
    "ConflictError",
    "JobEvent",
    "NotFoundError",
    "ParallaxClient",
    "Results",
]
