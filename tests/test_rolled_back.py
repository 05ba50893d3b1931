"""`rolled_back` undoes what a test did, or says why it cannot."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest
from holding import Watch

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run
from procrastinate_extconn.testing import (
    assert_deferred,
    deferred_jobs,
    rolled_back,
)


@pytest.fixture
def conn(dsn: str) -> Any:
    """A psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


def test_rolled_back(kind: Kind, dsn: str, task: Any, watch: Watch) -> None:
    """Rows and jobs of the block are gone after it, on the connection too, and what was before it is not."""

    async def body(held: Held) -> None:
        await done(held.execute("INSERT INTO orders VALUES (1)"))
        block = rolled_back(held.conn)
        if kind.is_async:
            async with block as conn:
                await held.execute("INSERT INTO orders VALUES (2)")
                await task.configure(connection=conn).defer_async()
        else:
            with block as conn:
                held.execute("INSERT INTO orders VALUES (2)")
                task.configure(connection=conn).defer()
        assert await done(deferred_jobs(held.conn)) == []
        await done(held.commit())

    run(kind, dsn, body)
    assert watch.orders() == [1]
    assert watch.jobs() == []


def test_rolled_back_after_an_error(kind: Kind, dsn: str) -> None:
    """So they are where a statement has failed."""

    async def body(held: Held) -> None:
        if kind.is_async:
            async with rolled_back(held.conn):
                await _fail(held)
        else:
            with rolled_back(held.conn):
                await _fail(held)
        assert await done(deferred_jobs(held.conn)) == []

    run(kind, dsn, body)


async def _fail(held: Held) -> None:
    with contextlib.suppress(Exception):
        await done(held.execute("SELECT 1 / 0"))


def test_commit_inside_is_found(conn: Any, watch: Watch) -> None:
    """Where the code under test commits, the test fails and says so."""
    block = rolled_back(conn)
    block.__enter__()
    conn.execute("INSERT INTO orders VALUES (1)")
    conn.commit()
    with pytest.raises(AssertionError, match=r"was committed inside rolled_back\(\)"):
        block.__exit__(None, None, None)
    assert watch.orders() == [1]


def test_commit_that_cannot_be_told(conn: Any) -> None:
    """Where a later transaction has failed as well, the test fails and says what is in the way."""
    block = rolled_back(conn)
    block.__enter__()
    conn.execute("INSERT INTO orders VALUES (1)")
    conn.commit()
    with contextlib.suppress(psycopg.Error):
        conn.execute("SELECT 1 / 0")
    with pytest.raises(AssertionError, match="cannot be told whether"):
        block.__exit__(None, None, None)


def test_session_that_commits_a_savepoint(dsn: str, task: Any, watch: Watch) -> None:
    """A SQLAlchemy session on the fixture's connection may commit, where that is a savepoint's release."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection, connection.begin(), rolled_back(connection):
        with orm.Session(connection, join_transaction_mode="create_savepoint") as session:
            session.execute(sqlalchemy.text("INSERT INTO orders VALUES (1)"))
            task.configure(connection=session).defer()
            session.commit()
        assert_deferred(connection, task)
    engine.dispose()
    assert watch.orders() == []
    assert watch.jobs() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_session_whose_commit_releases_a_savepoint(dsn: str, task: Any, end: str) -> None:
    """A session that commits a savepoint in the block is told apart from one that rolls it back."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection, connection.begin() as transaction:
        session = orm.Session(connection, join_transaction_mode="create_savepoint")
        expected: Any = contextlib.nullcontext()
        if end == "commit":
            expected = pytest.raises(AssertionError, match=r"transaction is still open.*bound to")
        with expected, rolled_back(session):
            task.configure(connection=session).defer()
            getattr(session, end)()
        assert len(deferred_jobs(connection)) == (end == "commit")
        session.close()
        transaction.rollback()
    engine.dispose()


def test_another_transaction_inside_is_found(conn: Any) -> None:
    """What a transaction does that began after a rollback in the block is not undone, so the test fails."""
    block = rolled_back(conn)
    block.__enter__()
    conn.rollback()
    conn.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(AssertionError, match="another one has written"):
        block.__exit__(None, None, None)


def test_rollback_inside_is_fine(conn: Any) -> None:
    """Where the code under test rolls back, there is nothing left to do."""
    with rolled_back(conn):
        conn.execute("INSERT INTO orders VALUES (1)")
        conn.rollback()


def test_closed_inside_is_fine(conn: Any) -> None:
    """Nor is there where it closes the connection."""
    with rolled_back(conn):
        conn.execute("INSERT INTO orders VALUES (1)")
        conn.close()


def test_nothing_to_roll_back(dsn: str) -> None:
    """A connection that commits each statement by itself is refused."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        block = rolled_back(conn)
        with pytest.raises(extconn.OutsideTransaction, match="open a transaction first"):
            block.__enter__()


@pytest.mark.filterwarnings("ignore:the plugin 'psqlpy' does not tell")
async def test_nothing_to_roll_back_where_only_the_server_knows(dsn: str) -> None:
    """So is one that does not tell by itself that it is in no transaction."""
    pytest.importorskip("procrastinate_extconn_psqlpy")
    [kind] = [kind for kind in all_kinds() if kind.id == "psqlpy"]
    async with kind.open(dsn) as held:
        await held.rollback()
        with pytest.raises(extconn.OutsideTransaction, match="open a transaction first"):
            async with rolled_back(held.conn):
                pass


def test_nothing_goes_on_what_is_closed_or_failed(conn: Any) -> None:
    """A connection that can run nothing is refused with what to do."""
    with contextlib.suppress(psycopg.Error):
        conn.execute("SELECT 1 / 0")
    with pytest.raises(extconn.UnusableConnection, match="failed, was lost or was given up before"):
        rolled_back(conn).__enter__()
    conn.close()
    with pytest.raises(extconn.UnusableConnection, match="is closed"):
        rolled_back(conn).__enter__()


async def test_rolled_back_is_sync_or_async(dsn: str, conn: Any) -> None:
    """`with` and `async with` are told apart."""
    with pytest.raises(extconn.SyncAsyncMismatch, match="`with`"):
        async with rolled_back(conn):
            pass
    async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
        with (
            pytest.raises(extconn.SyncAsyncMismatch, match="`async with`"),
            rolled_back(async_conn),
        ):
            pass
