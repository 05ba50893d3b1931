"""A worker dies at any moment; with `once`, each effect in another database is there exactly once all the same."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from faults.chance import LONG, SEED
from faults.servers import new_database
from outbox_processes import POINTS, Orders, Worker, forked, work_until_killed
from procrastinate.exceptions import ConnectorException
from sqlalchemy import URL, create_engine, text

from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200 if LONG else 300)]

KILLS = 150 if LONG else 4
JOBS_PER_KILL = 12
AT_RANDOM = "at a random moment"
STALLED_AFTER = 0.4
"""Seconds without a heartbeat, which comes ten times a second."""


class Trials:
    """Workers that are killed one after the other, and what that leaves in both databases."""

    def __init__(self, url: URL, dsn: str, *, marks: bool) -> None:
        self._orders = Orders(url.render_as_string(hide_password=False), dsn, marks)
        self._dsn = dsn
        self._rng = random.Random(SEED)
        self._engine = create_engine(url)
        with self._engine.begin() as conn:
            conn.execute(text("CREATE TABLE effects (job_id INTEGER NOT NULL)"))
        self._survivor = Worker(self._orders)

    def run(self) -> None:
        """Kill workers, and let one survive in the end."""
        for moment in itertools.islice(itertools.cycle([*reversed(POINTS), AT_RANDOM]), KILLS):
            with self._survivor.app.open():
                self._survivor.task.batch_defer(*[{}] * JOBS_PER_KILL)
            self._kill_one(moment)
            asyncio.run(self._retry_stalled_jobs())
        while self._unfinished():
            asyncio.run(self._retry_stalled_jobs())
            asyncio.run(self._survivor.run(wait=False))
        self._survivor.dispose()

    def _kill_one(self, moment: str) -> None:
        receiver, sender = forked.Pipe(duplex=False)
        orders = self._orders
        if moment in POINTS:
            orders = orders._replace(
                dies_at=moment, dies_in=self._rng.randint(1, JOBS_PER_KILL // 2)
            )
        process = forked.Process(target=work_until_killed, args=(orders, sender), daemon=True)
        process.start()
        sender.close()
        if moment == AT_RANDOM:
            with contextlib.suppress(EOFError):
                receiver.recv()
            time.sleep(self._rng.uniform(0, 0.1))
            process.kill()
        process.join(60)
        receiver.close()
        assert process.exitcode == -signal.SIGKILL

    async def _retry_stalled_jobs(self) -> None:
        manager = self._survivor.app.job_manager
        async with self._survivor.app.open_async():
            for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_AFTER):
                # The job may have come to its end between the two queries.
                with contextlib.suppress(ConnectorException):
                    await manager.retry_job(job)

    def _unfinished(self) -> bool:
        query = "SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        with psycopg.connect(self._dsn) as conn:
            return conn.execute(query).fetchone() is not None

    def counts(self) -> tuple[int, int, int, int]:
        """Jobs that succeeded, those that were run again, and effects that are there twice or missing."""
        with psycopg.connect(self._dsn) as conn:
            rows = conn.execute(
                "SELECT id, attempts FROM procrastinate_jobs WHERE status = 'succeeded'"
            )
            attempts = dict(rows.fetchall())
        query = "SELECT job_id, count(*) FROM effects GROUP BY job_id"
        with self._engine.begin() as conn:
            effects = dict(map(tuple, conn.execute(text(query)).all()))
        self._engine.dispose()
        again = sum(number > 1 for number in attempts.values())
        twice = sum(number > 1 for number in effects.values())
        return len(attempts), again, twice, len(attempts.keys() - effects.keys())


@pytest.fixture(scope="module")
def queue_server() -> Iterator[TemporaryServer]:
    """A server for the queue."""
    with TemporaryServer() as server:
        yield server


@pytest.fixture
def trials(
    request: pytest.FixtureRequest,
    queue_server: TemporaryServer,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, int, int, int]]:
    """Run the trials and print their figures."""

    def trials(make: str, *, marks: bool) -> tuple[int, int, int, int]:
        url = request.getfixturevalue(f"{make}_url")
        with new_database(queue_server) as dsn:
            run = Trials(url, dsn, marks=marks)
            run.run()
            jobs, again, twice, missing = run.counts()
        with capsys.disabled():
            print(  # noqa: T201 - figures are what these tests are for
                f"\neffects in {make}, {'with' if marks else 'without'} once, seed {SEED}: {KILLS} workers killed, "
                f"{jobs} jobs, {again} run again, {twice} effects twice, {missing} missing"
            )
        return jobs, again, twice, missing

    return trials


@pytest.mark.parametrize("make", ["sqlite", "mariadb"])
def test_each_effect_is_there_exactly_once(
    make: str, trials: Callable[..., tuple[int, ...]]
) -> None:
    """Whenever workers are killed, each effect is there once in the end, and some jobs were run again for it."""
    jobs, again, twice, missing = trials(make, marks=True)
    assert (jobs, twice, missing) == (KILLS * JOBS_PER_KILL, 0, 0)
    assert again


@pytest.mark.parametrize("make", ["sqlite", "mariadb"] if LONG else ["sqlite"])
def test_without_once_there_are_duplicates(
    make: str, trials: Callable[..., tuple[int, ...]]
) -> None:
    """The same workers, killed in the same way, leave effects twice."""
    jobs, _, twice, missing = trials(make, marks=False)
    assert (jobs, missing) == (KILLS * JOBS_PER_KILL, 0)
    assert twice
