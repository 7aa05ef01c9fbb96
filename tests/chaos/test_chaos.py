"""The short form of chaos: two replicas of everything, half a minute of blows, and nothing lost or called twice."""

from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.blows import QUICK as QUICK_BLOWS
from tests.chaos.run import chaos
from tests.harness.installation import PATIENCE_S, QUICK
from tests.harness.rabbitmq import Node

SECONDS = 25.0
SEED = 5


@pytest.mark.rabbitmq
@pytest.mark.slow
async def test_nothing_is_lost_doubled_or_hung(tmp_path: Path, rabbitmq_node: Node) -> None:
    said: list[str] = []
    report = await chaos(
        tmp_path,
        rabbitmq_node,
        namespace=f"chaos-{uuid4().hex[:8]}",
        seconds=SECONDS,
        seed=SEED,
        say=said.append,
        blows=QUICK_BLOWS,
        timings=QUICK,
        ending_s=PATIENCE_S,
    )
    assert report.blows, said
    assert report.balance.jobs, said
    assert not any(report.faults.values()), (report, said)
