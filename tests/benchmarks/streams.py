"""`defer_many`: a million jobs, in time and in memory."""

from __future__ import annotations

import calls
import drivers
import subprocesses
from comparing import WALL, race
from procrastinate_side import OURS, arguments
from results import Results, Row
from rows import faster, times

JOBS = 1_000_000
TURNS = 10
"""A million jobs are so many streams, in turns with the other side's."""


def against_drivers(dsn: str, rounds: int, results: Results) -> None:
    """Compare a million jobs with the driver alone, which sends the text of a chunk again and again."""
    holds = {
        "psycopg": (drivers.hold_psycopg, 1.25),
        "psycopg2": (drivers.hold_psycopg2, None),
        "asyncpg": (drivers.hold_asyncpg, None),
        "SQLAlchemy on psycopg": (lambda dsn: drivers.hold_sqlalchemy(dsn, "psycopg"), None),
    }
    count = JOBS // TURNS
    for name, (hold, goal) in holds.items():
        with hold(dsn) as holder:
            turns = {
                "ours": holder.turn(calls.defer_many(holder, count), WALL),
                "theirs": holder.turn(calls.raw_chunks(holder, count), WALL),
            }
            result = race(turns, rounds=TURNS).divided(count)
        what = f"defer_many() of {JOBS:,} jobs, each, {name}, wall"
        results.rows.append(times(what, "the driver alone", result, goal))


def against_batches(dsn: str, rounds: int, results: Results) -> None:
    """Compare a stream with ``batch_defer`` in chunks."""
    orders = [arguments(number) for number in range(10_000)]
    with drivers.hold_psycopg(dsn) as holder:

        def in_chunks() -> None:
            deferrer = OURS[False].configure(connection=holder.conn)
            for start in range(0, len(orders), calls.CHUNK):
                deferrer.batch_defer(*orders[start : start + calls.CHUNK])

        turns = {
            "ours": holder.turn(calls.defer_many(holder, len(orders), orders), WALL),
            "theirs": holder.turn(in_chunks, WALL),
        }
        result = race(turns, rounds=rounds)
    what = f"defer_many() of {len(orders):,} jobs, psycopg, wall"
    results.rows.append(faster(what, "batch_defer() in chunks", result, None))


def memory(dsn: str, rounds: int, results: Results) -> None:
    """Measure by how much a process grows in a stream of a million jobs."""
    start, peak = subprocesses.stream_memory(dsn, JOBS)
    what = f"peak memory of defer_many() of {JOBS:,} jobs, psycopg"
    row = Row(what, "the start", peak, start, "B", peak - start, 20e6, is_difference=True)
    results.rows.append(row)
