"""When a process has been unable to work for too long, and how it ends although something in it hangs."""

import os
import threading
from typing import Final

EXIT_INTERNAL: Final = 1


class Unready:
    """Adds up for how long a process has been unable to work.

    It counts rounds of probes, each of which lasts ``longest_round_s`` at most: a process that was stopped for an hour,
    or whose machine slept, has missed one round and is judged by the next ones.
    """

    def __init__(self, lost_after_s: float, *, longest_round_s: float, at_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._longest_round_s = longest_round_s
        self._judged_at_s = at_s
        self._unready_s = 0.0

    @property
    def too_long(self) -> bool:
        """Whether the process should give up."""
        return self._unready_s > self._lost_after_s

    def judge(self, *, ready: bool, at_s: float) -> None:
        """Note the outcome of a round of probes."""
        round_s, self._judged_at_s = at_s - self._judged_at_s, at_s
        self._unready_s = 0.0 if ready else self._unready_s + min(round_s, self._longest_round_s)


class LastResort:
    """Ends the process from a thread of its own when the event loop, or what it waits for, does not come to an end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._timer: threading.Timer | None = None

    def within(self, seconds: float) -> None:
        """End the process after so long, unless ``cancel`` is called; the first call counts."""
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._end, (seconds,))
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """Let the process end by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, seconds: float) -> None:
        # No log and no flush: their locks may be what everything else waits for.
        os.write(2, f"{self._name}: did not end within {seconds:g} s; cut off\n".encode())
        os._exit(EXIT_INTERNAL)
