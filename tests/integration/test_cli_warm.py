"""``parallax warm`` as users type it, against scripted endpoints."""

import signal
from pathlib import Path
from typing import Any

import yaml

from parallax_cli.mock_script import Step
from tests.e2e.command import Parallax, write_catalog, write_job
from tests.fakes.model_server import model_server

NOBODY = "http://127.0.0.1:9/v1"


def _parallax(folder: Path, catalog: Path, **environment: str) -> Parallax:
    return Parallax(folder / "no-home", {"PARALLAX_CATALOG": str(catalog), **environment})


async def test_every_model_in_every_region_says_one_token(tmp_path: Path) -> None:
    async with model_server(Step(text="Hi.")) as server:
        parallax = _parallax(tmp_path, write_catalog(tmp_path / "catalog.yaml", server.url))
        warmed = await parallax("warm", str(write_job(tmp_path / "job.json", 1)), "--json")
    assert warmed.code == 0, warmed.err
    found: list[dict[str, Any]] = warmed.document()["warmed"]
    assert [(one["region"], one["model"], one["ok"]) for one in found] == [
        (region, model, True) for region in ("apac", "eu", "us") for model in ("alpha", "beta")
    ]
    assert all(one["seconds"] > 0 for one in found)
    assert len(server.calls) == 6
    assert not parallax.home.exists()


async def test_who_cannot_be_reached_is_named_and_fails_the_command(tmp_path: Path) -> None:
    async with model_server(Step(text="Hi.")) as server:
        path = write_catalog(tmp_path / "catalog.yaml", server.url)
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        document["regions"]["eu"]["endpoint"] = f"openai+{NOBODY}"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        warmed = await _parallax(tmp_path, path)("warm", str(write_job(tmp_path / "job.json", 1)))
    assert warmed.code == 4, warmed.err
    lines = {region: [line for line in warmed.out.splitlines() if f"│ {region} " in line] for region in ("eu", "us")}
    assert all("no connection" in line for line in lines["eu"])
    assert all("ok" in line for line in lines["us"])
    assert (len(lines["eu"]), len(lines["us"])) == (2, 2)


async def test_an_interruption_hangs_up(tmp_path: Path) -> None:
    async with model_server(Step(delay_s=3_600)) as server:
        parallax = _parallax(tmp_path, write_catalog(tmp_path / "catalog.yaml", server.url))
        process = await parallax.start("warm", str(write_job(tmp_path / "job.json", 1)))
        await server.until(lambda calls: len(calls) == 6)
        process.send_signal(signal.SIGINT)
        left = await parallax.ended(process)
        await server.until(lambda calls: all(call.aborted_at is not None for call in calls))
    assert left.code == 130, left.err
    assert "Traceback" not in left.err
