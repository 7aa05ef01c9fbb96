"""From a catalog's URL to an endpoint, and what headers mean."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from executor.endpoints.factory import create_endpoint
from executor.endpoints.failures import retry_after_s
from executor.endpoints.openai import OpenAIEndpoint
from executor.settings import Settings, from_environment
from parallax.errors import InvalidInputError

NOW = datetime(2026, 11, 23, 16, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("url", ["openai+http://127.0.0.1:8001/v1", "openai+https://models.example/v1"])
async def test_openai_urls_give_an_openai_endpoint(url: str) -> None:
    endpoint = create_endpoint(url, {})
    assert isinstance(endpoint, OpenAIEndpoint)
    await endpoint.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1/v1", "unknown scheme"),
        ("openai+http:///v1", "names no host"),
        ("openai+http://me:secret@host/v1", "no credentials"),
    ],
)
def test_other_urls_are_refused_without_telling_secrets(url: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        create_endpoint(url, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["no colon here", ": empty name", "Ünicode: x"])
def test_a_bad_headers_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "headers"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match="Name: value"):
        create_endpoint("openai+http://host/v1", {"PARALLAX_ENDPOINT_HEADERS_FILE": str(path)})


@pytest.mark.parametrize("key", ["two\nlines", "späť"])
def test_a_bad_key_is_refused_without_telling_it(key: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        create_endpoint("openai+http://host/v1", {"PARALLAX_ENDPOINT_API_KEY": key})
    assert key not in str(caught.value)


def test_a_missing_key_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        create_endpoint("openai+http://host/v1", {"PARALLAX_ENDPOINT_API_KEY_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Mon, 23 Nov 2026 16:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 15:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_settings_come_from_the_environment() -> None:
    env = {"PARALLAX_REGION": "eu", "PARALLAX_EXECUTOR_ID": "eu-1", "PARALLAX_CONCURRENCY": "32"}
    assert from_environment(env) == Settings(region="eu", executor_id="eu-1", budget=32)


def test_an_executor_without_an_id_gets_one_of_its_own() -> None:
    first, second = (from_environment({"PARALLAX_REGION": "us"}).executor_id for _ in range(2))
    assert first.startswith("us-")
    assert first != second


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "PARALLAX_REGION"),
        ({"PARALLAX_REGION": "us", "PARALLAX_CONCURRENCY": "0"}, "PARALLAX_CONCURRENCY"),
        ({"PARALLAX_REGION": "us", "PARALLAX_CONCURRENCY": "many"}, "PARALLAX_CONCURRENCY"),
        ({"PARALLAX_REGION": "us", "PARALLAX_EXECUTOR_HEARTBEAT_S": "60"}, "PARALLAX_EXECUTOR_HEARTBEAT_S"),
        ({"PARALLAX_REGION": "us", "PARALLAX_EXECUTOR_ID": "no spaces"}, "PARALLAX_EXECUTOR_ID"),
    ],
)
def test_wrong_settings_are_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        from_environment(env)
