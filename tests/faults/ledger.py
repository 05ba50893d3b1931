"""Transactions of one row and one job that names it, and whether the tables agree in the end."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import procrastinate
import psycopg
from procrastinate.exceptions import ProcrastinateException

from procrastinate_extconn.kinds import Held, Kind, done

_PAIRS = """
SELECT orders.id, job.order_id, job.count
FROM orders FULL JOIN (
    SELECT (args ->> 'order_id')::bigint AS order_id, count(*) FROM procrastinate_jobs GROUP BY 1
) job ON job.order_id = orders.id
"""


class Audit(NamedTuple):
    """What came of the transactions."""

    transactions: int
    hit: int
    """Those that came neither to their commit nor to a rollback of their own choice."""
    committed: int
    """Rows in the table."""
    orphans: int
    """Rows without a job, jobs without a row, and jobs that are there twice."""
    problems: list[str]
    """All that is not as it should be."""

    @property
    def figures(self) -> tuple[int, ...]:
        """The numbers, in the order of the table."""
        return self[:4]


class Ledger:
    """Runs transactions on connections of one kind, and knows what should have come of each.

    :param rng: decides what is left to chance.
    :param json_dumps: the app's.
    """

    def __init__(
        self, kind: Kind, dsn: str, rng: random.Random, json_dumps: Callable[..., str] | None = None
    ) -> None:
        self.kind = kind
        self.dsn = dsn
        self.rng = rng
        connector = procrastinate.PsycopgConnector(conninfo=dsn, json_dumps=json_dumps)
        app = procrastinate.App(connector=connector)
        self.task: Any = app.task(name="process_order")(_process_order)
        self._numbers = itertools.count(1)
        self._begun: list[int] = []
        self._rolled_back: list[int] = []
        self._committed: set[int] = set()  # The commit has returned.
        self._undecided: set[int] = set()  # The commit was sent, and has not returned.
        self._foreign: list[Exception] = []
        self._durations = [0.01]  # a first guess

    @property
    def transactions(self) -> int:
        """How many have begun."""
        return len(self._begun)

    @property
    def typical(self) -> float:
        """How many seconds a transaction takes that nothing happens to."""
        return statistics.median(self._durations[-20:])

    async def transact(self, held: Held) -> None:
        """One transaction: a row and a job that names it, in either order, and a commit, or now and then none."""
        order = self.begin()
        started = time.perf_counter()
        steps: list[Callable[[], Any]] = [
            lambda: self.insert(held, order),
            lambda: self.defer(held.conn, order),
        ]
        self.rng.shuffle(steps)
        for step in steps:
            await step()
        if self.rng.random() < 0.1:
            await self.roll_back(held, order)
        else:
            await self.commit(held, order)
        self._durations.append(time.perf_counter() - started)

    def begin(self) -> int:
        """Begin a transaction: the number of its order."""
        order = self.next_order()
        self._begun.append(order)
        return order

    def next_order(self) -> int:
        """The number of another order in the same transaction."""
        return next(self._numbers)

    async def insert(self, held: Held, order: int) -> None:
        """Insert the row."""
        await done(held.execute(f"INSERT INTO orders (id) VALUES ({order})"))

    async def defer(
        self, conn: object, order: int, arguments: Mapping[str, Any] | None = None, **options: Any
    ) -> int:
        """Defer the job that names *order*, on a connection that may have options.

        :param arguments: more of the job's arguments.
        :param options: of `Task.configure`.
        """
        deferrer = self.task.configure(connection=conn, **options)
        try:
            call = deferrer.defer_async if self.kind.is_async else deferrer.defer
            job_id: int = await done(call(order_id=order, **(arguments or {})))
        except ProcrastinateException:
            raise
        except Exception as exc:
            self._foreign.append(exc)
            raise
        return job_id

    async def commit(self, held: Held, *orders: int) -> None:
        """Commit the driver's own way, and remember that the rows should be there now."""
        self._undecided.update(orders)
        await done(held.commit())
        self._committed.update(orders)

    async def roll_back(self, held: Held, order: int) -> None:
        """Roll back the driver's own way, by choice."""
        await done(held.rollback())
        self._rolled_back.append(order)

    def audit(self) -> Audit:
        """Compare the tables with each other, and with what was committed."""
        with psycopg.connect(self.dsn) as conn:
            pairs = conn.execute(_PAIRS).fetchall()
        rows = {row for row, _, _ in pairs if row is not None}
        orphans = [pair for pair in pairs if pair[0] != pair[1] or pair[2] != 1]
        problems = {
            "(row, job, how many such jobs)": orphans,
            "lost although its commit returned": self._committed - rows,
            "there without a commit": rows - self._undecided,
            "not an exception of Procrastinate's": map(repr, self._foreign),
        }
        return Audit(
            self.transactions,
            hit=len(set(self._begun) - self._committed - set(self._rolled_back)),
            committed=len(rows),
            orphans=len(orphans),
            problems=[f"{what}: {found}" for what, all_ in problems.items() for found in all_],
        )


def _process_order(**arguments: Any) -> None:
    pass
