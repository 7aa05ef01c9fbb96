"""When a process gives up, and that it ends although something in it hangs."""

import asyncio
import subprocess
import sys
import time

import pytest

from parallax.health import Health
from parallax.process import Process
from parallax.watchdog import EXIT_INTERNAL, Unready

ROUND_S = 7.0


def test_a_process_gives_up_after_the_time_it_was_given() -> None:
    unready = Unready(20, longest_round_s=ROUND_S, at_s=100.0)
    unready.judge(ready=True, at_s=101.0)
    for at_s in (107.0, 113.0, 119.0):
        unready.judge(ready=False, at_s=at_s)
    assert not unready.too_long
    unready.judge(ready=False, at_s=125.0)
    assert unready.too_long


def test_one_good_round_ends_it() -> None:
    unready = Unready(10, longest_round_s=ROUND_S, at_s=0.0)
    for at_s in (5.0, 10.0):
        unready.judge(ready=False, at_s=at_s)
    unready.judge(ready=True, at_s=11.0)
    unready.judge(ready=False, at_s=16.0)
    assert not unready.too_long


def test_a_process_that_was_stopped_for_an_hour_has_missed_one_round() -> None:
    unready = Unready(20, longest_round_s=ROUND_S, at_s=0.0)
    unready.judge(ready=True, at_s=1.0)
    unready.judge(ready=False, at_s=3_601.0)
    assert not unready.too_long
    unready.judge(ready=True, at_s=3_602.0)
    unready.judge(ready=False, at_s=3_608.0)
    assert not unready.too_long


async def test_a_stop_is_noticed_while_a_probe_is_silent() -> None:
    process = Process("test", lost_after_s=600)
    watching = asyncio.create_task(process.watch(Health({"silent": answer_never}, limit_s=300)))
    await asyncio.sleep(0)
    process.stop()
    async with asyncio.timeout(20):
        assert await watching == 0
    process.ended()


async def answer_never() -> bool:
    await asyncio.Event().wait()
    return True


async def test_a_process_gives_up_on_a_silent_server_and_not_on_one_that_refuses() -> None:
    async def refused() -> bool:
        return False

    process = Process("test", lost_after_s=0.05)
    refusing = Health({"ledger": refused}, advisory=frozenset({"ledger"}))
    watching = asyncio.create_task(process.watch(refusing))
    done, _ = await asyncio.wait((watching,), timeout=2.5)
    assert not done, "a restart would not help"
    watching.cancel()
    async with asyncio.timeout(20):
        assert await process.watch(Health({"silent": answer_never}, limit_s=0.02)) == EXIT_INTERNAL
    process.ended()


async def test_what_does_not_close_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallax.process.CLOSE_LIMIT_S", 0.02)
    process, closed = Process("test", lost_after_s=600), asyncio.Event()

    async def hang() -> None:
        await closed.wait()

    async def fail() -> None:
        raise OSError("broken pipe")

    async with asyncio.timeout(20):
        await process.close("hanging", hang)
        await process.close("failing", fail)
    closed.set()


STUBBORN = """
import asyncio, sys, time
from parallax import process
from parallax.health import Health

process.CLOSE_LIMIT_S = 0.5
process.GIVE_UP_WITHIN_S = 0.5

async def stubborn():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue

async def probe():
    await stubborn()

async def main(environment):
    settings = process.ProcessSettings("amqp://", "", "x", None, None, "json", 0.2)
    with process.started("stubborn", settings, ends_within_s=0.5) as running:
        if sys.argv[1] == "gives up":
            code = await running.watch(Health({"silent": probe}, limit_s=0.1))
            await stubborn()
        if sys.argv[1] == "signal":
            loop = asyncio.get_running_loop()
            loop.call_soon(running.stop)
            await running.watch(Health())
            time.sleep(600)
    keep.append(asyncio.create_task(stubborn()))
    await asyncio.sleep(0)
    return 0

keep = []
sys.exit(process.run("stubborn", main))
"""


@pytest.mark.parametrize("case", ["gives up", "signal", "a task is left"])
def test_a_process_ends_although_something_in_it_hangs(case: str) -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", STUBBORN, case], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == EXIT_INTERNAL, ended.stderr
    assert "cut off" in ended.stderr
    assert time.monotonic() - began < 30
