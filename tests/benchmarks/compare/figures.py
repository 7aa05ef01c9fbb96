"""What the recorded rows of a run say: pure arithmetic, the same for every contender."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

REGIONS: Final = ("us", "eu", "apac")
MODELS: Final = ("model-a", "model-b")
BATCH_SIZE: Final = len(REGIONS) * len(MODELS)
"""Executions of one question: 2 models in 3 regions."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much work a run gives a contender, all of it submitted at once."""

    jobs: int
    questions: int

    @property
    def executions(self) -> int:
        """Rows that will have been recorded at the end."""
        return self.jobs * self.questions * BATCH_SIZE


class Row(NamedTuple):
    """One recorded execution. Times are seconds since the epoch on the machine's one clock."""

    job: str
    question: int
    started_at: float
    completed_at: float
    recorded_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Throughput and gaps of one run."""

    executions: int
    duration_s: float
    """From just before the first submission to the last recorded row."""
    gap_p50_ms: float | None
    gap_p99_ms: float | None

    @property
    def executions_per_s(self) -> float:
        """Recorded executions per second."""
        return self.executions / self.duration_s


def figures(rows: Sequence[Row], submitted_at: float) -> Figures:
    """The figures of a run that began at ``submitted_at``; gaps are ``None`` where no question follows another."""
    gaps = sorted(gaps_s(rows))
    return Figures(
        executions=len(rows),
        duration_s=max(row.recorded_at for row in rows) - submitted_at,
        gap_p50_ms=1000 * percentile(gaps, 0.50) if gaps else None,
        gap_p99_ms=1000 * percentile(gaps, 0.99) if gaps else None,
    )


def gaps_s(rows: Iterable[Row]) -> list[float]:
    """For each job and question: seconds from its last completion to the first start of the next question."""
    first_start: dict[tuple[str, int], float] = {}
    last_end: dict[tuple[str, int], float] = {}
    for row in rows:
        key = (row.job, row.question)
        first_start[key] = min(row.started_at, first_start.get(key, row.started_at))
        last_end[key] = max(row.completed_at, last_end.get(key, row.completed_at))
    return [first_start[later] - last_end[key] for key in last_end if (later := (key[0], key[1] + 1)) in first_start]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def median_run(runs: Sequence[Figures]) -> Figures:
    """The run whose throughput is the median: noise of a shared machine falls on both sides of it."""
    return sorted(runs, key=lambda run: run.executions_per_s)[len(runs) // 2]


def growth_per_1000(samples: Sequence[tuple[int, float]]) -> float:
    """The slope of (executions so far, megabytes) by least squares, in megabytes per 1,000 executions.

    The first third is left out: caches, pools and arenas fill there, and that is no leak.
    """
    settled = samples[len(samples) // 3 :]
    if len(settled) < 2:
        return 0.0
    mean_x = sum(x for x, _ in settled) / len(settled)
    mean_y = sum(y for _, y in settled) / len(settled)
    spread = sum((x - mean_x) ** 2 for x, _ in settled)
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in settled) / spread if spread else 0.0


def thinned(samples: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """At most ``count`` samples, evenly chosen, the first and last among them."""
    if len(samples) <= count:
        return list(samples)
    edges = [round(index * (len(samples) - 1) / (count - 1)) for index in range(count)]
    return [samples[index] for index, after in pairwise([*edges, -1]) if index != after]
