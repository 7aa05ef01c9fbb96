"""How the API is bound and who may use it."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from parallax.errors import InvalidInputError
from parallax.process import http_address

DEFAULT_BIND: Final = "127.0.0.1:8000"
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings of the API and the web page; the defaults suit one person on one machine.

    Raises:
        InvalidInputError: The address can be reached from other machines and keys are not required.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    require_keys: bool = False
    """Every request but ``/livez`` and ``/readyz`` needs a key. Without keys only loopback may be bound."""
    allowed_hosts: tuple[str, ...] = ()
    """Names with dots by which clients may call this service; addresses and dotless names always may."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read the API; none unless named."""
    max_streams: int = 200
    """Event streams open at once: each asks the database up to twice a second."""
    stream_poll_s: float = 0.5
    """How long news of a job may take to reach its followers while it makes progress; in a quiet one, four times
    as long."""
    stream_ping_s: float = 15.0
    """A comment is sent after this much silence, so that proxies keep the connection."""

    def __post_init__(self) -> None:
        if not self.require_keys and not is_loopback(self.host):
            raise InvalidInputError(
                f"PARALLAX_HTTP: {self.host} can be reached from other machines, so keys are needed: set "
                "PARALLAX_REQUIRE_KEYS=true and make one with `parallax keys create --scope admin`, or bind 127.0.0.1"
            )


def from_environment(env: Mapping[str, str]) -> ApiSettings:
    """The settings in ``PARALLAX_HTTP``, ``PARALLAX_REQUIRE_KEYS``, ``PARALLAX_ALLOWED_HOSTS`` and
    ``PARALLAX_CORS_ORIGINS``; keys are required unless the address is loopback.

    Raises:
        InvalidInputError: A value cannot be right; the message names the variable and what is allowed.
    """
    host, port = http_address(env.get("PARALLAX_HTTP") or DEFAULT_BIND)
    required = env.get("PARALLAX_REQUIRE_KEYS", "false" if is_loopback(host) else "true").strip().lower()
    if required not in {"true", "false", "1", "0"}:
        raise InvalidInputError(f"PARALLAX_REQUIRE_KEYS: {required!r} is not true or false")
    return ApiSettings(
        host=host,
        port=port,
        require_keys=required in {"true", "1"},
        allowed_hosts=_listed(env.get("PARALLAX_ALLOWED_HOSTS", "")),
        cors_origins=_listed(env.get("PARALLAX_CORS_ORIGINS", "")),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on this address."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
