"""Schemathesis against a whole installation that is at work: ``python -m tests.contract.fuzz_api [--st PATH] ...``.

Schemathesis is no dependency: install it anywhere and say where its command ``st`` is. Further arguments are its
own, for example ``--max-examples 200``. Every service runs on the memory bus and an embedded PostgreSQL, the API
requires keys, and jobs in every state are there before the run begins. Jobs that the run submits are carried out,
so that it can cancel what runs, repeat what failed and read what was answered: the document it is given is the
service's own, with the ids that are stored among the values of each id.
"""

import argparse
import asyncio
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from parallax.clock import SystemClock
from parallax.contracts.messages import CancelJob
from parallax.serving import serving
from parallax.telemetry import configure_logging
from parallax_cli.mock_script import Step
from results.api import keys
from results.api.app import create_api
from results.api.settings import ApiSettings
from tests.fakes.endpoint import FakeEndpoint
from tests.harness.postgres import make_fast, postgres_server
from tests.harness.results import rows
from tests.integration.whole_stage import CATALOG, REGIONS, Whole, job, whole

CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
MODELS: Final = ["one", "two"]


def endpoints() -> dict[str, FakeEndpoint]:
    """One region answers, one fails at times, and one takes its time."""
    answers, refuses = Step(text="=an answer\n🙂"), Step(status=400, message="no")
    steps = {"us": (answers,), "eu": (refuses, answers, refuses), "apac": (Step(delay_s=0.2),)}
    return {region: FakeEndpoint(steps=steps[region]) for region in REGIONS}


async def store_jobs(installation: Whole) -> None:
    """Jobs that are completed, failed, cancelled, rejected, repeated, running and waiting."""

    def document(questions: int, **changes: Any) -> dict[str, Any]:
        return job(questions, models=[{"id": model} for model in MODELS], metadata={"team": "red"}, **changes)

    await installation.submit("rejected", job(models=[{"id": "nobody"}]))
    await installation.submit("done", document(3, samples=2))
    await installation.finished("done")
    await installation.submit("cancelled", document(200))
    await installation.bus.publish(CancelJob(job_id="cancelled", reason="enough", requested_at=SystemClock().now()))
    await installation.finished("cancelled")
    for number in range(3):
        await installation.submit(f"long-{number}", document(1_000, barrier="region"))


async def stored_ids(installation: Whole) -> dict[str, list[str]]:
    """Jobs, and executions of one of them, by the name of the parameter that takes them."""
    jobs = await rows(installation.engine, "SELECT job_id FROM results.jobs ORDER BY job_id")
    done = await installation.executions("done")
    return {"job_id": [row["job_id"] for row in jobs], "execution_id": [str(row["execution_id"]) for row in done]}


def offer(document: dict[str, Any], ids: dict[str, list[str]]) -> None:
    """Let the document name what exists: stored ids among those of a path, and what the catalog has in jobs."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"anyOf": [{"enum": ids[parameter["name"]]}, parameter["schema"]]}
    schemas = document["components"]["schemas"]
    schemas["ModelSelection"]["properties"] |= {"model": {"enum": MODELS}, "regions": {"type": "null"}}
    schemas["ModelSelection"]["required"] = ["id", "model"]
    regions = {"type": "array", "items": {"enum": list(REGIONS)}, "uniqueItems": True, "minItems": 1}
    schemas["JobSpec"]["properties"] |= {"regions": regions, "only": {"type": "null"}}


def exercised(api: FastAPI) -> str:
    """How often each resource answered with each status; methods that it does not have are left out."""
    told: dict[str, list[str]] = {}
    for sample in api.state.api.metrics.requests.collect()[0].samples:
        if sample.name.endswith("_total") and sample.labels["status"] != "405":
            resource = f"{sample.labels['method']:<8}{sample.labels['route']}"
            told.setdefault(resource, []).append(f"{sample.labels['status']}: {sample.value:.0f}")
    return "\n".join(f"{resource:<60}{', '.join(sorted(counts))}" for resource, counts in sorted(told.items()))


async def run_against(url: str, key: str, st: str, arguments: list[str]) -> int:
    """Run Schemathesis and return its exit code."""
    command = [
        st, "--config-file", str(CONFIG), "run", f"{url}/openapi.json", "--checks", "all",
        "--exclude-path", "/v1/jobs/{job_id}/events", "-H", f"Authorization: Bearer {key}", *arguments,
    ]  # fmt: skip
    return await (await asyncio.create_subprocess_exec(*command)).wait()


async def fuzz(database_url: str, st: str, arguments: list[str]) -> int:
    """Start the installation and run Schemathesis against it."""
    configure_logging("human", "ERROR")
    await make_fast(database_url)
    async with whole(database_url, endpoints()) as installation:
        await store_jobs(installation)
        key = await keys.create(installation.engine, keys.Scope.ADMIN, now=SystemClock().now())
        api = create_api(
            engine=installation.engine,
            bus=installation.bus,
            catalog=CATALOG,
            clock=SystemClock(),
            settings=ApiSettings(require_keys=True),
        )
        offer(api.openapi(), await stored_ids(installation))
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(api, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        async with serving(config, listening):
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            code = await run_against(url, key, st, arguments)
        sys.stdout.write(f"\nAnswered:\n{exercised(api)}\n")
        await installation.assert_healthy()
        return code


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--st", default="st", help="the command of Schemathesis")
    known, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder, postgres_server(Path(folder) / "data") as url:
        return asyncio.run(fuzz(url, known.st, arguments))


if __name__ == "__main__":
    sys.exit(main())
