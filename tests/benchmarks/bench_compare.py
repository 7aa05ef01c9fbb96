"""The comparison on answers with known truth: false alarms, power with intervals, time and memory.

``make bench-compare``, or ``python -m tests.benchmarks.bench_compare [--jobs 200] [--repeats 600]``. The answers are
those of ``tests/benchmarks/comparison/answers.json``, made by the small local model; jobs are drawn from them.
"""

import argparse
import random
import resource
import sys
import time
from typing import Final, NamedTuple

from parallax.contracts.comparison import Across
from results.comparison.engine import Comparer, Subject, one_thread
from results.comparison.subjects import AskedQuestion, CellKey, Repeats, pairs_of
from tests.benchmarks.comparison.generate import QUESTIONS
from tests.benchmarks.comparison.measuring import Found, measured, most_false_alarms
from tests.benchmarks.comparison.scenarios import SCENARIOS, Plan, answers, nothing

PLANS: Final = (Plan(5), Plan(10), Plan(20), Plan(10, tuple(QUESTIONS)))


class Size(NamedTuple):
    """How large a comparison is that is timed."""

    questions: int
    models: int
    regions: int
    samples: int
    words: int = 15


SIZES: Final = (Size(8, 2, 3, 10), Size(8, 2, 3, 10, 300), Size(200, 10, 3, 10))
REGIONS: Final = ("us", "eu", "apac")


def main() -> None:
    """Measure, and print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="jobs of each scenario and size")
    parser.add_argument("--repeats", type=int, default=600, help="A/A jobs of each size")
    wanted = parser.parse_args()
    with one_thread():
        _power(wanted.jobs, wanted.repeats)
        _time()


def _power(jobs: int, repeats: int) -> None:
    sizes = [f"n={plan.samples}, Q={len(plan.questions)}" for plan in PLANS]
    _line("share of jobs found to differ (95 % interval)", *sizes)
    _line(*["---"] * (1 + len(PLANS)))
    for name, scenario in SCENARIOS.items():
        count = repeats if scenario is nothing else jobs
        found = [measured(scenario, count, plan) for plan in PLANS]
        _line(name, *map(_cell, found))
    bound = most_false_alarms(repeats)
    _line(f"A/A: at most {bound} of {repeats} are within the binomial error of 5 %", *[""] * len(PLANS))


def _cell(found: Found) -> str:
    low, high = found.interval
    sizes = f"S {100 * found.separation:.1f} %, visible {100 * found.visible:.1f} %"
    return f"{found.share:.3f} ({low:.2f}-{high:.2f}); {sizes}"


def _time() -> None:
    sys.stdout.write("\n")
    _line("questions x models x regions x samples, words", "differing", "answers", "CPU s", "wall s", "peak MB")
    _line(*["---"] * 6)
    for size in SIZES:
        for differing in (False, True):
            _line(*_timed(size, differing=differing))


def _timed(size: Size, *, differing: bool) -> tuple[str, ...]:
    draw = random.Random(1)
    vocabulary = [f"word{number}" for number in range(400)]
    cells = [CellKey("job", f"model-{m}", r) for m in range(size.models) for r in REGIONS[: size.regions]]
    pairs = tuple(pairs_of(cells, Across.REGION, Repeats()))
    comparer = Comparer(Subject("job", tuple(cells), pairs, Across.REGION))
    cpu = wall = 0.0
    for index in range(size.questions):
        said = {}
        for cell in cells:
            words = vocabulary[:200] if differing and cell.region == "us" else vocabulary[100:300]
            said[cell] = answers([" ".join(draw.choices(words, k=size.words)) for _ in range(size.samples)])
        began = time.process_time(), time.perf_counter()
        comparer.add(AskedQuestion(index, f"q{index}", said))
        cpu, wall = cpu + time.process_time() - began[0], wall + time.perf_counter() - began[1]
    began = time.process_time(), time.perf_counter()
    comparer.document()
    cpu, wall = cpu + time.process_time() - began[0], wall + time.perf_counter() - began[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    name = f"{size.questions} x {size.models} x {size.regions} x {size.samples}, {size.words}"
    count = str(size.questions * len(cells) * size.samples)
    return name, "us" if differing else "none", count, f"{cpu:.2f}", f"{wall:.2f}", str(peak)


def _line(*cells: str) -> None:
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
