"""A worker dies at any moment; with `complete`, each job's effect is there exactly once all the same."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import psycopg
import pytest
from faults.chance import LONG, SEED
from faults.killed_worker import POINTS, Orders, Worker, main
from procrastinate.exceptions import ConnectorException

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

JOBS_PER_KILL = 12
FROZEN = "frozen, taken for dead and killed later"
MOMENTS = (*reversed(POINTS), "at a random moment", FROZEN)
STALLED_AFTER = 0.4
"""Seconds without a heartbeat, which comes ten times a second."""

KINDS = (
    "psycopg",
    "psycopg-async",
    "sqlalchemy-session-psycopg",
    "sqlalchemy-async-session-asyncpg",
)

POOLS = ("asyncpg", "sqlalchemy-asyncpg", "sqlalchemy-psycopg")
"""Workers that share a pool with their tasks."""

_AUDIT = """
SELECT
    count(*),
    count(*) FILTER (WHERE status = 'succeeded'),
    sum((SELECT count(*) FROM procrastinate_events WHERE job_id = job.id AND type = 'succeeded')),
    count(*) FILTER (WHERE attempts > 1),
    count(*) FILTER (WHERE effects > 1),
    count(*) FILTER (WHERE effects = 0)
FROM procrastinate_jobs job,
    LATERAL (SELECT count(*) AS effects FROM effects WHERE job_id = job.id) counted
"""

forked = multiprocessing.get_context("forkserver")
# What a worker imports and is installed. Where a module is missing, the others are there all the same.
forked.set_forkserver_preload(
    [
        "procrastinate.worker",
        "procrastinate_extconn.completion.calls",
        "procrastinate_extconn.kinds",
        "psycopg_pool",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.ext.asyncio",
        "sqlalchemy.orm",
        "asyncpg",
    ]
)


class Trials:
    """Workers that are killed one after the other, and what that leaves in the database."""

    def __init__(self, orders: Orders, kills: int, rng: random.Random) -> None:
        self._orders = orders
        self._kills = kills
        self._rng = rng
        self._conn = psycopg.connect(orders.dsn, autocommit=True)
        self._conn.execute("CREATE TABLE effects (job_id bigint NOT NULL)")
        self._survivor = Worker(self._orders)
        self.kills: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        """Kill workers, and let one survive in the end."""
        with self._conn:
            for moment in itertools.islice(itertools.cycle(MOMENTS), self._kills):
                with self._survivor.app.open():
                    self._survivor.task.batch_defer(*[{}] * JOBS_PER_KILL)
                self._kill_one(moment)
                asyncio.run(self._retry_stalled_jobs())
            while self._unfinished():
                asyncio.run(self._retry_stalled_jobs())
                asyncio.run(self._survivor.run(wait=False))
            self._audit()

    def _kill_one(self, moment: str) -> None:
        receiver, sender = forked.Pipe(duplex=False)
        orders = self._orders
        if moment in POINTS:
            dies_in = self._rng.randint(1, JOBS_PER_KILL // 2)
            orders = orders._replace(dies_at=moment, dies_in=dies_in)
        process = forked.Process(target=main, args=(orders, sender), daemon=True)
        process.start()
        sender.close()
        if moment not in POINTS:
            with contextlib.suppress(EOFError):
                receiver.recv()
            time.sleep(self._rng.uniform(0, 0.15))
            if moment == FROZEN:
                self._freeze(process)
            process.kill()
        process.join(60)
        receiver.close()
        # One that was taken for dead cannot fetch jobs any more, and may have ended with that error.
        assert process.exitcode == -signal.SIGKILL or moment == FROZEN
        self.kills[moment] += 1

    def _freeze(self, process: BaseProcess) -> None:
        """Let another worker run its jobs again, which may have to wait for its transactions, before it goes on."""
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        thaw = threading.Timer(3 * STALLED_AFTER, os.kill, (process.pid, signal.SIGCONT))
        thaw.start()
        time.sleep(1.5 * STALLED_AFTER)
        asyncio.run(self._retry_stalled_jobs())
        asyncio.run(self._survivor.run(wait=False))
        thaw.join()
        time.sleep(self._rng.uniform(0, 0.15))

    async def _retry_stalled_jobs(self) -> None:
        manager = self._survivor.app.job_manager
        async with self._survivor.app.open_async():
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_AFTER):
                # The job may have come to its end between the two queries.
                with contextlib.suppress(ConnectorException):
                    await manager.retry_job(job)

    def _unfinished(self) -> bool:
        query = "SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        return self._conn.execute(query).fetchone() is not None

    def _audit(self) -> None:
        row = self._conn.execute(_AUDIT).fetchone()
        assert row
        self.jobs, self.succeeded, self.events, self.retried, self.duplicates, self.lost = row

    def __str__(self) -> str:
        killed = ", ".join(f"{count} {point}" for point, count in sorted(self.kills.items()))
        where = self._orders.pool_id or self._orders.kind_id
        return (
            f"{where}, {'with' if self._orders.completes else 'without'} complete, seed {SEED}: "
            f"{self.kills.total()} workers killed ({killed}); {self.jobs} jobs, {self.retried} of them run again; "
            f"{self.duplicates} effects twice, {self.lost} never"
        )


@pytest.fixture(params=KINDS)
def kind_id(request: pytest.FixtureRequest) -> str:
    """A way to hold a transaction."""
    kind = Orders("", request.param, True).kind
    if missing := kind.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return kind.id


@pytest.fixture
def run(
    dsn: str,
    kind_id: str,
    rng: random.Random,
    sized: Callable[[int, int], int],
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Trials]:
    """Run the trials and print their figures."""

    def run(*, completes: bool) -> Trials:
        trials = Trials(Orders(dsn, kind_id, completes), sized(4, 150), rng)
        trials.run()
        with capsys.disabled():
            print(f"\n{trials}")  # noqa: T201 - figures are what these tests are for
        return trials

    return run


def test_each_effect_is_there_exactly_once(run: Callable[..., Trials]) -> None:
    """Whenever workers are killed, jobs that complete themselves have had their effect once in the end."""
    trials = run(completes=True)
    assert (trials.duplicates, trials.lost) == (0, 0)
    assert trials.succeeded == trials.events == trials.jobs
    assert trials.retried


@pytest.mark.parametrize("pool_id", POOLS)
def test_each_effect_is_there_exactly_once_on_a_pool(
    pool_id: str,
    dsn: str,
    rng: random.Random,
    sized: Callable[[int, int], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same, for a worker and tasks on one pool."""
    pytest.importorskip("asyncpg")
    orders = Orders(dsn, pool_id, True, pool_id=pool_id)
    trials = Trials(orders, sized(4, 150), rng)
    trials.run()
    with capsys.disabled():
        print(f"\non the pool {trials}")  # noqa: T201 - figures are what these tests are for
    assert (trials.duplicates, trials.lost) == (0, 0)
    assert trials.succeeded == trials.events == trials.jobs


@pytest.mark.parametrize("kind_id", KINDS if LONG else KINDS[:1], indirect=True)
def test_without_complete_there_are_duplicates(run: Callable[..., Trials]) -> None:
    """The same workers, killed in the same way, run jobs twice that are left to them to finish."""
    trials = run(completes=False)
    assert trials.lost == 0
    assert trials.succeeded == trials.jobs
    assert trials.duplicates
