"""What a job can find out before it runs: the size of difference that its samples show, and what one more buys."""

from collections.abc import Iterator
from typing import Final

from parallax.catalog import Catalog
from parallax.contracts.job import MAX_SAMPLES, JobSpec
from parallax.contracts.plan import execution_count
from parallax.pricing import estimate_job
from results.comparison.power import Power, planned, samples_needed

ASSUMED_CALL_S: Final = 5.0
"""For estimates before anything is known: a short answer of a small model, not a promise."""


def planned_power(spec: JobSpec, samples: int | None = None) -> Power | None:
    """What the job's samples (or so many) can find between regions; ``None`` where no two regions are compared."""
    pairs = planned_pairs(spec)
    if not pairs or spec.only is not None:
        return None
    return planned(samples or spec.samples, len(spec.questions), pairs, shared_seeds=shares_seeds(spec))


def planned_pairs(spec: JobSpec) -> int:
    """Pairs of regions over all models."""
    regions = [len(model.regions or spec.regions) for model in spec.models]
    return sum(count * (count - 1) // 2 for count in regions)


def shares_seeds(spec: JobSpec) -> bool:
    """Whether regions are called with the same seeds, so that answers are compared in pairs."""
    return spec.parameters.seed is not None or any(model.parameters.seed is not None for model in spec.models)


def power_lines(spec: JobSpec, catalog: Catalog | None) -> Iterator[str]:
    """The power of a plan in plain words; nothing for a job that compares no regions."""
    now = planned_power(spec)
    if now is None:
        return
    count = f"{now.samples} sample{'' if now.samples == 1 else 's'} a cell"
    if not now.testable:
        enough = samples_needed(0.05 / now.pairs, now.questions, shared_seeds=shares_seeds(spec))
        advice = f"; {enough} would tell" if enough is not None else ""
        yield f"comparison: {count} cannot tell a difference between regions from the model's own randomness{advice}"
        return
    yield f"comparison: {count} find, four times of five, {_sizes(now)} (by a small model at temperature 0.7)"
    if not now.single_questions:
        enough = samples_needed(0.05 / now.pairs / now.questions, shared_seeds=shares_seeds(spec))
        where = f"; {enough} would" if enough is not None else ""
        yield f"  whether regions differ, but not on which question{where}"
    more = planned_power(spec, now.samples + 1) if now.samples < MAX_SAMPLES else None
    if more is not None:
        yield f"  one more sample a cell: {_sizes(more)}, for {_price(spec, catalog)}"


def _sizes(power: Power) -> str:
    return f"a separation of {_percent(power.separation)}, or {_percent(power.refusals)} refusals against none"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _price(spec: JobSpec, catalog: Catalog | None) -> str:
    """What one more sample costs: calls, and money where prices are known."""
    more = spec.model_copy(update={"samples": spec.samples + 1})
    calls = f"{execution_count(more) - execution_count(spec)} more calls"
    if catalog is None:
        return calls
    before, after = (estimate_job(catalog, one, call_s=ASSUMED_CALL_S) for one in (spec, more))
    if before is None or after is None:
        return calls
    cost = after.at_least.amount - before.at_least.amount
    return f"{calls} (at least {cost:.4f} {after.at_least.currency})"
