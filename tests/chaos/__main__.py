"""``python -m tests.chaos``: the long form, at the timings that users get."""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.blows import BLOWS, rolling_upgrade
from tests.chaos.run import ENDING_S, Report, chaos
from tests.harness.installation import PRODUCTION, QUICK
from tests.harness.rabbitmq import rabbitmq_node
from tests.harness.sources import earlier


def main() -> int:
    """Run, print the report, and fail when anything is wrong."""
    options = parse(sys.argv[1:])
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # it reports every blow to our own connection
    with tempfile.TemporaryDirectory(prefix="parallax-chaos-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        blows = [BLOWS[name] for name in options.only]
        if options.older is not None:
            blows.append(rolling_upgrade(earlier(options.older, folder / "older")))
        with rabbitmq_node(folder / "rabbitmq") as node:
            report = asyncio.run(
                chaos(
                    folder,
                    node,
                    namespace="chaos",
                    seconds=60 * options.minutes,
                    seed=options.seed,
                    say=lambda line: print(line, file=sys.stderr, flush=True),
                    blows=blows,
                    timings=QUICK if options.quick else PRODUCTION,
                    ending_s=options.ending,
                )
            )
    print(json.dumps({**asdict(report), "faults": report.faults}) if options.json else text(report))
    return 1 if any(report.faults.values()) else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only",
        type=_names,
        default=tuple(BLOWS),
        metavar="BLOW,...",
        help=f"blows to choose from: {', '.join(BLOWS)}",
    )
    parser.add_argument("--older", metavar="COMMIT", help="also roll the services back to this commit, and forward")
    parser.add_argument("--quick", action="store_true", help="services less patient than users have them")
    parser.add_argument(
        "--ending", type=float, default=ENDING_S, metavar="SECONDS", help="how long jobs may go on after the last blow"
    )
    parser.add_argument("--folder", type=Path, help="where logs are kept; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _names(given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(","))
    unknown = [name for name in names if name not in BLOWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such blow: {', '.join(unknown)}")
    return names


def text(report: Report) -> str:
    """The report for people."""
    balance = report.balance
    lines = [f"{report.seconds:.0f} s of chaos, {report.blows.total()} blows"]
    lines += [f"  {count:4} {blow}" for blow, count in report.blows.most_common()]
    lines += [
        f"{balance.jobs} jobs, {balance.executions} executions planned, {report.restarts} restarts of services",
        *(f"  {count:4} {status}" for status, count in balance.by_status.most_common()),
        f"{balance.calls} model calls",
        f"  {balance.duplicates_explained:4} duplicates that a lost executor explains",
        f"  {len(balance.duplicates_unexplained):4} duplicates that nothing explains",
        f"longest stall: {balance.longest_stall_s:.1f} s",
        *(f"  {end}" for end in balance.exits),
        *(f"  {count:4} {fault}" for fault, count in report.faults.items()),
    ]
    told = (
        "hung", "lost", "wrong_region", "started_after_cancel", "told_wrong", "duplicates_unexplained", "dead_letters",
        "crashed",
    )  # fmt: skip
    for name in told:
        lines += [f"{name}: {item}" for item in getattr(balance, name)[:10]]
    return "\n".join([*lines, *(f"never ready again: {name}" for name in report.unready)])


if __name__ == "__main__":
    sys.exit(main())
