"""Print what a process holds before a stream of jobs, and at its peak: arguments are a DSN and the number of jobs."""

from __future__ import annotations

import sys
from pathlib import Path

import calls
from drivers import hold_psycopg


def kilobytes(name: str) -> int:
    """A figure of this process's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0])


def main(dsn: str, count: int) -> None:
    """Defer one job, so that all is loaded, and then the stream."""
    with hold_psycopg(dsn) as holder:
        holder.execute("BEGIN")
        calls.defer_many(holder, 1)()
        start = kilobytes("VmRSS")
        calls.defer_many(holder, count)()
        peak = kilobytes("VmHWM")
        holder.execute("ROLLBACK")
    sys.stdout.write(f"{start * 1024} {peak * 1024}\n")


main(sys.argv[1], int(sys.argv[2]))
