"""What runs in processes of their own that are killed: relays, and a worker with effects in another database."""

from __future__ import annotations

import logging
import multiprocessing
from multiprocessing.connection import Connection
from typing import NamedTuple

import procrastinate
from mortal_worker import MortalWorker
from sqlalchemy import create_engine, text

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    [
        "aiosqlite",
        "procrastinate.worker",
        "procrastinate_extconn.builtin.sqlalchemy",
        "procrastinate_extconn_outbox.effects",
        "procrastinate_extconn_outbox.relaying",
        "psycopg_pool",
        "pymysql",
        "sqlalchemy.dialects.mysql",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.sqlite",
    ]
)

POINTS = ("before the commit", "between commit and return")
"""Where a worker can be told to kill itself."""


def app_on(dsn: str) -> procrastinate.App:
    """An app that needs few connections."""
    return procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, timeout=5)
    )


def relay_until_killed(url: str, dsn: str) -> None:
    """Forward rows. Servers that are killed are no reason to say anything."""
    from procrastinate_extconn_outbox import relay

    logging.disable(logging.CRITICAL)
    relay(url, app_on(dsn))


class Orders(NamedTuple):
    """What a worker does."""

    url: str
    """The database of its task's effects."""
    dsn: str
    marks: bool
    """Whether its task calls `once`."""
    dies_at: str | None = None
    """One of `POINTS`; None leaves it to somebody else to kill it."""
    dies_in: int = 1
    """In the how-manieth job that comes to that point."""


class Worker(MortalWorker):
    """A worker whose task writes one row for each of its runs, into another database than the queue's."""

    def __init__(self, orders: Orders, started: Connection | None = None) -> None:
        super().__init__(orders.dies_at, orders.dies_in, started)
        self._orders = orders
        self._engine = create_engine(orders.url)
        self.app = app_on(orders.dsn)
        # A job that met another run's mark, or its lock, is run again.
        self.task = self.app.task(name="work", pass_context=True, retry=20)(self._work)

    def _work(self, context: procrastinate.JobContext) -> None:
        from procrastinate_extconn_outbox import once

        self.begin(context)
        with self._engine.begin() as conn:
            if not self._orders.marks or once(context, conn):
                conn.execute(text(f"INSERT INTO effects (job_id) VALUES ({context.job.id})"))
            self.come_to("before the commit")
        self.come_to("between commit and return")

    def dispose(self) -> None:
        """Close the connections to the effects."""
        self._engine.dispose()

    async def run(self, *, wait: bool) -> None:
        """Work on a connector of its own."""
        async with self.app.open_async():
            await self.work(wait=wait)


def work_until_killed(orders: Orders, started: Connection) -> None:
    """Work, also on jobs that another worker runs."""
    import asyncio

    logging.disable(logging.CRITICAL)
    asyncio.run(Worker(orders, started).run(wait=True))
