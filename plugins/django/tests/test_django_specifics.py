"""What only Django has: atomic blocks, lazy connections, wrappers around queries, and rules for threads and loops."""

from __future__ import annotations

import json
from typing import Any

import django
import django.core.cache
import pghistory
import pgtrigger
import procrastinate
import pytest
from asgiref.sync import sync_to_async
from django import db
from django.db import transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from procrastinate.contrib.django.django_connector import DjangoConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.testing.contract.database import Database


def place(ship: Any, order: int) -> None:
    """Insert a row and a job; fail for the second order."""
    with db.connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", [order])
    ship.configure(connection=db.connection).defer(order=order)
    assert order != 2


def orders(database: Database) -> list[int]:
    """Look at the orders whose jobs are committed."""
    return [json.loads(job["args"])["order"] for job in database.jobs()]


def test_atomic(connection: Any, database: Database, ship: Any) -> None:
    """An atomic block decides about row and job alike, and so does a block inside it."""
    with transaction.atomic():
        place(ship, 1)
        with pytest.raises(AssertionError), transaction.atomic():
            place(ship, 2)
        with transaction.atomic():
            place(ship, 3)
    assert orders(database) == [1, 3]


def test_failed_defer(connection: Any, database: Database, ship: Any) -> None:
    """A failed defer marks the block for rollback, as a failed query of Django's does."""
    locked = ship.configure(connection=connection, queueing_lock="bay")
    with transaction.atomic():
        locked.defer()
        with pytest.raises(AlreadyEnqueued):
            locked.defer()
        assert extconn.describe(connection).state == "failed"
        with pytest.raises(transaction.TransactionManagementError):
            connection.cursor().execute("SELECT 1")
        with pytest.raises(extconn.UnusableConnection, match="failed"):
            ship.configure(connection=connection).defer()
    assert not database.jobs()
    assert extconn.describe(connection).state == "autocommit"


def test_failed_defer_in_inner_block(connection: Any, database: Database, ship: Any) -> None:
    """A taken lock costs the inner block alone."""
    locked = ship.configure(connection=connection, queueing_lock="bay")
    with transaction.atomic():
        locked.defer(order=1)
        with pytest.raises(AlreadyEnqueued), transaction.atomic():
            locked.defer(order=2)
        place(ship, 3)
    assert orders(database) == [1, 3]


def test_savepoint(connection: Any, database: Database, ship: Any) -> None:
    """Inside our savepoint, a taken lock leaves the block as it was, in Django's eyes too."""
    with transaction.atomic():
        first = ship.configure(connection=connection, queueing_lock="bay").defer(order=1)
        kept = extconn.external(connection, savepoint=True)
        with pytest.raises(AlreadyEnqueued):
            ship.configure(connection=kept, queueing_lock="bay").defer(order=2)
        assert not transaction.get_rollback()
        existing = extconn.external(connection, on_conflict="existing")
        assert ship.configure(connection=existing, queueing_lock="bay").defer() == first
        place(ship, 3)
    assert orders(database) == [1, 3]


def test_autocommit(connection: Any, driver: str, database: Database, ship: Any) -> None:
    """Outside a block each statement commits by itself, which is known before Django has connected."""
    assert extconn.describe(connection)[:4] == (driver, "django", False, "autocommit")
    external = extconn.external(connection, outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction, match=r"transaction\.atomic\(\)"):
        ship.configure(connection=external).defer()
    assert connection.connection is None
    with pytest.warns(match="commits each statement by itself"):
        ship.configure(connection=connection).defer()
    assert len(database.jobs()) == 1
    with pytest.raises(extconn.OutsideTransaction):
        ship.configure(connection=external).defer()


def test_lazy_connection(connection: Any, database: Database, ship: Any) -> None:
    """A job may be the first statement of a block, and of the connection."""
    with transaction.atomic():
        ship.configure(connection=db.connection).defer()
        transaction.set_rollback(True)
    assert not database.jobs()


def test_autocommit_off(connection: Any, database: Database, ship: Any) -> None:
    """With Django's autocommit off, the person's own commit and rollback decide."""
    transaction.set_autocommit(False)
    assert extconn.describe(connection).state == "idle"
    place(ship, 1)
    assert extconn.describe(connection).state == "in_transaction"
    transaction.commit()
    place(ship, 3)
    transaction.rollback()
    with pytest.raises(AssertionError):
        place(ship, 2)
    transaction.rollback()
    assert orders(database) == [1]


@pytest.mark.parametrize("options", [{"AUTOCOMMIT": False}])
def test_autocommit_off_in_settings(connection: Any, database: Database, ship: Any) -> None:
    """So it is where the settings say so, before Django has connected."""
    assert extconn.describe(connection).state == "idle"
    ship.configure(connection=connection).defer()
    connection.rollback()
    assert not database.jobs()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"OPTIONS": {"server_side_binding": True}}, id="server-side-binding"),
        pytest.param({"OPTIONS": {"isolation_level": 3}}, id="serializable"),
        pytest.param(
            {"OPTIONS": {"pool": True}},
            id="pool",
            marks=pytest.mark.skipif(django.VERSION < (5, 1), reason="Django 5.1 has pools"),
        ),
    ],
)
def test_options(
    connection: Any, driver: str, database: Database, ship: Any, options: dict[str, Any]
) -> None:
    """Options of Django's backend change nothing."""
    if driver == "psycopg2" and "isolation_level" not in options["OPTIONS"]:
        pytest.skip("an option for psycopg 3")
    with transaction.atomic():
        place(ship, 1)
    with pytest.raises(AssertionError), transaction.atomic():
        place(ship, 2)
    connection.close()
    assert extconn.describe(connection).state == "autocommit"
    if hasattr(connection, "close_pool"):
        connection.close_pool()
    assert orders(database) == [1]


def test_execute_wrapper(connection: Any, ship: Any) -> None:
    """Wrappers around Django's queries see ours, and may refuse it."""
    seen: list[str] = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    def refuse(*args: Any) -> Any:
        raise LookupError("no queries here")

    with transaction.atomic(), connection.execute_wrapper(note):
        ship.configure(connection=connection).defer()
        assert len(seen) == 1
        assert "procrastinate_defer_jobs" in seen[0]
        with connection.execute_wrapper(refuse), pytest.raises(ConnectorException) as caught:
            ship.configure(connection=connection).defer()
        assert transaction.get_rollback()
    assert isinstance(caught.value.__cause__, LookupError)


def test_query_log(connection: Any, ship: Any) -> None:
    """A job is one query in Django's log, as ``assertNumQueries`` counts."""
    with transaction.atomic(), CaptureQueriesContext(connection) as captured:
        ship.configure(connection=connection).defer(text="100 % é")
    [query] = captured.captured_queries
    assert "procrastinate_defer_jobs" in query["sql"]


def test_use_tz_off(connection: Any, ship: Any) -> None:
    """Instants have their time zone where Django takes it away."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kolkata"), transaction.atomic():
        connection.__dict__.pop("timezone", None)
        connection.__dict__.pop("timezone_name", None)
        at = procrastinate.utils.utcnow()
        ship.configure(connection=connection, schedule_at=at).defer()
        [job] = JobManager(ExternalConnector(connection)).list_jobs()
    assert job.scheduled_at == at


def test_closed_in_block(connection: Any, database: Database, ship: Any) -> None:
    """A connection that was closed inside its block is refused, where Django would refuse it too."""

    def close() -> None:
        with transaction.atomic():
            ship.configure(connection=connection).defer()
            connection.close()
            assert extconn.describe(connection).state == "closed"
            with pytest.raises(extconn.UnusableConnection, match="is closed"):
                ship.configure(connection=connection).defer()

    close()
    assert not database.jobs()


def test_proxy(connection: Any, driver: str) -> None:
    """``django.db.connection`` stands for the default connection."""
    with transaction.atomic():
        assert extconn.describe(db.connection)[:4] == (driver, "django", False, "in_transaction")


def test_django_connector(connection: Any, database: Database) -> None:
    """An app on Procrastinate's own Django connector takes the connection like any other."""
    app = extconn.patch(procrastinate.App(connector=DjangoConnector(alias="default")))
    ship = app.configure_task("ship", connection=db.connection)

    def place(order: int) -> None:
        with transaction.atomic():
            ship.defer(order=order)
            assert order != 2

    place(1)
    with pytest.raises(AssertionError):
        place(2)
    assert orders(database) == [1]


def test_defer_many_on_django_connector(connection: Any, database: Database) -> None:
    """A stream on Procrastinate's Django connector joins atomic(): what was deferred before an error is undone."""
    ship = procrastinate.App(connector=DjangoConnector(alias="default")).configure_task("ship")

    def place(error: bool) -> None:
        with transaction.atomic():
            assert extconn.defer_many(ship, [{"order": 1}, {"order": 2}], chunk_size=1) == 2
            assert not error

    place(error=False)
    with pytest.raises(AssertionError):
        place(error=True)
    assert orders(database) == [1, 2]


async def test_async(connection: Any, database: Database, ship: Any) -> None:
    """In a coroutine the connection is refused, and in a thread of Django's making it works."""
    with pytest.raises(extconn.SyncAsyncMismatch, match=r"defer\(\)"):
        await ship.configure(connection=db.connection).defer_async()
    with pytest.raises(ConnectorException, match="SynchronousOnlyOperation"):
        ship.configure(connection=extconn.external(connection, outside_transaction="allow")).defer()

    @sync_to_async
    def in_thread() -> None:
        try:
            with transaction.atomic():
                place(ship, 1)
        finally:
            db.connection.close()

    await in_thread()
    assert orders(database) == [1]


def test_refusals(connection: Any, ship: Any) -> None:
    """What is no connection, and other databases, are refused."""
    sqlite = db.utils.ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3"}})
    with connection.cursor() as cursor:
        refused = {
            db.connections: r'`connections\["default"\]`',
            cursor: r"`cursor\.db`",
            transaction.atomic(): "`from django.db import connection`",
            sqlite["default"]: "connections to sqlite",
        }
        for wrong, advice in refused.items():
            with pytest.raises(extconn.UnsupportedConnection, match=advice):
                ship.configure(connection=wrong).defer()
    with pytest.raises(extconn.UnsupportedConnection, match="lead to no database"):
        ship.configure(connection=django.core.cache.cache).defer()


@pytest.mark.parametrize(
    "wrapped", [lambda: pghistory.context(user="ann"), lambda: pgtrigger.schema("public")]
)
def test_wrappers_that_prepend_a_statement(
    connection: Any, database: Database, ship: Any, driver: str, wrapped: Any
) -> None:
    """Packages that prepend a statement to each find it as they expect, and we get our own statement's rows."""
    if driver == "psycopg2":
        pytest.skip("both packages look at the psycopg that is installed, which is 3")
    isolated = extconn.external(connection, savepoint=True)
    with transaction.atomic(), wrapped():
        job_id = ship.configure(connection=connection, queueing_lock="bay").defer(order=1)
        with pytest.raises(AlreadyEnqueued):
            ship.configure(connection=isolated, queueing_lock="bay").defer(order=2)
        [job] = JobManager(ExternalConnector(connection)).list_jobs()
        place(ship, 3)
    assert job.id == job_id
    assert orders(database) == [1, 3]
