"""The API is never open to other machines by accident."""

import pytest

from parallax.errors import InvalidInputError
from results.api.settings import ApiSettings, from_environment, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_open_by_default(host: str) -> None:
    assert is_loopback(host)
    assert not ApiSettings(host=host).require_keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "localhost.example.org", ""])
def test_any_other_address_needs_keys(host: str) -> None:
    with pytest.raises(InvalidInputError, match="PARALLAX_REQUIRE_KEYS"):
        ApiSettings(host=host)
    assert ApiSettings(host=host, require_keys=True).require_keys


def test_the_environment_requires_keys_off_loopback() -> None:
    assert not from_environment({}).require_keys
    assert not from_environment({"PARALLAX_HTTP": "[::1]:8000"}).require_keys
    assert from_environment({"PARALLAX_HTTP": "127.0.0.1:1", "PARALLAX_REQUIRE_KEYS": "true"}).require_keys
    settings = from_environment({"PARALLAX_HTTP": "0.0.0.0:80", "PARALLAX_CORS_ORIGINS": "https://a, https://b"})
    assert (settings.require_keys, settings.host, settings.port) == (True, "0.0.0.0", 80)
    assert settings.cors_origins == ("https://a", "https://b")


@pytest.mark.parametrize(
    "env",
    [
        {"PARALLAX_HTTP": "0.0.0.0:80", "PARALLAX_REQUIRE_KEYS": "false"},
        {"PARALLAX_HTTP": "nowhere"},
        {"PARALLAX_HTTP": "127.0.0.1:99999"},
        {"PARALLAX_REQUIRE_KEYS": "perhaps"},
    ],
)
def test_what_cannot_be_right_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="PARALLAX_"):
        from_environment(env)
