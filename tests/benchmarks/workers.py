"""A worker on each kind of pool, side by side with one on `PsycopgConnector`, on the same server.

$ PYTHONPATH=tests:tests/support python -m benchmarks.workers --jobs 5000 --rounds 3 [--dsn postgresql://...]

Prints, for each connector and concurrency, jobs a second, client CPU a job, and how long a commit takes to wake the
worker. Each figure is the median of the rounds; each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import procrastinate
import psycopg
from pools import POOLS
from procrastinate.schema import SchemaManager

import procrastinate_extconn as extconn
from procrastinate_extconn.temporary_server import TemporaryServer

NATIVE = "PsycopgConnector"
CONCURRENCIES = (1, 10)
WAKE_UPS = 100


@contextlib.asynccontextmanager
async def _open_app(kind: str, dsn: str, size: int) -> AsyncIterator[procrastinate.App]:
    if kind == NATIVE:
        connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, max_size=size)
        async with procrastinate.App(connector=connector).open_async() as app:
            yield app
    else:
        [pool_kind] = [one for one in POOLS if one.id == kind]
        async with pool_kind.open(dsn, size) as pool:
            yield procrastinate.App(connector=extconn.PoolConnector(pool))


async def _measure(kind: str, dsn: str, concurrency: int, jobs: int) -> dict[str, float]:
    async with _open_app(kind, dsn, concurrency + 2) as app:
        started: asyncio.Queue[float] = asyncio.Queue()

        @app.task(name="work")
        async def work() -> None: ...

        @app.task(name="wake_up")
        async def wake_up() -> None:
            started.put_nowait(time.perf_counter())

        options: Any = {"install_signal_handlers": False, "concurrency": concurrency}
        await work.batch_defer_async(*[{}] * 50)
        await app.run_worker_async(wait=False, **options)  # warms up
        await work.batch_defer_async(*[{}] * jobs)
        # Otherwise it is chance whether a connection has a plan from when the table was empty.
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("VACUUM ANALYZE procrastinate_jobs")
        wall, cpu = time.perf_counter(), time.process_time()
        await app.run_worker_async(wait=False, **options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        latencies = await _latencies(app, dsn, started, options)
    return {
        "jobs_per_second": jobs / wall,
        "cpu_us": cpu / jobs * 1e6,
        "p50_ms": statistics.median(latencies),
        "p95_ms": statistics.quantiles(latencies, n=20)[-1],
    }


async def _latencies(
    app: procrastinate.App, dsn: str, started: asyncio.Queue[float], options: dict[str, Any]
) -> list[float]:
    insert = "INSERT INTO procrastinate_jobs (task_name, queue_name) VALUES ('wake_up', 'default')"
    worker = asyncio.create_task(app.run_worker_async(**options))
    latencies = []
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await asyncio.sleep(1)  # until it listens and has nothing left to do
        for _ in range(WAKE_UPS):
            await conn.execute(insert)
            committed = time.perf_counter()
            await conn.commit()
            latencies.append((await started.get() - committed) * 1e3)
            await asyncio.sleep(0.03)  # lets the worker write down the end of the job
    worker.cancel()
    await asyncio.wait([worker])
    return latencies


def _in_a_process(kind: str, dsn: str, concurrency: int, jobs: int) -> dict[str, float]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        conn.execute(SchemaManager.get_schema().encode())
    arguments = ["--one", kind, "--concurrency", str(concurrency), "--jobs", str(jobs)]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--dsn", dsn, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def _compare(
    dsn: str, jobs: int, rounds: int, kinds: list[str], concurrencies: tuple[int, ...]
) -> None:
    print(f"{jobs} jobs, median of {rounds} rounds; in parentheses: PsycopgConnector is 1")  # noqa: T201
    for concurrency in concurrencies:
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                results[kind].append(_in_a_process(kind, dsn, concurrency, jobs))
        medians = {
            kind: {name: statistics.median(one[name] for one in found) for name in found[0]}
            for kind, found in results.items()
        }
        for kind in kinds:
            cells = [
                f"{name} {value:8.2f} ({value / medians[NATIVE][name]:.2f})"
                for name, value in medians[kind].items()
            ]
            print(f"concurrency {concurrency:2} {kind:20} " + "  ".join(cells), flush=True)  # noqa: T201


def main() -> None:
    """Compare, or make one measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default="psycopg,asyncpg,sqlalchemy-asyncpg,sqlalchemy-psycopg")
    parser.add_argument("--one")
    parser.add_argument("--concurrency", type=int, help="one of those alone")
    options = parser.parse_args()
    if options.one:
        found = _measure(options.one, options.dsn, options.concurrency, options.jobs)
        print(json.dumps(asyncio.run(found)))  # noqa: T201
        return
    with contextlib.ExitStack() as stack:
        dsn = options.dsn or stack.enter_context(TemporaryServer()).dsn()
        concurrencies = (options.concurrency,) if options.concurrency else CONCURRENCIES
        kinds = [NATIVE, *options.kinds.split(",")]
        _compare(dsn, options.jobs, options.rounds, kinds, concurrencies)


if __name__ == "__main__":
    main()
