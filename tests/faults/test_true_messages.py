"""What an error claims is so, and what a person's own server, driver or trigger does is not in the way."""

from __future__ import annotations

import contextlib
import contextvars
import json
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import procrastinate
import psycopg
import pytest
from goes_wrong_page import PAGE
from holding import External, hold
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager
from procrastinate.schema import SchemaManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector, server_errors
from procrastinate_extconn.exceptions import OutsideTransactionWarning
from procrastinate_extconn.kinds import Kind
from procrastinate_extconn.temporary_server import TemporaryServer

SECRET = "hunter2"
DIGITS = "0.1234567890123456789012345"


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module."""
    return new_database()


def test_the_index_has_every_sqlstate() -> None:
    """Each SQLSTATE that we give advice for is in the index of the page."""
    index = PAGE.read_text().partition("## What you passed")[0]
    assert not [state for state in server_errors._ADVICE if state not in index]


@pytest.mark.parametrize("using", ["", "USING ERRCODE = '23514'", "USING ERRCODE = 'ZZ001'"])
def test_what_a_trigger_raises_is_not_in_our_text(
    external: External, task: Any, using: str
) -> None:
    """A trigger's own words, which may quote an argument, stay in the driver's error."""
    if external.kind.plugin == "psqlpy":
        using = ""  # It tells no SQLSTATE, as the page on secrets says.
    external.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'no: {SECRET}' {using}; END $$"
    )
    external.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(ConnectorException) as caught:
        external.defer(task)
    external.rollback()
    assert SECRET not in str(caught.value) or external.kind.plugin == "psqlpy"
    assert SECRET in str(caught.value.__cause__)


def test_procrastinates_own_words_are_told(external: External) -> None:
    """What Procrastinate's functions raise is known to be harmless."""
    query = "SELECT procrastinate_finish_job_v1(%(job_id)s, 'failed', false)"
    with pytest.raises(ConnectorException, match=r"Job was not found .*\(job id: 1234567\)"):
        external.call(ExternalConnector(external.conn), "execute_query_all", query, job_id=1234567)
    external.rollback()


def test_a_number_keeps_its_digits(external: External, task: Any) -> None:
    """A person's own reading of JSON gets the arguments as they were written, whichever driver they came through."""
    job_id = _defer_digits(external, task)
    loads = lambda text: json.loads(text, parse_float=Decimal)  # noqa: E731
    manager = JobManager(ExternalConnector(external.conn, json_loads=loads))
    [job] = external.call(manager, "list_jobs", id=job_id)
    external.rollback()
    assert job.task_kwargs == {"number": Decimal(DIGITS)}


def _defer_digits(external: External, task: Any) -> int:
    connector = ExternalConnector(external.conn, json_dumps=lambda _: f'{{"number": {DIGITS}}}')
    job = task.configure().job
    deferred = external.call(JobManager(connector), "defer_job", job=job)
    job_id: int = deferred.id
    return job_id


def test_names_that_somebody_planted_are_not_called(external: External, task: Any) -> None:
    """PostgreSQL's own functions are called, though an earlier schema of the search_path has the same names."""
    external.execute("CREATE SCHEMA planted")
    for name, arguments, result in [
        ("json_populate_recordset", "anyelement, pg_catalog.json, boolean", "SETOF anyelement"),
        ("json_populate_recordset", "anyelement, pg_catalog.json", "SETOF anyelement"),
        ("set_config", "pg_catalog.text, pg_catalog.text, boolean", "pg_catalog.text"),
        ("json_build_array", "VARIADIC anyarray", "pg_catalog.json"),
        ("array_to_string", "anyarray, pg_catalog.text", "pg_catalog.text"),
    ]:
        if name == "set_config" and (
            "asyncpg" in external.kind.id or external.kind.plugin == "piccolo"
        ):
            continue  # asyncpg calls it without its schema.
        external.execute(
            f"CREATE FUNCTION planted.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'planted'; END $$"
        )
    # Not "text" or "json": Procrastinate's own functions would not find these, either.
    external.execute("CREATE DOMAIN planted.regclass AS pg_catalog.int4")
    external.execute("SET LOCAL search_path = planted, pg_catalog, public")
    for conn in (external.conn, extconn.external(external.conn, savepoint=True)):
        job_id = external.call(task.configure(connection=conn), "defer")
        [job] = external.call(JobManager(ExternalConnector(conn)), "list_jobs", id=job_id)
        assert job.task_name == "process_order"
    existing = extconn.external(external.conn, on_conflict="existing")
    first = external.call(task.configure(connection=existing, queueing_lock="one"), "defer")
    assert external.call(task.configure(connection=existing, queueing_lock="one"), "defer") == first
    external.rollback()


# -- a server without an encoding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ascii_dsn() -> Iterator[str]:
    """A database whose encoding is SQL_ASCII."""
    with TemporaryServer(initdb_args=["--encoding=SQL_ASCII"]) as server:
        with psycopg.connect(server.dsn(), client_encoding="utf8") as conn:
            conn.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
            conn.execute(SchemaManager.get_schema())
        yield server.dsn()


def test_sql_ascii_gives_text(ascii_dsn: str, kind: Kind, task: Any) -> None:
    """Where the database has no encoding, a lock is found and a job is listed as text."""
    if kind.plugin in ("sqlalchemy", "sqlmodel") and "psycopg" in kind.requires:
        pytest.skip("SQLAlchemy itself does not connect there with psycopg")
    with hold(kind, ascii_dsn) as external:
        conn = extconn.external(external.conn, on_conflict="existing")
        deferrer = task.configure(connection=conn, queueing_lock="one", queue="letters")
        first = external.call(deferrer, "defer", name="a")
        assert external.call(deferrer, "defer") == first
        [job] = external.call(JobManager(ExternalConnector(external.conn)), "list_jobs", id=first)
        external.rollback()
    assert (job.queue, job.queueing_lock, job.task_kwargs) == ("letters", "one", {"name": "a"})


# -- SQLAlchemy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["connect_args", "creator", "event"])
def test_a_session_on_a_driver_that_commits_by_itself(dsn: str, task: Any, how: str) -> None:
    """A session's first statement is judged by the connection that it checks out, before the job is sent."""
    sa = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    options: dict[str, Any] = {
        "connect_args": {"connect_args": {"autocommit": True}},
        "creator": {"creator": lambda: psycopg.connect(dsn, autocommit=True)},
        "event": {},
    }[how]
    engine = sa.create_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"), **options)
    if how == "event":
        sa.event.listen(engine, "connect", lambda conn, _: setattr(conn, "autocommit", True))
    with orm.Session(engine) as session:
        refusing = extconn.external(session, outside_transaction="error")
        with pytest.raises(extconn.OutsideTransaction, match="commits each statement"):
            task.configure(connection=refusing, queue=how).defer()
    with orm.Session(engine) as session, pytest.warns(OutsideTransactionWarning):
        task.configure(connection=session, queue=f"{how} warned").defer()
    with orm.Session(engine.execution_options(isolation_level="READ COMMITTED")) as session:
        task.configure(connection=session, queue=f"{how} rolled back").defer()
        session.rollback()
    engine.dispose()
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT queue_name FROM procrastinate_jobs WHERE queue_name LIKE %s", [f"{how}%"]
        )
        assert [name for (name,) in rows] == [f"{how} warned"]


def test_a_lost_connection_without_a_transaction_is_replaced(dsn: str, task: Any) -> None:
    """An invalidated connection is unusable only where a transaction was lost with it."""
    sa = pytest.importorskip("sqlalchemy")
    engine = sa.create_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"))
    with engine.connect() as conn:
        conn.invalidate()
        assert extconn.describe(conn).state == "idle"
        task.configure(connection=conn).defer()
        conn.invalidate()
        with pytest.raises(extconn.UnusableConnection, match="was lost"):
            task.configure(connection=conn).defer()
    engine.dispose()


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_generator_that_another_thread_closes(
    dsn: str, app: procrastinate.App, task: Any
) -> None:
    """A block that was left in another thread is over for the one that entered it, too."""
    # Nobody can take such a block out of its context: no other test shall inherit it.
    contextvars.copy_context().run(_closed_by_another_thread, dsn, app, task)


def _closed_by_another_thread(dsn: str, app: procrastinate.App, task: Any) -> None:
    def holding(conn: Any) -> Iterator[None]:
        with extconn.using(conn):
            yield

    left: list[Exception] = []

    def close(generator: Any) -> None:
        try:
            generator.close()
        except extconn.ExternalConnectionError as exc:
            left.append(exc)

    with psycopg.connect(dsn) as conn, psycopg.connect(dsn) as other:
        generator = holding(conn)
        next(generator)
        thread = threading.Thread(target=close, args=[generator])
        thread.start()
        thread.join()
        assert re.search("entered in one context and left in another", str(left[0]))
        with app.open():
            task.defer()
        with extconn.using(other):
            task.configure(queue="other").defer()
            other.rollback()
    with psycopg.connect(dsn) as conn:
        assert (
            conn.execute("SELECT FROM procrastinate_jobs WHERE queue_name = 'other'").fetchall()
            == []
        )


def test_uninstall_in_a_block_changes_nothing(dsn: str, task: Any) -> None:
    """The refused `uninstall()` leaves the layer on."""
    with psycopg.connect(dsn) as conn:
        with extconn.using(conn):
            with pytest.raises(extconn.ExternalConnectionError, match="leave the block first"):
                extconn.uninstall()
            task.configure(queue="in the block").defer()
        found = conn.execute("SELECT FROM procrastinate_jobs WHERE queue_name = 'in the block'")
        assert found.rowcount == 1
        conn.rollback()


# -- answers that are no text -----------------------------------------------------------------------------------------


def test_an_answer_that_is_no_text(ascii_dsn: str, task: Any) -> None:
    """After an answer that cannot be decoded, nobody is told that the transaction is as it was before."""
    pytest.importorskip("procrastinate_extconn_pg8000")
    pg8000 = pytest.importorskip("pg8000.dbapi")
    told = psycopg.conninfo.conninfo_to_dict(ascii_dsn)
    conn = pg8000.connect(
        user=str(told["user"]),
        password=str(told["password"]),
        host=str(told["host"]),
        port=int(str(told["port"])),
        database=str(told["dbname"]),
    )
    with contextlib.closing(conn):
        job_id = task.configure(connection=conn).defer()
        conn.cursor().execute(
            "UPDATE procrastinate_jobs SET lock = convert_from('\\xc3'::bytea, 'SQL_ASCII')"
        )
        with pytest.raises(ConnectorException, match="is no text") as caught:
            JobManager(ExternalConnector(conn)).list_jobs(id=job_id)
    assert "as it was before" not in str(caught.value)
