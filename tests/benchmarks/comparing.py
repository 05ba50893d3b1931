"""Compare two ways to do a thing, fairly, on a machine that does other things too.

Neither pytest-benchmark nor pyperf fits: both time one function for a while, and then the next. What a minute does to a
machine is then part of the result. Here the contestants take turns. Each turn of one is divided by the other's of the
same round, and the result is the median of these ratios. Client CPU (`time.process_time`) stands for the time that a
call takes from a program. In wall time, the server's part and the kernel's scheduling would hide it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

Turn: TypeAlias = Callable[[int], float]
"""Makes a number of calls, and returns the seconds for one."""

CPU = time.process_time
WALL = time.perf_counter


class Race(NamedTuple):
    """What each contestant took, round by round, in seconds."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """What *name* took for one call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """How often *other*'s time fits into that of *name*."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def divided(self, number: int) -> Race:
        """The same for each of *number* jobs that a call makes."""
        return Race({name: [one / number for one in all_] for name, all_ in self.seconds.items()})


def race(turns: Mapping[str, Turn], *, rounds: int, calls: int = 1) -> Race:
    """Let the contestants take turns, there and back: the first in a round is the last in the next."""
    order = list(turns)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in turns.values():
        turn(calls)  # caches fill, and drivers prepare what they see often
    for _ in range(rounds):
        for name in order:
            gc.collect()
            gc.disable()
            seconds[name].append(turns[name](calls))
            gc.enable()
        order.reverse()
    return Race(seconds)
