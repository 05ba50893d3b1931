"""`once`: the mark of an effect, on connections of every make."""

from __future__ import annotations

import json
import sqlite3
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from procrastinate import JobContext
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate_extconn_outbox import Outbox, Tables, once, once_async
from sqlalchemy import URL, Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import procrastinate_extconn as extconn


class Money:
    """An argument of a job, whose text differs in each process."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


def context(job_id: int = 1, task: str = "ship", **args: Any) -> JobContext:
    """Make what a task gets of the job that it runs for."""
    job = Job(id=job_id, queue="q", lock=None, queueing_lock=None, task_name=task, task_kwargs=args)
    connector = SimpleNamespace(json_dumps=partial(json.dumps, default=lambda one: str(vars(one))))
    return cast(JobContext, SimpleNamespace(job=job, app=SimpleNamespace(connector=connector)))


def marks(engine: Engine) -> int | None:
    """Count the marks that are committed."""
    with engine.connect() as conn:
        return conn.scalar(select(func.count()).select_from(Tables().marks))


def test_a_later_run_finds_the_mark(engine: Engine) -> None:
    """A run whose transaction was rolled back leaves no mark; the one that commits does, for all later ones."""
    with Session(engine) as session:
        assert once(context(), session)
        session.rollback()
    with Session(engine) as session:
        assert once(context(), session)
        session.commit()
    with engine.begin() as conn:
        assert not once(context(), conn)
        assert once(context(2), conn)  # The transaction goes on.
    assert marks(engine) == 2


def test_other_jobs_have_other_marks(engine: Engine) -> None:
    """A job id that repeats is another job where its task, its arguments or the namespace differ."""
    different = [context(), context(task="bill"), context(n=1), context(n=2), context(m=1)]
    with engine.begin() as conn:
        assert all(once(job, conn) for job in different)
        assert once(context(), conn, namespace="other")
        assert not any(once(job, conn) for job in different)
        # Objects that `json_loads` makes anew in each run.
        assert once(context(b=Money(5), a=1), conn)
        assert not once(context(a=1, b=Money(5)), conn)
        assert once(context(a=1, b=Money(6)), conn)


def test_two_runs_at_once(engine: Engine) -> None:
    """While one run holds its mark, a second one waits for it or fails, and never goes on."""
    with engine.connect() as first:
        assert once(context(), first)

        def second() -> bool:
            with engine.begin() as conn:
                if conn.dialect.name == "sqlite":
                    conn.exec_driver_sql("PRAGMA busy_timeout = 300")
                elif conn.dialect.name == "postgresql":
                    conn.exec_driver_sql("SET lock_timeout = '300ms'")
                else:
                    conn.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
                return once(context(), conn)

        with pytest.raises(ConnectorException):
            second()
        first.commit()
    with engine.begin() as conn:
        assert not once(context(), conn)
    assert marks(engine) == 1


def test_a_mark_that_is_committed_meanwhile(engine: Engine) -> None:
    """Where the first run commits after the second has looked, the second fails with the database's own error."""
    with engine.connect() as second, engine.connect() as first:
        level = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "REPEATABLE READ"
        second = second.execution_options(isolation_level=level)
        if engine.dialect.name == "sqlite":
            second.exec_driver_sql("BEGIN")
        second.execute(select(Tables().marks)).all()
        assert once(context(), first)
        if engine.dialect.name != "sqlite":  # Its reader keeps the other from committing.
            first.commit()
            with pytest.raises(ConnectorException):
                once(context(), second)


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "mysql+asyncmy", "postgresql+asyncpg"])
async def test_async(request: pytest.FixtureRequest, driver: str) -> None:
    """An asynchronous task marks on an asynchronous connection or session."""
    make = {"sqlite+aiosqlite": "sqlite", "mysql+asyncmy": "mariadb"}.get(driver, "postgresql")
    url = request.getfixturevalue(f"{make}_url")
    engine = create_async_engine(url.set(drivername=driver))
    async with AsyncSession(engine) as session, session.begin():
        assert await once_async(context(), session)
    async with engine.begin() as conn:
        assert not await once_async(context(), conn)
        with pytest.raises(extconn.SyncAsyncMismatch, match="asynchronous connection"):
            once(context(), conn)
    await engine.dispose()


def test_without_sqlalchemy(sqlite_url: URL, postgresql_url: URL) -> None:
    """A driver's own connection will do, where a plugin takes it."""
    with psycopg.connect(
        postgresql_url.set(drivername="postgresql").render_as_string(False)
    ) as conn:
        assert once(context(), conn)
        assert not once(context(), conn)
    with sqlite3.connect(sqlite_url.database or "") as rows:
        assert once(context(), rows)
        assert not once(context(), rows)
    rows.close()


@pytest.mark.parametrize("mode", ["allow", "warn", "error"])
def test_autocommit_is_refused(engine: Engine, mode: Any) -> None:
    """A connection that commits the mark by itself is refused in every mode."""
    extconn.install(outside_transaction=mode)
    try:
        loose = engine.execution_options(isolation_level="AUTOCOMMIT")
        with loose.connect() as conn, pytest.raises(extconn.OutsideTransaction):
            once(context(), extconn.external(conn, outside_transaction="allow"))
        with Session(loose) as session, pytest.raises(extconn.OutsideTransaction):
            once(context(), session)
    finally:
        extconn.uninstall()
    assert marks(engine) == 0


def test_failed_is_refused(postgresql_url: URL) -> None:
    """A transaction that has failed is refused as such."""
    with psycopg.connect(
        postgresql_url.set(drivername="postgresql").render_as_string(False)
    ) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1 / 0")
        with pytest.raises(extconn.UnusableConnection, match="failed"):
            once(context(), conn)


class Blind:
    """A connection whose plugin tells nothing of it."""


class BlindPlugin:
    """Takes it, and has no `describe_external`."""

    @extconn.hookimpl
    def execute_on_external(self, conn: object, query: str, args: Any) -> Any:
        return [] if isinstance(conn, Blind) else None


def test_unknown_is_refused() -> None:
    """A connection that does not tell its state is refused."""
    plugin = BlindPlugin()
    extconn.register(plugin, "blind")
    try:
        with pytest.raises(extconn.OutsideTransaction, match="does not tell"):
            once(context(), Blind())
    finally:
        extconn.unregister(plugin)


def test_an_outbox_is_refused(sqlite_url: URL) -> None:
    """An outbox is for jobs alone: the connection inside is what marks."""
    engine = create_engine(sqlite_url)
    with engine.begin() as conn, pytest.raises(extconn.ExternalConnectionError):
        once(context(), Outbox(conn))
    engine.dispose()


def test_no_table() -> None:
    """Without the table of marks the task fails, with the command that prints it."""
    engine = create_engine("sqlite://")
    with engine.begin() as conn, pytest.raises(extconn.ExternalConnectionError, match="tables"):
        once(context(), conn)
    engine.dispose()
