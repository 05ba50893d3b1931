"""What goes wrong in SQLAlchemy's sessions and hooks, in triggers, policies and encodings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from psycopg_pool import ConnectionPool

import procrastinate_extconn as extconn

Task = Any


@contextlib.contextmanager
def _session(dsn: str, **options: Any) -> Iterator[Any]:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(dsn).set(drivername="postgresql+psycopg"))
    try:
        with orm.Session(engine, **options) as session:
            yield session
    finally:
        engine.dispose()


def _in_hook(dsn: str, task: Task, event: str, end: Callable[[Any], object]) -> None:
    """Defer in a hook of a session's."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    refused: list[Exception] = []

    def hook(session: Any, *_: Any) -> None:
        try:
            task.configure(connection=session).defer()
        except Exception as exc:  # noqa: BLE001 - it is raised again
            refused.append(exc)

    with _session(dsn) as session:
        sqlalchemy.event.listen(session, event, hook)
        session.execute(sqlalchemy.text("SELECT 1"))
        end(session)
    raise refused[0]


def after_commit(dsn: str, task: Task) -> None:
    """Defer in a hook that runs after the commit."""
    _in_hook(dsn, task, "after_commit", lambda session: session.commit())


def after_rollback(dsn: str, task: Task) -> None:
    """Defer in a hook that runs after the rollback."""
    _in_hook(dsn, task, "after_rollback", lambda session: session.rollback())


def after_begin(dsn: str, task: Task) -> None:
    """Defer in a hook that runs before the session has its connection."""
    _in_hook(dsn, task, "after_begin", lambda session: session.rollback())


def after_savepoint(dsn: str, task: Task) -> None:
    """Defer in the hook of a savepoint that is released."""

    def release(session: Any) -> None:
        with session.begin_nested():
            pass
        session.rollback()

    _in_hook(dsn, task, "after_commit", release)


def prepared_already(dsn: str, task: Task) -> None:
    """Defer in a two-phase transaction that is prepared."""
    with _session(dsn, twophase=True) as session:
        session.begin()
        session.prepare()
        task.configure(connection=session).defer()


def two_phases(dsn: str, task: Task) -> None:
    """Defer in a two-phase transaction."""
    with _session(dsn, twophase=True) as session:
        task.configure(connection=session).defer()


def the_synchronous_side(dsn: str, task: Task) -> None:
    """Defer on the synchronous session inside an asynchronous one."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    aio = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = aio.create_async_engine(sqlalchemy.make_url(dsn).set(drivername="postgresql+psycopg"))
    task.configure(connection=aio.AsyncSession(engine).sync_session).defer()


def a_trigger(dsn: str, task: Task, using: str = "") -> None:
    """Defer where a trigger raises an error that quotes the job's arguments."""
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE 'no: %', NEW.args {using}; END $$"
        )
        conn.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        task.configure(connection=conn).defer(card="4111")


def a_trigger_without_its_table(dsn: str, task: Task) -> None:
    """Defer where a trigger asks for a table that is not there."""
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO audit_log DEFAULT VALUES; RETURN NEW; END $$"
        )
        conn.execute(
            "CREATE TRIGGER audit AFTER INSERT ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION audit()"
        )
        task.configure(connection=conn).defer()


def a_policy(dsn: str, task: Task) -> None:
    """Defer as a role whose rows a policy refuses."""
    with psycopg.connect(dsn) as conn:
        try:
            conn.execute("CREATE ROLE extconn_tenant")
        except psycopg.errors.InsufficientPrivilege:
            pytest.skip("the user of this server may not create a role")
        conn.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO extconn_tenant")
        conn.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO extconn_tenant")
        conn.execute("ALTER TABLE procrastinate_jobs ENABLE ROW LEVEL SECURITY")
        conn.execute("SET ROLE extconn_tenant")
        task.configure(connection=conn).defer()


def uninstall_in_a_block(dsn: str, task: Task) -> None:
    """Uninstall inside a block."""
    with psycopg.connect(dsn) as conn, extconn.using(conn):
        extconn.uninstall()


def a_pool_that_is_not_open(dsn: str, task: Task) -> None:
    """Defer on an app whose pool was never opened."""
    app = procrastinate.App(connector=extconn.PoolConnector(ConnectionPool(dsn, open=False)))
    app.configure_task("process_order").defer()


CASES: list[Callable[[str, Task], None]] = [
    after_commit,
    after_rollback,
    after_begin,
    after_savepoint,
    prepared_already,
    two_phases,
    the_synchronous_side,
    a_trigger,
    a_trigger_without_its_table,
    a_policy,
    uninstall_in_a_block,
    a_pool_that_is_not_open,
]
