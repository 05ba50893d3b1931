"""What only a fresh process can tell: the cost of an import, and peak memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_IMPORTS = """
import time

def cost():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return time.process_time(), int(status["VmRSS"].split()[0]) * 1024

costs = [cost()]
import procrastinate
costs.append(cost())
import procrastinate_extconn
procrastinate_extconn.install()
costs.append(cost())
print(*(now - then for before, after in zip(costs, costs[1:]) for then, now in zip(before, after)))
"""


class Cost(NamedTuple):
    """What an import takes."""

    seconds: float
    bytes: float


def import_costs(rounds: int) -> tuple[Cost, Cost]:
    """What ours takes after Procrastinate's own; and Procrastinate's own."""
    runs = [[float(figure) for figure in _run("-c", _IMPORTS).split()] for _ in range(rounds + 1)]
    seconds, size, more_seconds, more_size = map(statistics.median, zip(*runs[1:], strict=True))
    return Cost(more_seconds, more_size), Cost(seconds, size)


def peak_memory(dsn: str, count: int) -> float:
    """How many times the encoded payload one call holds at its peak, for a batch of *count* jobs."""
    return float(_run(str(Path(__file__).with_name("peak_memory.py")), dsn, str(count)))


def stream_memory(dsn: str, count: int) -> tuple[float, float]:
    """What a process holds before a stream of *count* jobs, and at its peak."""
    start, peak = _run(str(Path(__file__).with_name("stream_memory.py")), dsn, str(count)).split()
    return float(start), float(peak)


def _run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    ).stdout
