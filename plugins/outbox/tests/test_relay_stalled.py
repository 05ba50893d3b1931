"""A relay stalls with rows in its hands, another one does the same work, and the first goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import procrastinate
import psycopg
import pytest
from outbox_rows import JOB, write
from procrastinate_extconn_outbox import forwarding, relay_async, relaying
from procrastinate_extconn_outbox.source import Row, Source
from sqlalchemy import URL, Connection, create_engine, text


class Stalling(Source):
    """An outbox whose reader stalls after it has read."""

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.has_read = threading.Event()
        self.goes_on = threading.Event()
        self.backend = 0

    def claim(self, conn: Connection) -> list[Row]:
        rows = super().claim(conn)
        if rows and not self.has_read.is_set():
            if conn.dialect.name == "postgresql":
                self.backend = conn.scalar(text("SELECT pg_backend_pid()"))
            self.has_read.set()
            assert self.goes_on.wait(60)
        return rows


def write_one(url: URL) -> None:
    """Write a row of one job."""
    engine = create_engine(url)
    write(engine, [JOB])
    engine.dispose()


def count(dsn: str, table: str) -> int:
    """Count rows in the queue's database."""
    with psycopg.connect(dsn) as conn:
        return int((conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or [0])[0])


def app_on(dsn: str) -> procrastinate.App:
    """Make an app that is not open."""
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))


@contextlib.asynccontextmanager
async def stalled(url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stalling]:
    """A relay that has read all rows, and forwards them when the block ends."""
    source = Stalling("procrastinate_outbox")
    sources = [source]
    engine: Any = create_engine(url)  # synchronous, so that a thread of its own stalls

    # The next relay has an ordinary one again.
    monkeypatch.setattr(
        relaying, "Source", lambda table: sources.pop() if sources else Source(table)
    )
    task = asyncio.create_task(relay_async(engine, app_on(dsn), wait=False))
    await asyncio.to_thread(source.has_read.wait, 60)
    try:
        yield source
    finally:
        source.goes_on.set()
        await task
        engine.dispose()


@pytest.fixture
def without_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fence away: what simpler protocols do."""

    async def nothing(queue: object) -> None: ...

    monkeypatch.setattr(forwarding, "enter_fence", nothing)


async def test_claim_is_lost(
    postgresql_url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim's connection dies, another relay forwards and deletes the row, and the first goes on: one job."""
    await lose_claim(postgresql_url, dsn, monkeypatch)
    assert count(dsn, "procrastinate_jobs") == 1
    # The first relay, which is done as well, has made the inbox forget the row.
    assert count(dsn, "procrastinate_outbox_inbox") == 0


@pytest.mark.usefixtures("without_fence")
async def test_claim_is_lost_without_fence(
    postgresql_url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same schedule makes two jobs of the row where the fence is missing."""
    await lose_claim(postgresql_url, dsn, monkeypatch)
    assert count(dsn, "procrastinate_jobs") == 2


async def lose_claim(url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a relay stall and lose its claim, while another one does all the work."""
    write_one(url)
    async with stalled(url, dsn, monkeypatch) as first:
        engine = create_engine(url)
        with engine.begin() as conn:
            conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": first.backend})
        engine.dispose()
        await relay_async(url, app_on(dsn), wait=False)
        assert count(dsn, "procrastinate_jobs") == 1


async def test_two_read_one_row(sqlite_url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite, where nothing is claimed, a second relay forwards a row that the first has read: one job."""
    write_one(sqlite_url)
    async with stalled(sqlite_url, dsn, monkeypatch):
        await relay_async(sqlite_url, app_on(dsn), wait=False)
        assert count(dsn, "procrastinate_outbox_inbox") == 1
    assert count(dsn, "procrastinate_jobs") == 1


@pytest.mark.usefixtures("without_fence")
async def test_two_read_one_row_without_fence(
    sqlite_url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same schedule makes two jobs of the row where the fence is missing."""
    write_one(sqlite_url)
    async with stalled(sqlite_url, dsn, monkeypatch):
        await relay_async(sqlite_url, app_on(dsn), wait=False)
    assert count(dsn, "procrastinate_jobs") == 2


async def test_claimed_rows_are_waited_for(
    postgresql_url: URL, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that is not to wait ends only when the rows that another one has claimed are gone, too."""
    write_one(postgresql_url)
    async with stalled(postgresql_url, dsn, monkeypatch):
        second = asyncio.create_task(relay_async(postgresql_url, app_on(dsn), wait=False))
        done, _ = await asyncio.wait([second], timeout=1.5)
        assert not done
    await second
    assert count(dsn, "procrastinate_jobs") == 1
