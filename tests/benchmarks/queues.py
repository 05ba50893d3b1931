"""Other queues: one job, a thousand, and batches of every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import calls
import drivers
import peers
from comparing import WALL, race
from drivers import Holder
from procrastinate_side import OURS, arguments, not_installed
from results import Results
from rows import faster, times

CALLS = 50
"""How many calls a turn makes, where one is too short for the clock."""


class Contest(NamedTuple):
    """A peer on a connection that it takes."""

    name: str
    hold: Callable[[str], AbstractContextManager[Holder]]
    make: Callable[[Holder], peers.Peer]
    is_goal: bool
    """Whether there is a goal, or the figures are only shown."""


CONTESTS = (
    Contest("riverqueue, SQLAlchemy on psycopg2", drivers.hold_sqlalchemy, peers.river, True),
    Contest("riverqueue, SQLAlchemy on asyncpg", drivers.hold_sqlalchemy_async, peers.river, True),
    Contest("pgqueuer, psycopg", drivers.hold_psycopg, peers.pgqueuer, False),
    Contest("pgqueuer, asyncpg", drivers.hold_asyncpg, peers.pgqueuer, False),
)


def _held(dsn: str) -> Iterator[tuple[Contest, Holder, peers.Peer]]:
    for contest in CONTESTS:
        with contest.hold(dsn) as holder:
            yield contest, holder, contest.make(holder)
        peers.clear(dsn)


def thousand_jobs(dsn: str, rounds: int, results: Results) -> None:
    """Compare a thousand jobs with each peer, on the same connection."""
    orders = [arguments(number) for number in range(1_000)]
    for contest, holder, peer in _held(dsn):
        many = calls.defer_many(holder, len(orders), orders)
        batch = calls.batch_defer(OURS, holder, len(orders))
        turns = {
            "defer_many()": holder.turn(many, WALL),
            "ours": holder.turn(batch, WALL),
            "theirs": holder.turn(partial(peer.many, orders), WALL),
        }
        result = race(turns, rounds=rounds)
        row = partial(faster, "1,000 jobs, defer_many(), wall", contest.name, result)
        results.rows.append(row(1 if contest.is_goal else None, ours="defer_many()"))
        what = "1,000 jobs, batch_defer(), wall"
        results.rows.append(times(what, contest.name, result, 1.2 if contest.is_goal else None))


def triggers(dsn: str, rounds: int, results: Results) -> None:
    """Compare a thousand jobs with and without Procrastinate's triggers, which write an event and notify for each."""
    off = "ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER"
    with drivers.hold_psycopg(dsn) as holder:
        call = calls.defer_many(holder, 1_000)
        turns = {"ours": holder.turn(call, WALL), "theirs": holder.turn(call, WALL, before=off)}
        result = race(turns, rounds=rounds)
    what = "1,000 jobs, defer_many(), psycopg, wall"
    results.rows.append(times(what, "the same, Procrastinate's triggers off", result, None))


def one_job(dsn: str, rounds: int, results: Results) -> None:
    """Compare one job with each peer, on the same connection."""
    for contest, holder, peer in _held(dsn):
        turns = {
            "ours": holder.turn(calls.defer(OURS, holder)),
            "theirs": holder.turn(peer.one),
        }
        result = race(turns, rounds=rounds, calls=CALLS)
        row = faster("one job, defer(), client CPU", contest.name, result, None)
        results.rows.append(row)


def import_rate(dsn: str, rounds: int, results: Results) -> None:
    """Measure how many jobs a second each contestant defers, ten thousand at a time."""
    size = 10_000
    orders = [arguments(number) for number in range(size)]
    with drivers.hold_psycopg(dsn) as holder, drivers.hold_sqlalchemy(dsn) as other:
        batch = holder.turn(calls.batch_defer(OURS, holder, size), WALL)
        turns = {
            "batch_defer(), Procrastinate alone": not_installed(batch),
            "batch_defer(), with the layer": batch,
            "defer_many()": holder.turn(calls.defer_many(holder, size, orders), WALL),
            "psycopg alone, same statement": holder.turn(calls.raw_chunks(holder, size), WALL),
            "riverqueue": other.turn(partial(peers.river(other).many, orders), WALL),
            "pgqueuer": holder.turn(partial(peers.pgqueuer(holder).many, orders), WALL),
        }
        result = race(turns, rounds=min(rounds, 10))
    results.bars["import"] = {name: size / result.median(name) for name in turns}
