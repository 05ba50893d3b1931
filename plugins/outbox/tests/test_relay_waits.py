"""The relay waits for servers that are down, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
import pytest
from faults.servers import new_database
from outbox_rows import JOB, write
from procrastinate_extconn_outbox import Tables, relay_async
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from procrastinate_extconn.temporary_server import TemporaryServer

# A driver whose server has gone may leave its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class ImpatientPool(psycopg_pool.AsyncConnectionPool):
    """A pool that tells soon that there is no server."""

    async def open(self, wait: bool = False, timeout: float = 30) -> None:
        await super().open(wait, timeout=0.3)


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryServer]:
    """A server that is killed."""
    with TemporaryServer() as server:
        yield server


@pytest.fixture
def queue_dsn(server: TemporaryServer) -> Iterator[str]:
    """Address a queue on it."""
    with new_database(server) as dsn:
        yield dsn


def jobs(dsn: str) -> int:
    """Count the jobs."""
    with psycopg.connect(dsn) as conn:
        return int((conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() or [0])[0])


async def until(condition: Any, task: asyncio.Task[None]) -> None:
    """Wait for *condition* while *task* goes on."""
    while not condition():
        assert not task.done(), task
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def relaying(source: Any, app: procrastinate.App) -> AsyncIterator[asyncio.Task[None]]:
    """Let a relay run during the block."""
    task = asyncio.create_task(relay_async(source, app))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def quick(dsn: str) -> procrastinate.App:
    """Make an app that notices soon that its server is down."""
    return procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=dsn, pool_factory=ImpatientPool, min_size=1, timeout=0.3
        )
    )


async def test_queue_is_down_at_the_start(
    sqlite: Engine, server: TemporaryServer, queue_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An app that cannot be opened yet is opened later."""
    write(sqlite, [JOB])
    server.kill()
    async with relaying(sqlite, quick(queue_dsn)) as task:
        await until(lambda: "The relay waits" in caplog.text, task)
        server.start()
        await until(lambda: jobs(queue_dsn) == 1, task)


async def test_queue_goes_down(
    sqlite: Engine, server: TemporaryServer, queue_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that is down for a while gets what was written meanwhile."""
    async with relaying(sqlite, quick(queue_dsn)) as task:
        write(sqlite, [JOB])
        await until(lambda: jobs(queue_dsn) == 1, task)
        server.kill()
        write(sqlite, [JOB])
        await until(lambda: "The relay waits" in caplog.text, task)
        server.start()
        await until(lambda: jobs(queue_dsn) == 2, task)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_outbox_goes_down(
    dsn: str, server: TemporaryServer, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An outbox that is down for a while is forwarded and listened to afterwards."""
    with new_database(server) as rows_dsn:
        url = make_url(rows_dsn).set(drivername="postgresql+psycopg")
        engine = create_engine(url, pool_pre_ping=True)
        Tables().metadata.create_all(engine)
        source = create_async_engine(url.set(drivername=f"postgresql+{driver}"))
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
        async with relaying(source, app) as task:
            write(engine, [JOB])
            await until(lambda: jobs(dsn) == 1, task)
            server.kill()
            await until(lambda: "The relay waits" in caplog.text, task)
            server.start()
            write(engine, [JOB])
            await until(lambda: jobs(dsn) == 2, task)
        await source.dispose()
        engine.dispose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(sqlite_url: URL, dsn: str, number: signal.Signals, tmp_path: Path) -> None:
    """The command forwards rows until a signal ends it, with status 0."""
    (tmp_path / "shop.py").write_text(
        f"import procrastinate\napp = procrastinate.App(procrastinate.PsycopgConnector(conninfo={dsn!r}))\n".replace(
            "App(", "App(connector="
        )
    )
    source = sqlite_url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", "from procrastinate_extconn_outbox.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "relay", "--from", source, "--app", "shop.app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    engine = create_engine(sqlite_url)
    write(engine, [JOB])
    engine.dispose()
    while not jobs(dsn):
        assert process.poll() is None
        time.sleep(0.1)  # leaves the processor to the relay
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
