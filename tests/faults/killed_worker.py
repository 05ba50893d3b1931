"""The worker that `test_kill_worker` kills, in a process of its own."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import procrastinate
from mortal_worker import MortalWorker
from pools import POOLS

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run
from procrastinate_extconn.plugins import plugins

POINTS = ("before complete", "between complete and commit", "between commit and return")
"""Where a worker can be told to kill itself."""


class Orders(NamedTuple):
    """What a worker does."""

    dsn: str
    kind_id: str
    """How its task holds its transaction."""
    completes: bool
    """Whether its task calls `complete`, or leaves the job to the worker."""
    dies_at: str | None = None
    """One of `POINTS`; None leaves it to somebody else to kill it."""
    dies_in: int = 1
    """In the how-manieth job that comes to that point."""
    pool_id: str | None = None
    """On which pool the worker and its task both stand; None for a connector and connections of their own."""

    @property
    def kind(self) -> Kind:
        """How its task holds its transaction."""
        return next(kind for kind in all_kinds() if kind.id == self.kind_id)


class Worker(MortalWorker):
    """A worker whose task writes one row for each of its runs."""

    def __init__(self, orders: Orders, started: Connection | None = None) -> None:
        super().__init__(orders.dies_at, orders.dies_in, started)
        self._orders = orders
        connector = procrastinate.PsycopgConnector(conninfo=orders.dsn, min_size=1)
        self.app = procrastinate.App(connector=connector)
        self.task: Any
        if orders.pool_id:

            @self.app.task(name="work", pass_context=True)
            async def work_on_pool(context: procrastinate.JobContext) -> None:
                await self._work_on_pool(context)

            self.task = work_on_pool
            return
        kind = orders.kind
        if kind.is_async:

            @self.app.task(name="work", pass_context=True)
            async def work_async(context: procrastinate.JobContext) -> None:
                async with kind.open(orders.dsn) as held:
                    await self._work(context, held)

            self.task = work_async
        else:

            @self.app.task(name="work", pass_context=True)
            def work(context: procrastinate.JobContext) -> None:
                run(kind, orders.dsn, lambda held: self._work(context, held))

            self.task = work

    async def _work_on_pool(self, context: procrastinate.JobContext) -> None:
        self.begin(context)
        async with plugins().connect(self._pool) as conn:
            insert = f"INSERT INTO effects (job_id) VALUES ({context.job.id})"
            await extconn.ExternalConnector(conn).execute_query_async(insert)
            self.come_to("before complete")
            if self._orders.completes:
                await extconn.complete_async(context, conn)
            self.come_to("between complete and commit")
        self.come_to("between commit and return")

    async def _work(self, context: procrastinate.JobContext, held: Held) -> None:
        self.begin(context)
        await done(held.execute(f"INSERT INTO effects (job_id) VALUES ({context.job.id})"))
        self.come_to("before complete")
        if self._orders.completes:
            complete = extconn.complete_async if self._orders.kind.is_async else extconn.complete
            await done(complete(context, held.conn))
        self.come_to("between complete and commit")
        await done(held.commit())
        self.come_to("between commit and return")

    async def run(self, *, wait: bool) -> None:
        """Work, on the connector or pool that was ordered."""
        async with contextlib.AsyncExitStack() as stack:
            if self._orders.pool_id:
                [pool] = [one for one in POOLS if one.id == self._orders.pool_id]
                self._pool = await stack.enter_async_context(pool.open(self._orders.dsn, 5))
                stack.enter_context(self.app.replace_connector(extconn.PoolConnector(self._pool)))
            else:
                await stack.enter_async_context(self.app.open_async())
            await self.work(wait=wait)


def main(orders: Orders, started: Connection) -> None:
    """Work until killed."""
    import asyncio

    extconn.install()
    asyncio.run(Worker(orders, started).run(wait=True))
