"""From the URL in the catalog to an endpoint. Secrets come from the environment or from files, never from URLs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from executor.endpoints.openai import OpenAIEndpoint
from executor.endpoints.port import Endpoint
from parallax.errors import InvalidInputError

_FORBIDDEN_HEADER_CHARS: Final = frozenset("\r\n\0")


def create_endpoint(url: str, env: Mapping[str, str]) -> Endpoint:
    """The endpoint that a catalog's URL names; whoever creates it closes it.

    Schemes: ``openai+http``, ``openai+https``, ``modal``. For OpenAI-compatible servers
    ``PARALLAX_ENDPOINT_API_KEY`` or ``PARALLAX_ENDPOINT_API_KEY_FILE`` gives the bearer token, and
    ``PARALLAX_ENDPOINT_HEADERS_FILE`` further headers, one ``Name: value`` a line; Modal takes ``MODAL_TOKEN_ID`` and
    ``MODAL_TOKEN_SECRET``.

    Raises:
        InvalidInputError: The URL or one of the files cannot be right.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InvalidInputError("an endpoint's URL holds no credentials; use PARALLAX_ENDPOINT_API_KEY_FILE")
    match parts.scheme:
        case "openai+http" | "openai+https":
            if not parts.hostname:
                raise InvalidInputError(f"endpoint {url!r:.200} names no host")
            return OpenAIEndpoint(url.removeprefix("openai+"), headers=_headers(env))
        case "modal":
            # Imported here: the package modal is an optional dependency.
            from executor.endpoints.modal import create_modal_endpoint  # noqa: PLC0415

            return create_modal_endpoint(url, env)
        case _:
            raise InvalidInputError(
                f"endpoint {url!r:.200} has an unknown scheme; allowed: openai+http, openai+https, modal"
            )


def _headers(env: Mapping[str, str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    if path := env.get("PARALLAX_ENDPOINT_HEADERS_FILE"):
        headers.update(_header(line, path) for line in _read(path).splitlines() if line.strip())
    key = env.get("PARALLAX_ENDPOINT_API_KEY")
    if path := env.get("PARALLAX_ENDPOINT_API_KEY_FILE"):
        key = _read(path).strip()
    if key:
        if not key.isascii() or _FORBIDDEN_HEADER_CHARS & set(key):
            raise InvalidInputError("the endpoint's API key is not plain ASCII text on one line")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _header(line: str, path: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip() or not line.isascii():
        raise InvalidInputError(f"{path}: every line must read 'Name: value' in ASCII")
    return name.strip(), value.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read: {type(error).__name__}") from error
