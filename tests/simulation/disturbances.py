"""What the scheduler lets happen to the broker, the services and the clock."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from parallax.contracts.messages import ExecutionFinished, JobFinished, decode
from parallax.contracts.routing import FACTS
from tests.simulation.faults import BROKER_NOTICES_S, Fault
from tests.simulation.nodes import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

TASKS: Final = ("executions.", "waiting.")
REPAIRABLE: Final = (*TASKS, "results.facts", "results.batches", "results.events")
"""Queues whose loss the installation repairs by itself."""


class Disturbances:
    """Faults that strike between two side effects."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._events_lost = False

    def _freeze(self, node: Node, seconds: float) -> None:
        """Stop a process for a while, as SIGSTOP does; the broker drops its connections when it is silent for long."""
        node.awake.clear()
        self._world.tell(f"is stopped for {seconds:.0f} s", node)

        async def wake() -> None:
            attach: Callable[[], None] | None = None
            await self._world.clock.sleep(min(seconds, BROKER_NOTICES_S))
            if seconds > BROKER_NOTICES_S and not (node.ended or node.dying):
                self._world.tell("is dropped by the broker", node)
                attach = node.bus.drop()
                await self._world.clock.sleep(seconds - BROKER_NOTICES_S)
            self._world.tell("goes on", node)
            if attach is not None and not (node.ended or node.dying):
                attach()
            node.wake()

        task = asyncio.create_task(wake())
        self._world.wakers.add(task)
        task.add_done_callback(self._world.wakers.discard)

    def _said_again_later(self) -> bool:
        """Whether the end of every job that waits to be heard will be said once more; it is said twice, not for ever.

        Nor may it be lost a second time, so events are lost once in a run."""
        waiting = [decode(each.body) for each in self._world.broker._queues["results.events"].ready]
        ends = [message.job_id for message in waiting if isinstance(message, JobFinished)]
        first_time = not self._events_lost and all(len(self._world.finished[job_id]) == 1 for job_id in ends)
        self._events_lost |= first_time
        return first_time

    def _excuse_doubled(self, queue: str, bodies: Sequence[bytes]) -> None:
        if queue.startswith(TASKS):
            for body in bodies:
                self._world.excuse(body)

    def _excuse_lost(self, queue: str, bodies: Sequence[bytes]) -> None:
        """Answers that the broker has lost must be asked for again."""
        if queue == FACTS.name:
            facts = [decode(body) for body in bodies]
            self._world.excused |= {fact.execution_id for fact in facts if isinstance(fact, ExecutionFinished)}

    def strike(self) -> None:
        """Let something happen to the broker, a service or the clock."""
        fault = self._world.random.choice(
            (
                Fault.DUPLICATE,
                Fault.DUPLICATE,
                Fault.REORDER,
                Fault.REORDER,
                Fault.PURGE,
                Fault.CONNECTIONS_LOST,
                Fault.KILL,
                Fault.STOP,
                Fault.CLOCK_JUMP,
                Fault.FROZEN,
                Fault.FROZEN,
            )
        )
        queues = {name: state.ready for name, state in self._world.broker._queues.items() if state.ready}
        repairable = [name for name in queues if name.startswith(REPAIRABLE)]
        alive = [node for node in self._world.nodes if node.ready and not node.ended and not node.dying]
        match fault:
            case Fault.DUPLICATE if queues:
                name = self._world.random.choice(sorted(queues))
                copy = self._world.random.choice(list(queues[name]))
                self._excuse_doubled(name, [copy.body])
                queues[name].append(type(copy)(copy.body, copy.key, copy.headers))
                self._world.tell(f"duplicates a message of {name}")
            case Fault.REORDER if queues:
                name = self._world.random.choice(sorted(queues))
                queues[name].rotate(self._world.random.randrange(len(queues[name]) + 1))
                self._world.tell(f"reorders {name}")
            case Fault.PURGE if repairable:
                name = self._world.random.choice(sorted(repairable))
                if name == "results.events" and not self._said_again_later():
                    return
                self._world.tell(f"loses {len(queues[name])} messages of {name}")
                self._excuse_lost(name, [each.body for each in queues[name]])
                queues[name].clear()
            case Fault.CONNECTIONS_LOST:
                self._world.tell("drops every connection")
                for node in self._world.nodes:
                    node.bus.excuse()
                self._world.broker.drop_connections()
            case Fault.KILL if alive:
                node = self._world.random.choice(alive)
                self._world.tell("is killed", node)
                node.dying = True
            case Fault.STOP if alive:
                node = self._world.random.choice(alive)
                self._world.tell("is asked to stop", node)
                node.leave()
            case Fault.FROZEN if awake := [node for node in alive if node.awake.is_set()]:
                self._freeze(self._world.random.choice(awake), self._world.random.uniform(5, 120))
            case Fault.CLOCK_JUMP:
                self._world.clock.jumped_s += self._world.random.choice((-20.0, -1.0, 1.0, 20.0))
                self._world.tell(f"the clock jumps to {self._world.clock.now()}")
            case _:
                return
        self._world.faults.strike(fault)
