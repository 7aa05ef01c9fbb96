"""The arithmetic behind the benchmark's claims."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.benchmarks.compare import report
from tests.benchmarks.compare.figures import (
    Figures,
    Row,
    figures,
    gaps_s,
    growth_per_1000,
    median_run,
    percentile,
    thinned,
)
from tests.benchmarks.compare.jobs import message_sizes

RUN = Figures(executions=900, duration_s=1.0, gap_p50_ms=10.0, gap_p99_ms=20.0)


def row(job: str, question: int, started_at: float, completed_at: float) -> Row:
    return Row(job, question, started_at, completed_at, completed_at + 0.25)


def test_a_gap_lasts_from_the_last_completion_to_the_first_start_of_the_same_jobs_next_question() -> None:
    rows = [
        row("a", 1, 3.5, 5),
        row("a", 0, 1, 2),
        row("a", 0, 1, 3),
        row("a", 1, 4.0, 5),
        row("b", 0, 1, 2),
        row("b", 1, 4, 5),
    ]
    assert sorted(gaps_s(rows)) == [0.5, 2]


def test_a_question_that_starts_too_early_shows_as_a_negative_gap() -> None:
    assert gaps_s([row("a", 0, 1, 3), row("a", 1, 2, 4)]) == [-1]


def test_a_question_without_a_next_one_has_no_gap() -> None:
    assert gaps_s([row("a", 0, 1, 3), row("a", 2, 4, 5), row("b", 1, 4, 5)]) == []


def test_the_duration_ends_with_the_last_recorded_row() -> None:
    measured = figures([row("a", 0, 11, 12), row("a", 1, 13, 13.75)], submitted_at=10)
    assert measured == Figures(executions=2, duration_s=4.0, gap_p50_ms=1000.0, gap_p99_ms=1000.0)
    assert measured.executions_per_s == 0.5


def test_a_single_question_has_no_gap_figures() -> None:
    measured = figures([row("a", 0, 11, 12)], submitted_at=10)
    assert measured.gap_p50_ms is None
    assert measured.gap_p99_ms is None


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert percentile(list(range(101)), share) == expected


def test_the_median_run_is_neither_the_best_nor_the_worst() -> None:
    slow, fast = replace(RUN, duration_s=2.0), replace(RUN, duration_s=0.5)
    assert median_run([fast, slow, RUN]) is RUN


def test_memory_that_only_fills_up_at_first_does_not_grow() -> None:
    assert growth_per_1000([(0, 10.0), (1000, 60.0), *((n * 1000, 80.0) for n in range(2, 9))]) == 0.0


def test_memory_that_leaks_grows_by_what_each_thousand_leaks() -> None:
    assert growth_per_1000([(n * 1000, 50 + 2.0 * n) for n in range(9)]) == pytest.approx(2.0)


def test_too_few_samples_say_nothing() -> None:
    assert growth_per_1000([(0, 1.0)]) == 0.0
    assert growth_per_1000([(5, 1.0), (5, 2.0), (5, 3.0)]) == 0.0


def test_thinning_keeps_the_ends() -> None:
    samples = [(n, float(n)) for n in range(100)]
    kept = thinned(samples, 5)
    assert len(kept) == 5
    assert (kept[0], kept[-1]) == (samples[0], samples[-1])
    assert thinned(samples[:3], 5) == samples[:3]


@pytest.mark.parametrize(
    ("rate", "gap", "met"),
    [(900, 10.0, [True, True, True]), (899, 10.1, [False, True, False]), (249, 9.0, [False, False, True])],
)
def test_targets_compare_one_run_with_the_others(rate: int, gap: float, met: list[bool]) -> None:
    contenders = [
        report.Contender(report.FLOOR, replace(RUN, executions=1000), RUN),
        report.Contender(report.CELERY, replace(RUN, executions=100), RUN),
        report.Contender(report.PARALLAX, replace(RUN, executions=rate), replace(RUN, gap_p50_ms=gap)),
    ]
    assert [each for _, each in report.targets(contenders)] == met


def test_targets_against_a_contender_that_was_skipped_are_left_out() -> None:
    skipped = report.Contender(report.CELERY, skipped="redis-server is missing")
    assert report.targets([skipped, report.Contender(report.PARALLAX, RUN, RUN)]) == []
    assert report.targets([report.Contender(report.FLOOR, RUN, RUN)]) == []


def test_the_report_names_who_was_skipped_and_why() -> None:
    found = report.Report(machine={"CPUs": "2"}, load="some load")
    found.contenders = [
        report.Contender(report.PARALLAX, RUN, RUN, (report.ServiceCost("dispatcher", 0.5, 60.0),)),
        report.Contender(report.CELERY, skipped="no redis"),
    ]
    found.spread = [report.Spread(2, replace(RUN, executions=270))]
    found.soak = [report.Memory("dispatcher", tuple((n, 60.0) for n in range(20)), 0.0)]
    output = io.StringIO()
    report.show(found, Console(file=output, width=120))
    text = output.getvalue()
    assert "skipped: no redis" in text
    assert "90%" in text, "270 of the 300 that 2 executors in 3 regions could do"
    assert json.loads(json.dumps(found.document()))["contenders"][0]["loaded"]["executions_per_s"] == 900


def test_the_other_contenders_send_as_many_bytes_as_parallax() -> None:
    task_bytes, fact_bytes = message_sizes()
    assert 500 < task_bytes < fact_bytes < 5_000
