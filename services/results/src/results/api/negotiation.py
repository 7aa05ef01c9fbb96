"""Media types: what a client accepts, and what it sends."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from results.api.problems import ApiError, Kind


def produces(*media_types: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses a client who accepts none of these media types (406)."""

    async def check(request: Request) -> None:
        accepted = request.headers.get("accept", "*/*") or "*/*"
        if not any(accepts(accepted, media_type) for media_type in media_types):
            raise ApiError(Kind.NOT_ACCEPTABLE, f"this resource comes as {' or '.join(media_types)}")

    return check


def accepts(header: str, media_type: str) -> bool:
    """Whether an ``Accept`` header covers a media type; the most specific range that matches decides."""
    best, verdict = -1, False
    main, _, _ = media_type.partition("/")
    for item in header.lower().split(","):
        wanted, _, parameters = item.strip().partition(";")
        specific = {media_type: 2, f"{main}/*": 1, "*/*": 0}.get(wanted.strip(), -1)
        if specific > best:
            best, verdict = specific, _quality(parameters) > 0
    return verdict


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON (415).

    This also keeps other sites' forms out: a browser sends JSON to another site only after asking it.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json" and not (sent.startswith("application/") and sent.endswith("+json")):
        raise ApiError(Kind.UNSUPPORTED_MEDIA_TYPE, "the body must be sent as application/json")
