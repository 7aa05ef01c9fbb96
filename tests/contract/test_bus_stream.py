"""What every bus promises about a stream: replay, fence, resumption."""

from parallax.contracts import routing
from tests.contract.buses import Installation
from tests.contract.hands import cancelled, eventually, is_live, job_of, publish_until_done


async def test_the_stream_is_replayed_in_order_up_to_the_fence(installation: Installation) -> None:
    writer, reader = await installation.client(), await installation.client()
    for n in range(50):
        await writer.publish(cancelled(f"job-{n}"))
    seen: list[bytes] = []
    following = await reader.follow(routing.CANCELLATIONS, seen.append)
    assert [job_of(body) for body in seen] == [f"job-{n}" for n in range(50)]
    assert await is_live(following)
    await writer.publish(cancelled("job-50"))
    await eventually(lambda: len(seen) == 51)
    await following.close()
    assert not await is_live(following)
    await writer.publish(cancelled("job-51"))
    late: list[bytes] = []
    await reader.follow(routing.CANCELLATIONS, late.append)
    assert [job_of(body) for body in late] == [f"job-{n}" for n in range(52)]
    assert len(seen) == 51


async def test_every_follower_sees_every_entry_and_no_marker(installation: Installation) -> None:
    seen: list[list[bytes]] = [[], [], []]
    for each in seen:
        await (await installation.client()).follow(routing.CANCELLATIONS, each.append)
    bus = await installation.client()
    await bus.publish(cancelled("job-1"))
    await eventually(lambda: all(len(each) == 1 for each in seen))
    assert [[job_of(body) for body in each] for each in seen] == [["job-1"]] * 3


async def test_reading_resumes_behind_the_last_entry(installation: Installation) -> None:
    writer, reader = await installation.client(), await installation.client()
    seen: list[bytes] = []
    following = await reader.follow(routing.CANCELLATIONS, seen.append)
    for n in range(5):
        await writer.publish(cancelled(f"job-{n}"))
    await eventually(lambda: len(seen) == 5)
    await installation.cut(following)
    for n in range(5, 10):
        await publish_until_done(writer, cancelled(f"job-{n}"))
    await eventually(lambda: following.live and len(seen) >= 10)
    assert sorted({job_of(body) for body in seen}) == sorted(f"job-{n}" for n in range(10))
    assert [job_of(body) for body in seen[:5]] == [f"job-{n}" for n in range(5)]
    assert len(seen) == 10
