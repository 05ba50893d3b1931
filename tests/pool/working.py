"""Workers on a pool, and what they leave in the database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import procrastinate
import psycopg
from pools import Pool

import procrastinate_extconn as extconn

CONNECTIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)
"""The connections that others have."""

QUICK = {"fetch_job_polling_interval": 0.1, "abort_job_polling_interval": 0.1}
"""For pools that cannot listen."""


class Jobs:
    """A pool, an app on it, and what became of its jobs."""

    def __init__(self, kind: Pool, pool: Any, dsn: str) -> None:
        self.kind = kind
        self.pool = pool
        self.dsn = dsn
        self.app = procrastinate.App(connector=extconn.PoolConnector(pool))

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the server, on a connection that is not of the pool."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(query.encode()).fetchall()

    def statuses(self) -> list[str]:
        """The status of each job."""
        rows = self.fetch("SELECT CAST(status AS text) FROM procrastinate_jobs ORDER BY id")
        return [status for (status,) in rows]

    async def run(self, **options: Any) -> None:
        """Run a worker until nothing is left to do."""
        options = {"wait": False, "listen_notify": False, **options}
        worker = self.app.run_worker_async(install_signal_handlers=False, **options)
        await asyncio.wait_for(worker, 60)

    @contextlib.asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
        """Run a worker during the block, which hears of jobs where the pool can listen."""
        polling = {
            "fetch_job_polling_interval": 3600,
            "abort_job_polling_interval": 3600,
            "update_heartbeat_interval": 0.2,
        }
        options = {**polling, **({} if self.kind.listens else QUICK), **options}
        task = asyncio.create_task(
            self.app.run_worker_async(install_signal_handlers=False, **options)
        )
        try:
            yield task
        finally:
            ended = task.done()
            task.cancel()
            await asyncio.wait([task], timeout=60)
        if ended and not task.cancelled():
            task.result()

    async def registered(self) -> None:
        """Wait for a worker that has begun to work."""
        await eventually(lambda: self.fetch("SELECT 1 FROM procrastinate_workers"))


async def eventually(condition: Callable[[], Any | Awaitable[Any]], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never was"
        await asyncio.sleep(0.01)
