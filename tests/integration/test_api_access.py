"""Where keys are required nothing is told or done without one; every denial is counted."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from parallax.errors import InvalidInputError
from results.api import keys
from results.api.keys import Scope
from results.api.settings import ApiSettings
from tests.integration.api_stage import Stage, job_document, staged

NOW = datetime.now(UTC)


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url, ApiSettings(host="0.0.0.0", require_keys=True)) as running:
        await running.accept("job-1")
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status_of(stage: Stage, key: str, method: str, path: str) -> int:
    content = job_document() if path == "/v1/jobs" and method == "POST" else None
    return (await stage.http.request(method, path, headers=bearer(key), json=content)).status_code


@pytest.mark.parametrize(
    ("scope", "read", "submit", "cancel"),
    [
        (Scope.READ, 200, 403, 403),
        (Scope.SUBMIT, 200, 202, 403),
        (Scope.CANCEL, 200, 403, 202),
        (Scope.ADMIN, 200, 202, 202),
    ],
)
async def test_a_scope_allows_just_what_it_says(
    stage: Stage, scope: Scope, read: int, submit: int, cancel: int
) -> None:
    key = await keys.create(stage.engine, scope, now=NOW)
    assert await status_of(stage, key, "GET", "/v1/jobs") == read
    assert await status_of(stage, key, "POST", "/v1/jobs") == submit
    assert await status_of(stage, key, "POST", "/v1/jobs/job-1/cancel") == cancel


async def test_every_resource_but_the_probes_needs_a_key(stage: Stage) -> None:
    document = (await stage.http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method in methods:
            place = path.replace("{job_id}", "job-1").replace("{execution_id}", "0" * 32)
            response = await stage.http.request(method, place)
            if path in {"/livez", "/readyz"}:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"].startswith("Bearer")
    for page in ("/", "/jobs/job-1"):
        assert (await stage.http.get(page)).status_code == 401, page


async def test_browsers_send_the_key_as_a_password(stage: Stage) -> None:
    key = await keys.create(stage.engine, Scope.READ, now=NOW)
    assert (await stage.http.get("/v1/jobs", auth=("anyone", key))).status_code == 200
    assert (await stage.http.get("/v1/jobs", auth=("anyone", key[:-1]))).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Bearer plx_000000000000_" + "a" * 43,
        "Basic !",
        "Digest a",
        "Basic " + base64.b64encode(b"\xff").decode(),
    ],
)
async def test_anything_else_opens_nothing(stage: Stage, header: str) -> None:
    assert (await stage.http.get("/v1/jobs", headers={"Authorization": header})).status_code == 401


async def test_a_key_ends_when_it_expires_or_is_revoked(stage: Stage) -> None:
    expired = await keys.create(stage.engine, Scope.READ, now=NOW - timedelta(days=2), lifetime=timedelta(days=1))
    revoked = await keys.create(stage.engine, Scope.READ, now=NOW, label="for the dashboard")
    assert await status_of(stage, revoked, "GET", "/v1/jobs") == 200
    listed = {key.key_id: key for key in await keys.listed(stage.engine)}
    mine = listed[revoked.split("_")[1]]
    assert (mine.label, mine.scope, mine.revoked_at, mine.last_used_at is not None) == (
        "for the dashboard", Scope.READ, None, True,
    )  # fmt: skip
    assert await keys.revoke(stage.engine, mine.key_id, now=NOW)
    assert not await keys.revoke(stage.engine, "unknown", now=NOW)
    for key in (expired, revoked):
        assert await status_of(stage, key, "GET", "/v1/jobs") == 401
    shortened = await keys.create(stage.engine, Scope.READ, now=NOW)
    assert await keys.expire(stage.engine, shortened.split("_")[1], at=NOW - timedelta(seconds=1))
    assert await status_of(stage, shortened, "GET", "/v1/jobs") == 401


async def test_the_database_never_sees_a_secret(stage: Stage) -> None:
    key = await keys.create(stage.engine, Scope.ADMIN, now=NOW)
    async with stage.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT api_keys::text FROM results.api_keys"))).scalars().all()
    assert rows
    assert not any(key.rpartition("_")[2] in row for row in rows)


async def test_denials_are_counted_by_reason(stage: Stage) -> None:
    reader = await keys.create(stage.engine, Scope.READ, now=NOW)
    await stage.http.get("/v1/jobs")
    await stage.http.get("/v1/jobs", headers=bearer("nonsense"))
    await status_of(stage, reader, "POST", "/v1/jobs")
    metrics = (await stage.http.get("/metrics", headers=bearer(reader))).text
    for reason in ("missing", "malformed", "scope"):
        assert f'parallax_api_denied_total{{reason="{reason}"}} 1.0' in metrics
    assert 'parallax_api_requests_total{method="POST",route="/v1/jobs",status="403"} 1.0' in metrics


async def test_a_service_that_nobody_could_use_does_not_start(stage: Stage) -> None:
    with pytest.raises(InvalidInputError, match="parallax keys create"):
        async with stage.app.router.lifespan_context(stage.app):
            pass
    await keys.create(stage.engine, Scope.READ, now=NOW)
    async with stage.app.router.lifespan_context(stage.app):
        pass


async def test_pages_of_other_origins_read_nothing_unless_named(database_url: str, stage: Stage) -> None:
    origin = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    assert (await stage.http.options("/v1/jobs", headers=origin)).status_code == 405
    settings = ApiSettings(cors_origins=("https://app.example",))
    async with staged(database_url, settings) as allowing:
        answer = await allowing.http.options("/v1/jobs", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = await allowing.http.get("/v1/jobs", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
