"""What a job costs at the catalog's prices: an estimate before it runs, another one after. Pure.

A provider bills containers, not calls. A call takes one share of a container that serves ``max_inputs`` calls at
once, so the shares of a job's calls are the least it can cost; starting, idling between batches and the wait before
scaling down are billed too, so the most it should cost is every container it needs from its start to its end.
Retries are not foreseen in either.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from parallax.catalog import Catalog, ModalOptions
from parallax.contracts.job import JobSpec
from parallax.contracts.plan import Demand, demands


class Use(NamedTuple):
    """How long a model of the catalog was busy in a region: the sum of its calls' durations, in seconds."""

    model: str
    region: str
    busy_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """An amount of money, with what it rests on."""

    amount: float
    currency: str
    prices_as_of: date
    complete: bool
    """False when the catalog has no price for some of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEstimate:
    """What a job should cost, between two bounds."""

    at_least: Cost
    """The shares of its calls, in containers that others keep warm and busy."""
    at_most: Cost
    """The containers it needs, from their cold start to their scaling down, for this job alone."""


class _Priced(NamedTuple):
    """What one (model, region) costs per second of one container."""

    options: ModalOptions
    container_second: float


def cost_of(catalog: Catalog, used: Iterable[Use]) -> Cost | None:
    """What calls that were made cost; ``None`` when nothing of it has a price."""
    return _total(catalog, ((_priced(catalog, use.model, use.region), use.busy_s) for use in used), shared=True)


def estimate_job(catalog: Catalog, spec: JobSpec, *, call_s: float) -> JobEstimate | None:
    """What a job should cost if every call takes ``call_s`` seconds; ``None`` when nothing of it has a price.

    The job must be one that the catalog allows. The batches of a (model, region) follow one another; the samples of
    a batch run at once, as far as its containers take them.
    """
    works = [(work, _priced(catalog, work.model, work.region)) for work in demands(spec)]
    at_least = _total(catalog, ((priced, work.calls * call_s) for work, priced in works), shared=True)
    at_most = _total(
        catalog, ((priced, _container_s(catalog, work, priced, call_s)) for work, priced in works), shared=False
    )
    if at_least is None or at_most is None:
        return None
    return JobEstimate(at_least=at_least, at_most=at_most)


def _container_s(catalog: Catalog, work: Demand, priced: _Priced | None, call_s: float) -> float:
    """Seconds of containers that a (model, region) is billed for when nobody else uses them."""
    if priced is None:
        return 0.0
    options = priced.options
    at_once = -(-work.calls // work.batches)
    containers = min(options.max_containers, -(-at_once // options.max_inputs))
    rounds = -(-at_once // (containers * options.max_inputs))
    up_s = catalog.regions[work.region].cold_start_s + work.batches * rounds * call_s + options.scaledown_window_s
    return containers * up_s


def _priced(catalog: Catalog, model_name: str, region_name: str) -> _Priced | None:
    model, region = catalog.models.get(model_name), catalog.regions.get(region_name)
    if catalog.prices is None or model is None or region is None or model.modal is None:
        return None
    price = catalog.prices.gpu_second.get(model.modal.gpu)
    return None if price is None else _Priced(model.modal, price * region.price_multiplier)


def _total(catalog: Catalog, parts: Iterable[tuple[_Priced | None, float]], *, shared: bool) -> Cost | None:
    """The sum of seconds times prices; ``shared`` seconds are a call's share of its container."""
    amount, complete, known = 0.0, True, False
    for priced, seconds in parts:
        if priced is None:
            complete = False
            continue
        known = True
        amount += seconds * priced.container_second / (priced.options.max_inputs if shared else 1)
    if catalog.prices is None or not known:
        return None
    return Cost(amount=amount, currency=catalog.prices.currency, prices_as_of=catalog.prices.as_of, complete=complete)
