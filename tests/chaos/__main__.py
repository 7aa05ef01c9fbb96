"""``python -m tests.chaos``: the long form."""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.run import Report, chaos
from tests.harness.rabbitmq import rabbitmq_node


def main() -> int:
    """Run, print the report, and fail when anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where logs are kept; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # it reports every blow to our own connection
    with tempfile.TemporaryDirectory(prefix="parallax-chaos-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with rabbitmq_node(folder / "rabbitmq") as node:
            report = asyncio.run(
                chaos(
                    folder,
                    node,
                    namespace="chaos",
                    seconds=60 * options.minutes,
                    seed=options.seed,
                    say=lambda line: print(line, file=sys.stderr, flush=True),
                )
            )
    print(json.dumps(asdict(report)) if options.json else text(report))
    return 1 if any(report.balance.faults.values()) else 0


def text(report: Report) -> str:
    """The report for people."""
    balance = report.balance
    lines = [f"{report.seconds:.0f} s of chaos, {report.blows.total()} blows"]
    lines += [f"  {count:4} {blow}" for blow, count in report.blows.most_common()]
    lines += [
        f"{balance.jobs} jobs, {balance.executions} executions planned, {report.restarts} restarts of services",
        *(f"  {count:4} {status}" for status, count in balance.by_status.most_common()),
        f"{balance.calls} model calls, {balance.duplicate_calls} of them duplicates",
        f"longest stall: {balance.longest_stall_s:.1f} s",
        *(f"  {count:4} {fault}" for fault, count in balance.faults.items()),
    ]
    for name in ("hung", "lost", "wrong_region", "started_after_cancel", "told_wrong"):
        lines += [f"{name}: {item}" for item in getattr(balance, name)[:10]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
