"""What a driver raises becomes Procrastinate's error, with a reason, and without anybody's data."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector

LOCK = 'it\'s a "lock" (of mine), )=(so; \\ %s %(x)s $1 :a é\nDETAIL: )\nHINT: '
SECRET = "hunter2"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module, where no two jobs may have the same lock either."""
    dsn = new_database()
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE UNIQUE INDEX one_lock ON procrastinate_jobs (lock)")
    return dsn


def chain(exc: BaseException) -> Iterator[BaseException]:
    """*exc* and all that a traceback would show before it."""
    while True:
        yield exc
        before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        if before is None:
            return
        exc = before


def fail(external: External, query: str, **arguments: Any) -> ConnectorException:
    """What a failing query of Procrastinate's raises on the connection."""
    with pytest.raises(ConnectorException) as caught:
        external.call(ExternalConnector(external.conn), "execute_query_all", query, **arguments)
    return caught.value


# -- a taken queueing lock --------------------------------------------------------------------------------------------


def test_a_taken_lock_is_already_enqueued(external: External, task: Any) -> None:
    """Deferring under a taken queueing lock is `AlreadyEnqueued`, with the lock as it was sent."""
    lock = f"{LOCK}{next(_numbers)}"
    external.defer(task.configure(queueing_lock=lock))
    with pytest.raises(AlreadyEnqueued) as caught:
        external.defer(task.configure(queueing_lock=lock))
    violation = caught.value.__cause__
    assert isinstance(violation, UniqueViolation)
    assert violation.queueing_lock == lock
    assert violation.constraint_name == QUEUEING_LOCK_CONSTRAINT
    assert str(caught.value).endswith(lock)
    assert lock not in str(violation)


def test_a_batch_names_the_lock_that_was_taken(
    external: External, app: procrastinate.App, task: Any
) -> None:
    """Of several locks in a batch, the one that was taken is named, though others are its end or its beginning."""
    taken = f"{LOCK}{next(_numbers)}"
    external.defer(task.configure(queueing_lock=taken))
    locks = [taken[1:], taken[:-1], taken.partition(")=(")[2], taken, f"{taken})", f"={taken}"]
    jobs = [task.configure(queueing_lock=lock).make_new_job() for lock in locks]
    with pytest.raises(AlreadyEnqueued) as caught:
        external.call(app.job_manager, "batch_defer_jobs", jobs=jobs, connection=external.conn)
    assert caught.value.__cause__.queueing_lock == taken


def test_a_batch_may_have_locks_that_are_no_text(
    external: External, app: procrastinate.App, task: Any
) -> None:
    """A UUID or a number may be a lock, as with Procrastinate's own connectors."""
    locks = [uuid.uuid4(), uuid.uuid4(), random.getrandbits(60)]
    external.defer(task.configure(queueing_lock=locks[1]))
    jobs = [task.configure(queueing_lock=lock).make_new_job() for lock in locks]
    with pytest.raises(AlreadyEnqueued, match=locks[1].hex):
        external.call(app.job_manager, "batch_defer_jobs", jobs=jobs, connection=external.conn)


def test_an_error_that_quotes_the_index_is_not_already_enqueued(
    external: External, task: Any
) -> None:
    """Another error is not a taken lock, though its DETAIL quotes a job that has the name of the lock's index in it."""
    external.execute("ALTER TABLE procrastinate_jobs ALTER scheduled_at SET NOT NULL")
    with pytest.raises(ConnectorException) as caught:
        external.defer(task.configure(lock=f'"{QUEUEING_LOCK_CONSTRAINT}"'))
    assert not isinstance(caught.value, UniqueViolation)
    external.rollback()


def test_another_unique_violation_is_not_already_enqueued(external: External, task: Any) -> None:
    """Another unique index is not the queueing lock's, even where the values quote that one's name."""
    lock = f'"{QUEUEING_LOCK_CONSTRAINT}"{next(_numbers)}'
    external.defer(task.configure(lock=lock))
    with pytest.raises(ConnectorException) as caught:
        external.defer(task.configure(lock=lock, queueing_lock=f"free{next(_numbers)}"))
    assert isinstance(caught.value, UniqueViolation)
    assert not isinstance(caught.value, AlreadyEnqueued)
    assert caught.value.queueing_lock is None
    assert caught.value.constraint_name in ("one_lock", None)  # psqlpy does not tell
    assert lock not in str(caught.value)


# -- every other error ------------------------------------------------------------------------------------------------


def test_an_error_is_procrastinates_with_the_drivers_as_its_cause(external: External) -> None:
    """An error is a `ConnectorException` from the driver's own, with its SQLSTATE and primary message."""
    driver = external.kind.plugin
    error = fail(external, "SELECT 1 / 0")
    assert type(error) is ConnectorException
    assert "division by zero" in str(error)
    assert "(SQLSTATE 22012)" in str(error) or driver == "psqlpy"
    assert "division by zero" in str(error.__cause__)
    assert not type(error.__cause__).__module__.startswith(("sqlalchemy.exc", "django", "peewee"))


def test_a_failed_transaction_says_so(external: External, task: Any) -> None:
    """After an error, deferring in the same transaction says that it has failed, and what to do."""
    fail(external, "SELECT 1 / 0")
    with pytest.raises(extconn.UnusableConnection, match="roll it back"):
        external.defer(task)


def test_the_connection_can_be_rolled_back(external: External, task: Any) -> None:
    """An error leaves the transaction to its owner, who can roll it back."""
    fail(external, "SELECT 1 / 0")
    external.rollback()


@pytest.mark.parametrize(
    "arguments",
    [{"password": f"{SECRET}\0"}, {SECRET: float("nan")}],
    ids=["NUL", "NaN"],
)
def test_no_argument_is_in_our_text(
    external: External, task: Any, arguments: dict[str, Any]
) -> None:
    """A payload that the server refuses and quotes is not in our text, nor are parameters in what a traceback shows."""
    with pytest.raises(ConnectorException) as caught:
        external.defer(task, **arguments)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert not any("[parameters: " in str(one) for one in chain(caught.value))


def test_no_value_is_in_our_text(external: External, task: Any) -> None:
    """A value that the server quotes in its primary message is not in ours."""
    with pytest.raises(ConnectorException) as caught:
        external.defer(task.configure(priority=31415926535))
    assert "31415926535" not in str(caught.value)
    assert not any("[parameters: " in str(one) for one in chain(caught.value))


def test_no_argument_is_in_a_repr() -> None:
    """Our objects do not show the connection that they hold, which might show its password."""

    class Telling:
        def __repr__(self) -> str:
            return SECRET

    conn = Telling()
    for holder in (extconn.external(conn), ExternalConnector(conn)):
        assert SECRET not in repr(holder)


# -- what the server's error means ------------------------------------------------------------------------------------


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection."""
    with psycopg.connect(dsn) as conn:
        yield conn


def test_a_closed_connection_is_unusable(conn: psycopg.Connection[Any], task: Any) -> None:
    """A closed connection is refused before anything is sent."""
    conn.close()
    with pytest.raises(extconn.UnusableConnection, match=r"psycopg connection .* is closed"):
        task.configure(connection=conn).defer()


def test_a_connection_that_the_server_ended_is_unusable(
    conn: psycopg.Connection[Any], task: Any, dsn: str
) -> None:
    """A connection that is lost is said to be gone, transaction and all."""
    conn.execute("INSERT INTO orders VALUES (1)")
    with psycopg.connect(dsn, autocommit=True) as killer:
        killer.execute("SELECT pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])
    with pytest.raises(extconn.UnusableConnection, match="and with it your transaction"):
        task.configure(connection=conn).defer()


def test_a_missing_schema_names_where_it_looked(conn: psycopg.Connection[Any], task: Any) -> None:
    """Where Procrastinate's schema is not on the search_path, the error says so and names database and user."""
    conn.execute("SET search_path TO nowhere")
    with pytest.raises(ConnectorException, match="search_path") as caught:
        task.configure(connection=conn).defer()
    assert repr(conn.info.dbname) in str(caught.value)


def test_a_missing_privilege_is_explained(conn: psycopg.Connection[Any], task: Any) -> None:
    """A role that may not use Procrastinate's tables is told to have it granted."""
    try:
        conn.execute("CREATE ROLE nobody_much")
    except psycopg.errors.InsufficientPrivilege:
        pytest.skip("the user of this server may not create a role")
    conn.execute("SET ROLE nobody_much")
    with pytest.raises(ConnectorException, match=r"\(SQLSTATE 42501\).*lacks a privilege"):
        task.configure(connection=conn).defer()
    conn.rollback()


def test_a_read_only_transaction_is_explained(conn: psycopg.Connection[Any], task: Any) -> None:
    """A transaction that may not write is told so."""
    conn.read_only = True
    with pytest.raises(ConnectorException, match=r"\(SQLSTATE 25006\).*read-only"):
        task.configure(connection=conn).defer()


def test_an_error_holds_no_connection(dsn: str, task: Any) -> None:
    """Once the error is dealt with, nothing keeps the connection in memory until Python collects its garbage."""

    class Connection(psycopg.Connection[Any]):
        """One that a weak reference can follow."""

    conn = Connection.connect(dsn)
    with conn, contextlib.suppress(ConnectorException):
        ExternalConnector(conn).execute_query_all("SELECT 1")
        ExternalConnector(conn).execute_query_all("SELECT 1 / 0")
    reference = weakref.ref(conn)
    gc.disable()
    try:
        del conn
        assert reference() is None
    finally:
        gc.enable()
