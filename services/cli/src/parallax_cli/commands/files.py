"""``init`` and ``validate``: job files, without starting anything."""

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parallax.catalog import Catalog, offer_of
from parallax.contracts.job import JobSpec
from parallax.contracts.plan import JobPlan, batch_count, execution_count
from parallax.errors import InvalidInputError
from parallax.pricing import estimate_job
from parallax_cli import examples
from parallax_cli.commands.remote import remote_offer
from parallax_cli.connect import Target
from parallax_cli.console import stdout
from parallax_cli.exits import guarded
from parallax_cli.jobfile import load_job
from parallax_cli.options import Api, AsJson, JobFile, Key
from parallax_cli.planning import ASSUMED_CALL_S, planned_power, power_lines
from parallax_cli.text import one_line


class Survey(StrEnum):
    """Surveys that a job file is written for."""

    REGIONS = "regions"


@guarded
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("job.yaml"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    survey: Annotated[
        Survey | None, typer.Option(help="A survey: enough samples, controls, closed questions.", show_default=False)
    ] = None,
) -> None:
    """Write a commented job file to start from."""
    name = "starter.yaml" if survey is None else f"survey-{survey.value}.yaml"
    text = examples.path(name).read_text(encoding="utf-8")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInputError(f"{path} is already there; --force replaces it") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror}") from error
    stdout().print(f"wrote {path}; next: parallax validate {path}, then parallax run {path}", soft_wrap=True)


@guarded
def validate(path: JobFile, *, as_json: AsJson = False, api: Api = None, key: Key = None) -> None:
    """Check a job file and count its executions; every problem is told at once, nothing is started."""
    catalog: Catalog | None = None
    if api is None:
        catalog = Target().catalog()
        offer = offer_of(catalog)
    else:
        offer = asyncio.run(remote_offer(api, key))
    spec = load_job(path, offer)
    estimate = _estimate(spec, catalog) if catalog is not None else None
    power = planned_power(spec)
    if as_json:
        document = {
            "valid": True, "name": spec.name, "questions": len(spec.questions), "executions": execution_count(spec),
            "batches": batch_count(spec), "lanes": list(JobPlan.of(spec).lanes()), "estimated_cost": estimate,
            "power": None if power is None else power._asdict(),
        }  # fmt: skip
        typer.echo(json.dumps(document))
        return
    console = stdout()
    console.print(
        f"{path} is valid: job {one_line(spec.name, 80)!r}, {len(spec.questions)} questions, "
        f"{len(spec.models)} models, {execution_count(spec)} executions in {batch_count(spec)} batches "
        f"(barrier: {spec.barrier.value})",
        soft_wrap=True,
    )
    if estimate is not None:
        console.print(
            f"estimated cost: {estimate['at_least']} to {estimate['at_most']} {estimate['currency']} in GPU time, if "
            f"every call took {estimate['seconds_per_call']} s (prices of {estimate['prices_as_of']}"
            + (")" if estimate["complete"] else "; some of its models have none and are left out)"),
            soft_wrap=True,
        )
    for line in power_lines(spec, catalog):
        console.print(line, soft_wrap=True)


def _estimate(spec: JobSpec, catalog: Catalog) -> dict[str, str | float | bool] | None:
    """What the job should cost; ``None`` where the catalog has no price for any model that it uses."""
    found = estimate_job(catalog, spec, call_s=ASSUMED_CALL_S)
    if found is None:
        return None
    return {
        "at_least": round(found.at_least.amount, 4), "at_most": round(found.at_most.amount, 4),
        "currency": found.at_most.currency, "seconds_per_call": ASSUMED_CALL_S,
        "prices_as_of": found.at_most.prices_as_of.isoformat(), "complete": found.at_most.complete,
    }  # fmt: skip
