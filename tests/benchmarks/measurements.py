"""The measurements: each takes a DSN, the number of rounds and where its results go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import asyncpg
import calls
import drivers
import procrastinate_side
import queues
import streams
import subprocesses
from comparing import CPU, WALL, Turn, race
from drivers import Holder
from procrastinate import SyncPsycopgConnector
from procrastinate_side import DEFER, OURS, arguments, jobs, not_installed, ready_made
from results import Results, Row
from rows import faster, times

from procrastinate_extconn import ExternalConnector, hookimpl, register, unregister
from procrastinate_extconn.drivers import numeric

VERSIONS_OF = ("psycopg", "asyncpg", "psycopg2-binary", "sqlalchemy", "riverqueue", "pgqueuer")
NATIVE = "Procrastinate, layer not installed"

Hold = Callable[[str], AbstractContextManager[Holder]]

CALLS = 50
"""How many calls a turn makes, where one is too short for the clock."""

ONE_JOB: dict[str, tuple[Hold, float]] = {
    "psycopg": (drivers.hold_psycopg, 1.68),
    "psycopg, async": (drivers.hold_psycopg_async, 1.32),
    "asyncpg": (drivers.hold_asyncpg, 1.62),
    "psycopg2": (drivers.hold_psycopg2, 1.65),
    "SQLAlchemy on psycopg": (lambda dsn: drivers.hold_sqlalchemy(dsn, "psycopg"), 1.21),
    "SQLAlchemy on psycopg2": (drivers.hold_sqlalchemy, 1.33),
    "SQLAlchemy on asyncpg": (drivers.hold_sqlalchemy_async, 1.25),
}
"""Ways to hold a connection, and what one job took on each in the first edition."""


def batch_end_to_end(dsn: str, rounds: int, results: Results) -> None:
    """Compare ``batch_defer`` of 5,000 jobs with native Procrastinate."""
    with drivers.hold_psycopg(dsn) as holder:
        turns = {
            "ours": holder.turn(calls.batch_defer(OURS, holder, 5000), WALL),
            "no layer": holder.turn(calls.batch_defer(calls.no_layer(holder), holder, 5000), WALL),
            "theirs": not_installed(holder.turn(calls.batch_defer(OURS, holder, 5000), WALL)),
        }
        result = race(turns, rounds=rounds)
    what = "batch_defer() of 5,000 jobs, psycopg, wall"
    row = faster(what, NATIVE, result, 2.8, at_best="no layer")
    results.rows.append(row)


def batch_layer_alone(dsn: str, rounds: int, results: Results) -> None:
    """Compare a batch through the layer alone with the driver alone."""
    with drivers.hold_psycopg(dsn) as holder:
        turns = {
            "ours": holder.turn(calls.layer(holder, 5000), WALL),
            "theirs": holder.turn(calls.raw(holder, 5000), WALL),
        }
        result = race(turns, rounds=rounds)
    what = "the layer alone, 5,000 jobs, psycopg, wall"
    results.rows.append(times(what, "the driver alone", result, 1.2))


def one_job_end_to_end(dsn: str, rounds: int, results: Results) -> None:
    """Compare one ``defer()`` with native Procrastinate."""
    holds: dict[str, tuple[Hold, float]] = {
        "defer(), psycopg, client CPU": (drivers.hold_psycopg, 1.9),
        "defer_async(), psycopg, client CPU": (drivers.hold_psycopg_async, 1.65),
    }
    for what, (hold, goal) in holds.items():
        with hold(dsn) as holder:
            turns = {
                "ours": holder.turn(calls.defer(OURS, holder)),
                "no layer": holder.turn(calls.defer(calls.no_layer(holder), holder)),
                "theirs": not_installed(holder.turn(calls.defer(OURS, holder))),
            }
            result = race(turns, rounds=rounds, calls=CALLS)
        row = faster(what, NATIVE, result, goal, at_best="no layer")
        results.rows.append(row)
        bars = results.bars.setdefault("request", {})
        call = what.partition(",")[0]
        bars[f"{call}, Procrastinate alone"] = result.median("theirs")
        bars[f"{call}, with the layer"] = result.median("ours")


def one_job_layer_alone(dsn: str, rounds: int, results: Results) -> None:
    """Compare one job through the layer with each driver alone."""
    for name, (hold, goal) in ONE_JOB.items():
        with hold(dsn) as holder:
            turns = {
                "theirs": holder.turn(calls.raw(holder, 1)),
                "JSON": holder.turn(calls.raw_with_json(holder, 1)),
                "ours": holder.turn(calls.layer(holder, 1)),
            }
            result = race(turns, rounds=rounds, calls=CALLS)
        what = f"one job through the layer, {name}, client CPU"
        row = times(what, "the driver alone", result, goal, at_best="JSON")
        results.rows.append(row)


def first_job_on_asyncpg(dsn: str, rounds: int, results: Results) -> None:
    """Compare the first job on a new connection with the driver's first run of the same statement."""
    query, text = ready_made(1)
    statement, _ = numeric(query)
    batch = jobs(1)
    loop = asyncio.new_event_loop()

    def turn(run: Callable[[Any], Any]) -> Turn:
        async def one() -> float:
            conn = await asyncpg.connect(dsn)
            await conn.execute("BEGIN")
            start = WALL()
            await run(conn)
            seconds = WALL() - start
            await conn.close()
            return seconds

        return lambda calls: loop.run_until_complete(one())

    turns = {
        "ours": turn(
            lambda conn: ExternalConnector(conn).execute_query_all_async(DEFER, jobs=batch)
        ),
        "theirs": turn(lambda conn: conn.fetch(statement, text)),
    }
    result = race(turns, rounds=rounds * 2)
    loop.close()
    what = "first job on a new asyncpg connection, wall"
    results.rows.append(times(what, "the driver alone", result, 1.2))


def without_connection(dsn: str, rounds: int, results: Results) -> None:
    """Compare ``defer()`` on the app's own connector with the same where the layer is not installed."""
    task = procrastinate_side.task(SyncPsycopgConnector(conninfo=dsn, min_size=1, max_size=1))

    def turn(calls: int) -> float:
        start = CPU()
        for _ in range(calls):
            task.defer(**arguments(1))
        return (CPU() - start) / calls

    with task.blueprint.open():
        result = race({"ours": turn, "theirs": not_installed(turn)}, rounds=rounds, calls=CALLS)
    what = "defer() without connection=, psycopg, client CPU"
    results.rows.append(times(what, NATIVE, result, 1))


def imports(dsn: str, rounds: int, results: Results) -> None:
    """Compare the import of Procrastinate with and without the package and ``install()``."""
    more, own = subprocesses.import_costs(rounds)
    for kind, unit, added, alone in (
        ("CPU", "s", more.seconds, own.seconds),
        ("memory", "B", more.bytes, own.bytes),
    ):
        what = f"import procrastinate, procrastinate_extconn; install(), {kind}"
        ratio = (alone + added) / alone
        results.rows.append(
            Row(what, "import procrastinate", alone + added, alone, unit, ratio, 1.03)
        )


def growth(dsn: str, rounds: int, results: Results) -> None:
    """Compare what a job costs in a huge batch with what it costs in a middling one, in time and in memory."""
    with drivers.hold_psycopg(dsn) as holder:
        huge = holder.turn(calls.layer(holder, 100_000), CPU)
        middling = holder.turn(calls.layer(holder, 1_000), CPU)
        turns: dict[str, Turn] = {
            "ours": lambda calls: huge(1) / 100_000,
            "theirs": lambda calls: middling(20) / 1_000,
        }
        result = race(turns, rounds=max(3, rounds // 4))
    what = "a job in a batch of 100,000 through the layer, client CPU"
    results.rows.append(times(what, "in a batch of 1,000", result, 1.1))
    for count in (1_000, 100_000):
        payload = float(len(ready_made(count)[1]))
        peak = subprocesses.peak_memory(dsn, count)
        what = f"peak memory of a batch of {count:,} jobs, psycopg"
        row = Row(what, "the encoded payload", peak * payload, payload, "B", peak, 3)
        results.rows.append(row)


class _Stranger:
    """A plugin for a driver that nobody uses here."""

    @hookimpl
    def describe_external(self, conn: object) -> None:
        return None

    @hookimpl
    def execute_on_external(self, conn: object) -> None:
        return None


def many_plugins(dsn: str, rounds: int, results: Results) -> None:
    """Compare one job with ten plugins more, which are asked first, with one job without them."""
    strangers = [_Stranger() for _ in range(10)]
    with drivers.hold_psycopg(dsn) as holder:
        turn = holder.turn(calls.layer(holder, 1))

        def without(calls: int) -> float:
            turn(2)  # who takes the connection is found out anew
            return turn(calls)

        def with_them(calls: int) -> float:
            for stranger in strangers:
                register(stranger)
            try:
                return without(calls)
            finally:
                for stranger in strangers:
                    unregister(stranger)

        result = race({"ours": with_them, "theirs": without}, rounds=rounds * 2, calls=CALLS)
    what = "one job with ten plugins more, psycopg, client CPU"
    results.rows.append(times(what, "without them", result, 1.05))


ALL: dict[str, Callable[[str, int, Results], None]] = {
    function.__name__: function
    for function in (
        batch_end_to_end,
        one_job_end_to_end,
        without_connection,
        streams.against_drivers,
        streams.against_batches,
        streams.memory,
        queues.thousand_jobs,
        queues.triggers,
        queues.one_job,
        batch_layer_alone,
        one_job_layer_alone,
        first_job_on_asyncpg,
        growth,
        many_plugins,
        imports,
        queues.import_rate,
    )
}
