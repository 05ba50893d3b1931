"""What only a fresh process can tell: the cost of an import, and peak memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_IMPORTS = """
import sys, time
start = time.process_time()
import procrastinate
{more}
seconds = time.process_time() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(seconds, int(status["VmRSS"].split()[0]) * 1024)
"""
_OURS = "import procrastinate_extconn; procrastinate_extconn.install()"


class Cost(NamedTuple):
    """What an import takes."""

    seconds: float
    bytes: float


def import_costs(rounds: int) -> tuple[Cost, Cost]:
    """What ours takes beside Procrastinate's own, pair by pair; and Procrastinate's own."""
    pairs = [(_import(_OURS), _import("")) for _ in range(rounds + 1)][1:]
    more = Cost(
        statistics.median(ours.seconds - theirs.seconds for ours, theirs in pairs),
        statistics.median(ours.bytes - theirs.bytes for ours, theirs in pairs),
    )
    own = Cost(
        statistics.median(theirs.seconds for _, theirs in pairs),
        statistics.median(theirs.bytes for _, theirs in pairs),
    )
    return more, own


def _import(more: str) -> Cost:
    seconds, size = _run("-c", _IMPORTS.format(more=more)).split()
    return Cost(float(seconds), float(size))


def peak_memory(dsn: str, count: int) -> float:
    """How many times the encoded payload one call holds at its peak, for a batch of *count* jobs."""
    return float(_run(str(Path(__file__).with_name("peak_memory.py")), dsn, str(count)))


def _run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    ).stdout
