"""What ``make bench`` prints: one table of contenders, one of their services, and whether the targets are met."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks.compare.figures import Figures, thinned

FLOOR: Final = "raw floor"
CELERY: Final = "Celery"
PARALLAX: Final = "Parallax"
"""What the contenders are called that the targets compare."""

FLOOR_SHARE: Final = 0.9
CELERY_FACTOR: Final = 2.5
"""The targets: throughput at least this share of the floor, and this many times Celery's."""
SOAK_ROWS: Final = 12


@dataclass(frozen=True, slots=True)
class ServiceCost:
    """What one service of a contender cost while the load ran."""

    name: str
    cpu_s_per_1000: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Contender:
    """Everything measured of one contender; ``skipped`` says why there is nothing."""

    name: str
    loaded: Figures | None = None
    idle: Figures | None = None
    costs: tuple[ServiceCost, ...] = ()
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Throughput with a number of executors per region."""

    executors_per_region: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Memory:
    """One service's memory over a soak."""

    service: str
    samples: tuple[tuple[int, float], ...]
    mb_per_1000: float


@dataclass(slots=True)
class Report:
    """All results of one run on one machine."""

    machine: dict[str, str]
    load: str
    contenders: list[Contender] = field(default_factory=list)
    spread: list[Spread] = field(default_factory=list)
    soak: list[Memory] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        document = asdict(self)
        for data, contender in zip(document["contenders"], self.contenders, strict=True):
            for name, run in (("loaded", contender.loaded), ("idle", contender.idle)):
                if run is not None:
                    data[name]["executions_per_s"] = run.executions_per_s
        document["targets"] = [{"target": text, "met": met} for text, met in targets(self.contenders)]
        return document


def targets(contenders: Iterable[Contender]) -> list[tuple[str, bool]]:
    """Each target with its figures, and whether it is met; targets without figures are left out."""
    by_name = {contender.name: contender for contender in contenders}
    ours, floor, celery = (by_name.get(name) for name in (PARALLAX, FLOOR, CELERY))
    found: list[tuple[str, bool]] = []
    if ours is None or ours.loaded is None:
        return found
    rate = ours.loaded.executions_per_s
    if floor is not None and floor.loaded is not None:
        share = rate / floor.loaded.executions_per_s
        found.append(
            (f"throughput {share:.2f} of the raw floor (target: at least {FLOOR_SHARE})", share >= FLOOR_SHARE)
        )
    if celery is not None and celery.loaded is not None:
        factor = rate / celery.loaded.executions_per_s
        found.append((f"throughput {factor:.1f} x Celery (target: at least {CELERY_FACTOR})", factor >= CELERY_FACTOR))
        gap, theirs = (each.idle.gap_p50_ms if each.idle else None for each in (ours, celery))
        if gap is not None and theirs is not None:
            text = f"idle gap p50 {gap:.1f} ms, Celery {theirs:.1f} ms (target: no larger)"
            found.append((text, gap <= theirs))
    return found


def show(report: Report, console: Console) -> None:
    """Print every table that has something to say."""
    console.print(" · ".join(f"{key}: {value}" for key, value in report.machine.items()), highlight=False)
    console.print(report.load, highlight=False)
    if report.contenders:
        console.print(_contenders(report.contenders))
        console.print(_costs(report.contenders))
    if report.spread:
        console.print(_spread(report.spread))
    if report.soak:
        console.print(_soak(report.soak))
    for text, met in targets(report.contenders):
        console.print(f"{'met   ' if met else 'MISSED'}  {text}", highlight=False)


def _contenders(contenders: Sequence[Contender]) -> Table:
    table = Table(title="Contenders")
    for heading in ("", "executions/s", "gap p50 ms", "gap p99 ms", "idle gap p50 ms", "idle gap p99 ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for each in contenders:
        if each.skipped is not None or each.loaded is None:
            table.add_row(each.name, f"skipped: {each.skipped}")
            continue
        idle = each.idle
        table.add_row(
            each.name,
            f"{each.loaded.executions_per_s:,.0f}",
            *map(_ms, (each.loaded.gap_p50_ms, each.loaded.gap_p99_ms)),
            *map(_ms, (idle.gap_p50_ms, idle.gap_p99_ms) if idle else (None, None)),
        )
    return table


def _costs(contenders: Sequence[Contender]) -> Table:
    table = Table(title="What each service cost under load")
    for heading, side in (
        ("", "left"),
        ("service", "left"),
        ("CPU s / 1,000 executions", "right"),
        ("peak MB", "right"),
    ):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for each in contenders:
        for index, cost in enumerate(each.costs):
            name = each.name if index == 0 else ""
            table.add_row(name, cost.name, f"{cost.cpu_s_per_1000:.2f}", f"{cost.peak_mb:.0f}")
        if each.costs:
            table.add_row("", "all", f"{sum(cost.cpu_s_per_1000 for cost in each.costs):.2f}", "", end_section=True)
    return table


def _spread(spread: Sequence[Spread]) -> Table:
    table = Table(title="Parallax with 200 ms calls, 10 at once in each executor")
    for heading in ("executors per region", "executions/s", "of the possible"):
        table.add_column(heading, justify="right")
    for each in spread:
        possible = each.executors_per_region * 3 * 10 / 0.2
        rate = each.figures.executions_per_s
        table.add_row(str(each.executors_per_region), f"{rate:,.0f}", f"{rate / possible:.0%}")
    return table


def _soak(soak: Sequence[Memory]) -> Table:
    table = Table(title="Memory over a soak, MB")
    table.add_column("executions", justify="right")
    for memory in soak:
        table.add_column(memory.service, justify="right")
    for moments in zip(*(thinned(memory.samples, SOAK_ROWS) for memory in soak), strict=True):
        table.add_row(f"{moments[0][0]:,}", *(f"{mb:.0f}" for _, mb in moments))
    table.add_section()
    table.add_row("MB per 1,000", *(f"{memory.mb_per_1000:+.3f}" for memory in soak))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
