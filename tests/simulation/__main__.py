"""``python -m tests.simulation``: many seeds, or one again with its story."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Final

from tests.harness import postgres
from tests.simulation.run import Outcome, prepare, run_seed
from tests.simulation.story import essence

HASH_SEED: Final = "PYTHONHASHSEED"
"""The order of sets of strings is part of a run, so it must not differ between two."""


def main() -> int:
    """Run the seeds, report, and fail when an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one and print its whole story")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="parallax-sim-") as folder,
        postgres.postgres_server(Path(folder) / "postgres") as server,
    ):
        asyncio.run(postgres.make_fast(server))
        if options.seed is not None:
            return replay(server, options.seed)
        return survey(server, range(options.first, options.first + options.seeds), options)


def replay(server: str, seed: int) -> int:
    """Run one seed and tell all of it."""
    outcome = run_seed(seed, database(server, "replay"))
    print("\n".join(outcome.story))
    print(summary(outcome), file=sys.stderr)
    return 1 if outcome.violation else 0


def survey(server: str, seeds: range, options: argparse.Namespace) -> int:
    """Run many seeds side by side."""
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for outcome in outcomes_of(server, seeds, options.workers):
        outcomes.append(outcome)
        if outcome.violation:
            print(failure(outcome), file=sys.stderr)
            if not options.keep_going:
                break
        elif len(outcomes) % 50 == 0:
            print(f"{len(outcomes)} of {len(seeds)} seeds, {time.monotonic() - began:.0f} s", file=sys.stderr)
    bad = [outcome for outcome in outcomes if outcome.violation]
    report = {
        "seeds": len(outcomes),
        "seconds": round(time.monotonic() - began, 1),
        "executions": sum(o.executions for o in outcomes),
        "fewest_executions": min(o.executions for o in outcomes),
        "faults": sum(o.faults for o in outcomes),
        "fewest_faults": min(o.faults for o in outcomes),
        "calls": sum(o.calls for o in outcomes),
        "duplicate_calls": sum(o.duplicate_calls for o in outcomes),
        "violations": {o.seed: o.violation for o in bad},
    }
    print(json.dumps(report) if options.json else "\n".join(f"{key:>18} {value}" for key, value in report.items()))
    return 1 if bad else 0


def outcomes_of(server: str, seeds: range, workers: int) -> Iterator[Outcome]:
    """The outcome of every seed, as they come; each worker has a database of its own."""
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(server,)) as pool:
        waiting: set[Future[Outcome]] = set()
        remaining = iter(seeds)
        try:
            while True:
                for seed in remaining:
                    waiting.add(pool.submit(_run, seed))
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()


_DATABASE: list[str] = []


def _begin(server: str) -> None:
    _DATABASE.append(database(server, f"worker_{os.getpid()}"))


def _run(seed: int) -> Outcome:
    return run_seed(seed, _DATABASE[0])


def database(server: str, name: str) -> str:
    """A new database with the newest schema."""
    url = asyncio.run(postgres.create_database(server, name))
    asyncio.run(prepare(url))
    return url


def failure(outcome: Outcome) -> str:
    """What a person needs to understand a violation and see it again."""
    return "\n".join(
        [
            *essence(outcome.story, outcome.violation or ""),
            summary(outcome),
            f"replay: PYTHONHASHSEED=0 .venv/bin/python -m tests.simulation --seed {outcome.seed}",
        ]
    )


def summary(outcome: Outcome) -> str:
    """One line about a run."""
    return (
        f"seed {outcome.seed}: {outcome.executions} executions, {outcome.faults} faults, {outcome.steps} steps, "
        f"{outcome.virtual_s:.0f} virtual s, {outcome.calls} calls, {outcome.duplicate_calls} duplicate, "
        f"digest {outcome.digest}: {outcome.violation or 'every invariant holds'}"
    )


if __name__ == "__main__":
    if os.environ.get(HASH_SEED) != "0":
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, HASH_SEED: "0"}
        )
    sys.exit(main())
