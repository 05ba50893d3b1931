"""What a connection is, told without asking the server, and a job that would be committed by itself."""

from __future__ import annotations

import asyncio
import linecache
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, FakeConnection, FakeDriver, Watch, hold
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.exceptions import OutsideTransactionWarning
from procrastinate_extconn.kinds import Kind
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.testing.contract.wiretap import Wiretap, asked, tapped

DRIVERS = ("psycopg", "psycopg2", "asyncpg", "aiopg", "pg8000", "psqlpy")

ARE_A_TRANSACTION = ("tortoise-asyncpg", "tortoise-psycopg", "piccolo", "psqlpy-transaction")
"""Kinds of connection that never commit a statement by themselves."""


@pytest.fixture
def wiretap(dsn: str) -> Iterator[Wiretap]:
    """All that is sent to the database."""
    with tapped(dsn) as wiretap:
        yield wiretap


@pytest.fixture
def external(kind: Kind, wiretap: Wiretap) -> Iterator[External]:
    """A held connection of every kind, through the wiretap."""
    with hold(kind, wiretap.dsn) as external:
        yield external


def describe(external: External) -> extconn.Description:
    """Describe the connection where it is at home."""
    return external.run(lambda: extconn.describe(external.conn))


# -- describe ---------------------------------------------------------------------------------------------------------


def test_it_is_named(external: External) -> None:
    """A description names the driver, the plugin, and whether queries are awaited."""
    description = describe(external)
    [driver] = {driver for driver in DRIVERS if driver in external.kind.requires} or {"psycopg"}
    assert description.driver == driver
    assert description.plugin == external.kind.plugin
    assert description.is_async is external.kind.is_async


def test_nothing_is_sent(external: External, wiretap: Wiretap) -> None:
    """A description sends nothing, in a transaction, in one that has failed, and after it."""
    states = []
    for bring_about in (
        lambda: external.execute("SELECT 1"),
        lambda: external.execute("SELECT 1 / 0"),
        external.rollback,
    ):
        try:
            bring_about()
        except Exception:  # noqa: BLE001 - each driver has its own
            states.append("error")
        wiretap.take()
        states.append(describe(external).state)
        assert not asked(wiretap.take())
    assert states[0] in ("in_transaction", "unknown")
    assert states[1] == "error"


def test_options_are_looked_through(external: External) -> None:
    """What `external` returned is described as the connection in it."""
    options = extconn.external(external.conn, savepoint=True)
    assert external.run(lambda: extconn.describe(options)) == describe(external)


# -- the guard --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is warned about once has not been warned about."""
    monkeypatch.setattr(plugins(), "_warned", set())


@pytest.fixture
def committing(external: External, nothing_said_yet: None) -> External:
    """A connection of every kind that can be one whose next statement is committed by itself."""
    conn, kind = external.conn, external.kind
    if kind.id in ARE_A_TRANSACTION:
        pytest.skip("it is a transaction")
    external.commit()
    if kind.plugin == "sqlalchemy":
        level = {"isolation_level": "AUTOCOMMIT"}
        is_session = hasattr(conn, "get_bind")
        external.run(
            lambda: (
                conn.connection(execution_options=level)
                if is_session
                else conn.execution_options(**level)
            )
        )
    elif kind.plugin == "psycopg" and kind.is_async:
        external.run(lambda: conn.set_autocommit(True))
    elif kind.plugin in ("psycopg", "psycopg2") or kind.id == "pg8000":
        conn.autocommit = True
    return external


def test_an_error_sends_nothing(
    committing: External, task: Any, wiretap: Wiretap, watch: Watch
) -> None:
    """Under "error" a job that would be committed by itself is refused, nothing is sent, and the fix is named."""
    extconn.install(outside_transaction="error")
    wiretap.take()
    with pytest.raises(extconn.OutsideTransaction) as caught:
        committing.defer(task)
    with pytest.raises(extconn.OutsideTransaction):
        committing.batch_defer(task, {}, {})
    assert "not in a transaction" in str(caught.value) or committing.kind.id == "psqlpy"
    assert not asked(wiretap.take())
    assert watch.jobs() == []


def test_unless_told_otherwise_it_is_warned_of(
    committing: External, task: Any, watch: Watch
) -> None:
    """Unless told otherwise, the job is committed by itself, with a warning of our own category."""
    with pytest.warns(OutsideTransactionWarning):
        job_id = committing.defer(task)
    assert watch.jobs() == [job_id]


def test_the_line_that_it_names_opens_a_transaction(
    committing: External, task: Any, watch: Watch
) -> None:
    """The line of code in the warning opens a transaction: a job in it is gone with the rollback."""
    if committing.kind.id == "psqlpy":
        pytest.skip("it does not tell")
    with pytest.warns(OutsideTransactionWarning) as caught:
        committing.defer(task)
    said = str(caught[0].message)
    line = describe(committing).begin
    assert line and f"`{line}`" in said
    committing.run(lambda: _rolled_back_after(line, committing, task))
    assert len(watch.jobs()) == 1


def _rolled_back_after(line: str, committing: External, task: Any) -> Any:
    """Run *line*, defer in the transaction that it opens, and roll back."""
    conn, is_async = committing.conn, committing.kind.is_async
    defer = "await task.configure(connection=CONN).defer_async()"
    deferred = (defer if is_async else defer.replace("await ", "").replace("_async", "")).replace(
        "CONN", "session" if "as session" in line else "conn"
    )
    body = line.replace("...", f"{deferred}; raise ZeroDivisionError")
    if body == line:  # a statement, after which the connection's owner rolls back
        body = (
            f"{line}; {deferred}; conn.run('ROLLBACK') if hasattr(conn, 'run') else conn.rollback()"
        )
    names: dict[str, Any] = {"conn": conn, "task": task, "database": conn}
    names["engine"] = getattr(conn, "engine", None) or getattr(conn, "bind", None)
    if committing.kind.plugin == "sqlalchemy":
        names["Session"] = import_module("sqlalchemy.orm").Session
        names["AsyncSession"] = import_module("sqlalchemy.ext.asyncio").AsyncSession
    if committing.kind.plugin == "django":
        names["transaction"] = import_module("django.db.transaction")
    prefix = "async def run():\n" if is_async else "def run():\n"
    exec(f"{prefix} try:\n  {body}\n except ZeroDivisionError: pass", names)
    return names["run"]()


def test_allow_is_silent(committing: External, task: Any, watch: Watch) -> None:
    """Under "allow" the job is committed by itself without a word."""
    extconn.install(outside_transaction="allow")
    job_id = committing.defer(task)
    assert watch.jobs() == [job_id]


def test_a_transaction_is_no_error(external: External, task: Any, watch: Watch) -> None:
    """Under "error" a connection in a transaction, or that opens one with the next statement, is fine."""
    if external.kind.id == "psqlpy":
        pytest.skip("it does not tell")
    extconn.install(outside_transaction="error")
    job_id = external.defer(task)
    assert watch.jobs() == []
    external.commit()
    assert watch.jobs() == [job_id]


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection that commits each statement by itself."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def test_reading_is_not_guarded(conn: Any, task: Any) -> None:
    """Under "error" jobs can be looked at outside a transaction, and not changed."""
    job_id = task.configure(connection=extconn.external(conn, outside_transaction="allow")).defer()
    connector = ExternalConnector(conn, outside_transaction="error")
    manager = JobManager(connector)
    assert [job.id for job in manager.list_jobs()] == [job_id]
    assert manager.get_job_status(job_id) == procrastinate.jobs.Status.TODO
    with pytest.raises(extconn.OutsideTransaction):
        manager.cancel_job_by_id(job_id)
    with pytest.raises(extconn.OutsideTransaction):
        connector.execute_query("UPDATE orders SET id = 1")
    assert manager.get_job_status(job_id) == procrastinate.jobs.Status.TODO


def test_the_nearest_mode_wins(conn: Any, app: procrastinate.App, task: Any) -> None:
    """What `external` says goes before what `patch` says, and that before what `install` says."""
    extconn.install(outside_transaction="warn")
    extconn.patch(app, outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction):
        task.configure(connection=conn).defer()
    with pytest.raises(extconn.OutsideTransaction):
        task.configure(connection=extconn.external(conn)).defer()
    task.configure(connection=extconn.external(conn, outside_transaction="allow")).defer()
    extconn.unpatch(app)
    with pytest.warns(OutsideTransactionWarning):
        task.configure(connection=conn).defer()


def test_a_warning_points_at_the_persons_line(conn: Any, task: Any) -> None:
    """The line that a warning names is the one that called `defer`, however deep we noticed."""
    lines = []
    for options in ({}, {"savepoint": True}, {"on_conflict": "existing"}):
        deferrer = task.configure(connection=extconn.external(conn, **options))
        with pytest.warns(OutsideTransactionWarning) as caught:
            deferrer.defer()
        lines += [(warning.filename, warning.lineno) for warning in caught]
    assert len(lines) == 3
    assert set(lines) == {(__file__, lines[0][1])}
    assert "deferrer.defer()" in linecache.getline(*lines[0])


async def test_an_async_warning_points_at_the_persons_line(dsn: str, task: Any) -> None:
    """So does that of an asynchronous call, awaited by the person or by a task of its own."""

    async def on_its_own() -> None:
        await task.configure(connection=conn).defer_async()

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        with pytest.warns(OutsideTransactionWarning) as awaited:
            await task.configure(connection=conn).defer_async()
        with pytest.warns(OutsideTransactionWarning) as alone:
            await asyncio.create_task(on_its_own())
    assert [warning.filename for warning in (*awaited, *alone)] == [__file__] * 2


def test_a_warning_can_be_made_an_error(conn: Any, task: Any, watch: Watch) -> None:
    """Python's own filters decide what a warning does: as an error it comes before anything is sent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideTransactionWarning)
        with pytest.raises(OutsideTransactionWarning):
            task.configure(connection=conn).defer()
    assert watch.jobs() == []


# -- a state that nobody knows ----------------------------------------------------------------------------------------


@pytest.fixture
def unknown(driver: FakeDriver, nothing_said_yet: None) -> FakeConnection:
    """A connection whose driver does not tell its state."""
    driver.state = "unknown"
    return FakeConnection()


def test_an_unknown_state_is_warned_about_once(
    unknown: FakeConnection, task: Any, driver: FakeDriver
) -> None:
    """A state that cannot be known is warned about at the first job."""
    with pytest.warns(OutsideTransactionWarning, match="'fake' does not tell"):
        task.configure(connection=unknown).defer()
    task.configure(connection=unknown).defer()
    assert len(driver.asked) == 2


def test_an_unknown_state_is_refused_under_error(
    unknown: FakeConnection, task: Any, driver: FakeDriver
) -> None:
    """Under "error" it is refused each time, with what says that one knows better."""
    extconn.install(outside_transaction="error")
    for _ in range(2):
        with pytest.raises(extconn.OutsideTransaction, match='outside_transaction="allow"'):
            task.configure(connection=unknown).defer()
    assert driver.asked == []
    task.configure(connection=extconn.external(unknown, outside_transaction="allow")).defer()
    assert len(driver.asked) == 1
