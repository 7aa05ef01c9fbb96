"""What ``parallax validate`` foresees for a job that is valid."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from parallax_cli.main import app

MODAL = {"gpu": "L4", "max_inputs": 4, "max_containers": 1, "scaledown_window_s": 60}
PRICES = {"as_of": "2026-11-01", "currency": "EUR", "gpu_second": {"L4": 0.01}}


def validated(folder: Path, models: list[str], *options: str, prices: dict[str, Any] | None = None) -> Result:
    catalog = {
        "regions": {"us": {"name": "US", "endpoint": "modal://a/I", "cold_start_s": 30}},
        "models": {
            "priced": {"upstream": "x", "regions": ["us"], "modal": MODAL},
            "free": {"upstream": "y", "regions": ["us"]},
        },
        "prices": prices,
    }
    job = {
        "name": "job", "questions": [{"id": f"q{n}", "text": "?"} for n in range(10)], "regions": ["us"],
        "models": [{"id": name} for name in models],
    }  # fmt: skip
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog), encoding="utf-8")
    (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    environment = {"PARALLAX_CATALOG": str(folder / "catalog.yaml"), "PARALLAX_API": None}
    return CliRunner().invoke(app, ["validate", str(folder / "job.yaml"), *options], env=environment)


def test_the_cost_is_foreseen_between_two_bounds(tmp_path: Path) -> None:
    # 10 calls of 5 s, a quarter of a container each; or one container for 30 + 50 + 60 s.
    result = validated(tmp_path, ["priced"], "--json", prices=PRICES)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["estimated_cost"] == {
        "at_least": 0.125, "at_most": 1.4, "currency": "EUR", "seconds_per_call": 5.0, "prices_as_of": "2026-11-01",
        "complete": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (["priced"], "estimated cost: 0.125 to 1.4 EUR in GPU time, if every call took 5.0 s (prices of 2026-11-01)"),
        (["priced", "free"], "(prices of 2026-11-01; some of its models have none and are left out)"),
    ],
)
def test_the_cost_is_told_with_what_it_leaves_out(tmp_path: Path, models: list[str], says: str) -> None:
    assert says in validated(tmp_path, models, prices=PRICES).stdout


@pytest.mark.parametrize(("models", "prices"), [(["free"], PRICES), (["priced"], None)])
def test_without_a_price_no_cost_is_told(tmp_path: Path, models: list[str], prices: dict[str, Any] | None) -> None:
    result = validated(tmp_path, models, prices=prices)
    assert result.exit_code == 0, result.output
    assert "estimated cost" not in result.stdout
