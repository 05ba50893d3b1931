"""The measurements: each takes a DSN, the number of rounds and where its results go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import asyncpg
import drivers
import peers
import psycopg
import subprocesses
from comparing import CPU, WALL, Race, Turn, race
from drivers import Holder
from procrastinate_side import DEFER, NATIVE, OURS, arguments, jobs, ready_made, without_layer
from results import Results, Row

from procrastinate_extconn import (
    ExternalConnector,
    describe,
    hookimpl,
    register,
    unregister,
    wire,
)
from procrastinate_extconn.drivers import numeric
from procrastinate_extconn.plugins import plugins

VERSIONS_OF = ("psycopg", "asyncpg", "psycopg2-binary", "sqlalchemy", "riverqueue", "pgqueuer")

Hold = Callable[[str], AbstractContextManager[Holder]]

CALLS = 50
"""How many calls a turn makes, where one is too short for the clock."""


def clear(dsn: str) -> None:
    """Empty everybody's tables."""
    with psycopg.connect(dsn) as conn:
        conn.execute("TRUNCATE procrastinate_jobs, river_job, pgqueuer CASCADE")


def _defer(tasks: dict[bool, Any], holder: Holder) -> Callable[[], Any]:
    """Defer one job on *holder*'s connection, as a person does."""
    task, conn = tasks[holder.loop is not None], holder.conn
    if holder.loop is None:
        return lambda: task.configure(connection=conn).defer(**arguments(1))
    return lambda: task.configure(connection=conn).defer_async(**arguments(1))


def _batch_defer(tasks: dict[bool, Any], holder: Holder, count: int) -> Callable[[], Any]:
    """Defer a batch on *holder*'s connection, as a person does."""
    task, conn = tasks[holder.loop is not None], holder.conn
    orders = [arguments(number) for number in range(count)]
    if holder.loop is None:
        return lambda: task.configure(connection=conn).batch_defer(*orders)
    return lambda: task.configure(connection=conn).batch_defer_async(*orders)


def _layer(holder: Holder, count: int) -> Callable[[], Any]:
    """Defer jobs through the layer alone."""
    batch, conn = jobs(count), holder.conn
    if holder.loop is None:
        return lambda: ExternalConnector(conn).execute_query_all(DEFER, jobs=batch)
    return lambda: ExternalConnector(conn).execute_query_all_async(DEFER, jobs=batch)


def _raw(holder: Holder, count: int) -> Callable[[], Any]:
    """Run the layer's statement by the driver alone, with a text that was made before."""
    query, text = ready_made(count)
    run = holder.raw(query)
    return lambda: run(text)


def _raw_with_json(holder: Holder, count: int) -> Callable[[], Any]:
    """Run it by the driver alone, with a text that is made each time."""
    batch = jobs(count)
    run = holder.raw(ready_made(1)[0])
    return lambda: run(wire.encode_jobs(batch))


def _plugin(holder: Holder) -> Callable[[], Any]:
    """Run it by the driver's plugin alone, with a text that is made each time."""
    batch, conn = jobs(1), holder.conn
    query = ready_made(1)[0]
    plugin: Any = plugins().get(describe(conn).plugin)
    return lambda: plugin.execute_on_external(conn, query, {"jobs": wire.encode_jobs(batch)})


def _without_layer(holder: Holder) -> dict[bool, Any]:
    """Tasks whose jobs go to the driver alone."""
    return without_layer(holder.raw(ready_made(1)[0]))


def _times(
    what: str, against: str, result: Race, goal: float, *, at_best: str | None = None
) -> Row:
    """A row for what should take at most *goal* times as long as theirs.

    :param at_best: what does the same without the layer.
    """
    seconds = result.median("ours"), result.median("theirs")
    ratio = result.ratio("ours", "theirs")
    best = result.ratio(at_best, "theirs") if at_best else None
    return Row(what, against, *seconds, "s", ratio, goal, at_best=best)


def _faster(
    what: str, against: str, result: Race, goal: float, *, ours: str = "ours", at_best: str
) -> Row:
    """A row for what should be at least *goal* times as fast as theirs.

    :param at_best: what does the same without the layer.
    """
    seconds = result.median(ours), result.median("theirs")
    ratio, best = (result.ratio("theirs", one) for one in (ours, at_best))
    return Row(what, against, *seconds, "s", ratio, goal, at_least=True, at_best=best)


def batch_end_to_end(dsn: str, rounds: int, results: Results) -> None:
    """Compare ``batch_defer`` of 5,000 jobs with native Procrastinate."""
    with drivers.hold_psycopg(dsn) as holder:
        turns = {
            "ours": holder.turn(_batch_defer(OURS, holder, 5000), WALL),
            "no layer": holder.turn(_batch_defer(_without_layer(holder), holder, 5000), WALL),
            "theirs": holder.turn(_batch_defer(NATIVE, holder, 5000), WALL),
        }
        result = race(turns, rounds=rounds)
    what = "batch_defer() of 5,000 jobs, psycopg, wall"
    row = _faster(what, "native Procrastinate", result, 1.8, at_best="no layer")
    results.rows.append(row)


def batch_layer_alone(dsn: str, rounds: int, results: Results) -> None:
    """Compare a batch through the layer alone with the driver alone."""
    with drivers.hold_psycopg(dsn) as holder:
        turns = {
            "ours": holder.turn(_layer(holder, 5000), WALL),
            "theirs": holder.turn(_raw(holder, 5000), WALL),
        }
        result = race(turns, rounds=rounds)
    what = "the layer alone, 5,000 jobs, psycopg, wall"
    results.rows.append(_times(what, "raw driver, text ready-made", result, 1.2))


def one_job_end_to_end(dsn: str, rounds: int, results: Results) -> None:
    """Compare one ``defer()`` with native Procrastinate."""
    holds: dict[str, Hold] = {
        "defer(), psycopg, client CPU": drivers.hold_psycopg,
        "defer_async(), psycopg, client CPU": drivers.hold_psycopg_async,
    }
    for what, hold in holds.items():
        with hold(dsn) as holder:
            turns = {
                "ours": holder.turn(_defer(OURS, holder)),
                "no layer": holder.turn(_defer(_without_layer(holder), holder)),
                "theirs": holder.turn(_defer(NATIVE, holder)),
            }
            result = race(turns, rounds=rounds, calls=CALLS)
        row = _faster(what, "native Procrastinate", result, 1.6, at_best="no layer")
        results.rows.append(row)


def one_job_layer_alone(dsn: str, rounds: int, results: Results) -> None:
    """Compare one job through the layer with each driver alone."""
    holds: dict[str, Hold] = {
        "psycopg": drivers.hold_psycopg,
        "psycopg, async": drivers.hold_psycopg_async,
        "asyncpg": drivers.hold_asyncpg,
        "psycopg2": drivers.hold_psycopg2,
        "SQLAlchemy on psycopg": lambda dsn: drivers.hold_sqlalchemy(dsn, "psycopg"),
        "SQLAlchemy on psycopg2": drivers.hold_sqlalchemy,
        "SQLAlchemy on asyncpg": drivers.hold_sqlalchemy_async,
    }
    for name, hold in holds.items():
        with hold(dsn) as holder:
            turns = {
                "theirs": holder.turn(_raw(holder, 1)),
                "JSON": holder.turn(_raw_with_json(holder, 1)),
                "plugin": holder.turn(_plugin(holder)),
                "ours": holder.turn(_layer(holder, 1)),
            }
            result = race(turns, rounds=rounds, calls=CALLS)
        what = f"one job through the layer, {name}, client CPU"
        row = _times(what, "the same alone, text ready-made", result, 1.3, at_best="JSON")
        results.rows.append(row)
        results.overhead[name] = {
            "raw": result.median("theirs"),
            **{part: result.ratio(part, "theirs") for part in ("JSON", "plugin", "ours")},
        }


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
    results.rows.append(_times(what, "raw driver, same statement", result, 1.2))


def imports(dsn: str, rounds: int, results: Results) -> None:
    """Compare the import of the package and ``install()`` with Procrastinate's own import."""
    more, own = subprocesses.import_costs(rounds)
    what = "import procrastinate_extconn; install()"
    against = "import procrastinate"
    for unit, ours, theirs, goal in (
        ("s", more.seconds, own.seconds, 0.015),
        ("B", more.bytes, own.bytes, 3e6),
    ):
        kind = "CPU" if unit == "s" else "memory"
        row = Row(f"{what}, {kind}", against, ours, theirs, unit, ours, goal, is_difference=True)
        results.rows.append(row)


def batch_sizes(dsn: str, rounds: int, results: Results) -> None:
    """Measure all contestants over batches of 1 to 100,000 jobs."""
    with (
        drivers.hold_psycopg(dsn) as holder,
        drivers.hold_sqlalchemy(dsn) as sqlalchemy_holder,
    ):
        river, pgqueuer = peers.river(sqlalchemy_holder), peers.pgqueuer(holder)
        for size in (1, 10, 100, 1_000, 10_000, 100_000):
            orders = [arguments(number) for number in range(size)]
            turns = {
                "batch_defer()": holder.turn(_batch_defer(OURS, holder, size), WALL),
                "the layer alone": holder.turn(_layer(holder, size), WALL),
                "native batch_defer()": holder.turn(_batch_defer(NATIVE, holder, size), WALL),
                "raw driver": holder.turn(_raw(holder, size), WALL),
                "riverqueue": sqlalchemy_holder.turn(partial(river.many, orders), WALL),
                "pgqueuer": holder.turn(partial(pgqueuer.many, orders), WALL),
            }
            few = max(3, min(rounds, 30_000 // size))
            result = race(turns, rounds=few, calls=max(1, 100 // size))
            clear(dsn)
            for name in turns:
                curve = results.throughput.setdefault(name, {})
                curve[str(size)] = size / result.median(name)


def growth(dsn: str, rounds: int, results: Results) -> None:
    """Compare what a job costs in a huge batch with what it costs in a middling one, in time and in memory."""
    with drivers.hold_psycopg(dsn) as holder:
        huge = holder.turn(_layer(holder, 100_000), CPU)
        middling = holder.turn(_layer(holder, 1_000), CPU)
        turns: dict[str, Turn] = {
            "ours": lambda calls: huge(1) / 100_000,
            "theirs": lambda calls: middling(20) / 1_000,
        }
        result = race(turns, rounds=max(3, rounds // 4))
    what = "a job in a batch of 100,000 through the layer, client CPU"
    results.rows.append(_times(what, "in a batch of 1,000", result, 1.1))
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
        turn = holder.turn(_layer(holder, 1))

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
    results.rows.append(_times(what, "without them", result, 1.05))


def _all_of_ours(what: str, peer: str, result: Race) -> list[Row]:
    """A row for each of ours in a race against *peer*, beside what does the same without the layer."""
    at_best = {
        "defer()": "no layer",
        "batch_defer()": "no layer",
        "the layer alone": "driver",
    }
    return [
        _faster(what.format(ours), peer, result, 1, ours=ours, at_best=best)
        for ours, best in at_best.items()
        if ours in result.seconds
    ]


def against_peers(dsn: str, rounds: int, results: Results) -> None:
    """Compare one job and a batch with each peer, on the same connection."""
    contests: tuple[tuple[str, Hold, Callable[[Holder], peers.Peer]], ...] = (
        ("riverqueue, SQLAlchemy on psycopg2", drivers.hold_sqlalchemy, peers.river),
        ("riverqueue, SQLAlchemy on asyncpg", drivers.hold_sqlalchemy_async, peers.river),
        ("pgqueuer, psycopg", drivers.hold_psycopg, peers.pgqueuer),
        ("pgqueuer, asyncpg", drivers.hold_asyncpg, peers.pgqueuer),
    )
    orders = [arguments(number) for number in range(1_000)]
    for name, hold, make in contests:
        with hold(dsn) as holder:
            peer = make(holder)
            without = _without_layer(holder)
            one = {
                "defer()": holder.turn(_defer(OURS, holder)),
                "the layer alone": holder.turn(_layer(holder, 1)),
                "no layer": holder.turn(_defer(without, holder)),
                "driver": holder.turn(_raw_with_json(holder, 1)),
                "theirs": holder.turn(peer.one),
            }
            many = {
                "batch_defer()": holder.turn(_batch_defer(OURS, holder, 1_000), WALL),
                "the layer alone": holder.turn(_layer(holder, 1_000), WALL),
                "no layer": holder.turn(_batch_defer(without, holder, 1_000), WALL),
                "driver": holder.turn(_raw_with_json(holder, 1_000), WALL),
                "theirs": holder.turn(partial(peer.many, orders), WALL),
            }
            result = race(one, rounds=rounds, calls=CALLS)
            results.rows += _all_of_ours("one job, {}, client CPU", name, result)
            result = race(many, rounds=rounds)
            results.rows += _all_of_ours("1,000 jobs, {}, wall", name, result)
        clear(dsn)


ALL: dict[str, Callable[[str, int, Results], None]] = {
    function.__name__: function
    for function in (
        batch_end_to_end,
        batch_layer_alone,
        one_job_end_to_end,
        one_job_layer_alone,
        first_job_on_asyncpg,
        imports,
        growth,
        many_plugins,
        against_peers,
        batch_sizes,
    )
}
