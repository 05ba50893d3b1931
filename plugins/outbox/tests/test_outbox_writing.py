"""`Outbox(conn)`: one row in the caller's transaction, on SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import datetime
import json
from typing import Any

import psycopg
import pytest
from procrastinate_extconn_outbox import Outbox
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.orm import Session

import procrastinate_extconn as extconn


@pytest.fixture
def engine(rows_url: URL) -> Any:
    """Make an engine for the rows."""
    engine = create_engine(rows_url)
    yield engine
    engine.dispose()


def stored(engine: Engine) -> list[list[dict[str, Any]]]:
    """Read the jobs of each row, as another connection sees them."""
    with engine.connect() as conn:
        rows = conn.execute(text("SELECT jobs FROM procrastinate_outbox ORDER BY id"))
        return [json.loads(row.jobs) for row in rows]


def test_row_and_job_share_a_fate(engine: Engine, ship: Any) -> None:
    """What is committed has its job, and what is rolled back has none."""
    for order in (1, 2):
        with Session(engine) as session:
            session.execute(text(f"INSERT INTO orders VALUES ({order})"))
            assert ship.configure(connection=Outbox(session)).defer(order=order) == -1
            session.commit() if order == 1 else session.rollback()
    assert [jobs[0]["args"] for jobs in stored(engine)] == [{"order": 1}]


def test_every_attribute(engine: Engine, ship: Any) -> None:
    """A job's attributes and any text in its arguments arrive, with any character set and SQL mode of the server."""
    at = datetime.datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)
    args = {"text": "%s :x é 😀 ' \" \\ \n", "number": 0.1, "large": 2**70, "deep": [{"a": None}]}
    with engine.begin() as conn:
        ship.configure(
            connection=Outbox(conn), lock="l😀", queueing_lock="%(q)s", priority=-3, schedule_at=at
        ).defer(**args)
    [[job]] = stored(engine)
    assert job == {
        "queue_name": "parcels",
        "task_name": "ship",
        "priority": -3,
        "lock": "l😀",
        "queueing_lock": "%(q)s",
        "args": args,
        "scheduled_at": at.isoformat(),
    }


def test_a_row_for_a_call(engine: Engine, ship: Any) -> None:
    """Each call is one row: one job, a batch, a chunk of a stream."""
    with engine.begin() as conn:
        deferrer = ship.configure(connection=Outbox(conn))
        assert deferrer.defer(n=1) == -1
        assert deferrer.batch_defer({"n": 2}, {"n": 3}) == [-1, -1]
        assert extconn.defer_many(deferrer, ({"n": n} for n in range(4, 9)), chunk_size=3) == 5
    found = [[job["args"]["n"] for job in jobs] for jobs in stored(engine)]
    assert found == [[1], [2, 3], [4, 5, 6], [7, 8]]


def test_savepoint(engine: Engine, ship: Any) -> None:
    """A call that fails with ``savepoint=True`` leaves the transaction usable, and one that does not writes its row."""
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        missing = extconn.external(Outbox(conn, table="no_outbox"), savepoint=True)
        with pytest.raises(extconn.ExternalConnectionError, match="no table no_outbox: `proc"):
            ship.configure(connection=missing).defer(n=1)
        kept = extconn.external(Outbox(conn), savepoint=True)
        assert ship.configure(connection=kept).defer(n=2) == -1
        assert ship.configure(connection=kept).batch_defer({"n": 3}, {"n": 4}) == [-1, -1]
    assert [len(jobs) for jobs in stored(engine)] == [1, 2]
    with engine.connect() as conn:
        assert conn.execute(text("SELECT id FROM orders")).scalar_one() == 1


def test_using(engine: Engine, ship: Any) -> None:
    """A call in a ``using(Outbox(conn))`` block needs no connection."""
    with engine.begin() as conn, extconn.using(Outbox(conn)):
        ship.defer(n=1)
        ship.batch_defer({"n": 2})
    assert len(stored(engine)) == 2


def test_table_of_another_name(engine: Engine, ship: Any) -> None:
    """The outbox may have another name, which has to be a plain one."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE my_jobs (id CHAR(36), jobs TEXT)"))
        ship.configure(connection=Outbox(conn, table="my_jobs")).defer(n=1)
        assert conn.execute(text("SELECT count(*) FROM my_jobs")).scalar_one() == 1
    with pytest.raises(ValueError, match="name or schema"):
        Outbox(object(), table="my jobs; --")


def test_created_at(engine: Engine, ship: Any) -> None:
    """A row has the time in UTC."""
    with engine.begin() as conn:
        ship.configure(connection=Outbox(conn)).defer()
        found = conn.execute(text("SELECT created_at FROM procrastinate_outbox")).scalar_one()
    if isinstance(found, str):
        found = datetime.datetime.fromisoformat(found)
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    assert abs(now - found) < datetime.timedelta(minutes=5)


def test_missing_table(engine: Engine, ship: Any) -> None:
    """Where there is no outbox, the error names the command that creates it, and shows no argument."""
    with engine.begin() as conn, pytest.raises(extconn.ExternalConnectionError) as caught:
        ship.configure(connection=Outbox(conn, table="no_outbox")).defer(secret="hunter2")
    dialect = engine.dialect.name
    assert f"`procrastinate-extconn-outbox tables --dialect {dialect}`" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


def test_ids_sort_in_the_order_of_the_calls(engine: Engine, ship: Any) -> None:
    """In one transaction ids sort as the calls were made, so that jobs under one lock can keep their order."""
    with engine.begin() as conn:
        for n in range(50):
            ship.configure(connection=Outbox(conn)).defer(n=n)
    assert [jobs[0]["args"]["n"] for jobs in stored(engine)] == list(range(50))


@pytest.mark.parametrize("value", ["a\0b", float("nan"), float("inf"), "\\\0", "\ud800"])
def test_what_postgresql_cannot_store(engine: Engine, ship: Any, value: object) -> None:
    """Arguments that the queue could not store are refused by the call, not by the relay."""
    with engine.begin() as conn:
        outbox = Outbox(conn)
        with pytest.raises(extconn.ExternalConnectionError, match="not JSON that PostgreSQL"):
            ship.configure(connection=outbox).defer(value=value)
        ship.configure(connection=outbox).defer(value="\\u0000 and \\ud800 are only text here 😀")
    assert len(stored(engine)) == 1


def test_wakes_the_relay(postgresql_url: URL, ship: Any) -> None:
    """A committed row in a PostgreSQL outbox notifies its channel, with and without a savepoint."""
    dsn = postgresql_url.set(drivername="postgresql").render_as_string(hide_password=False)
    heard: list[psycopg.Notify] = []
    with psycopg.connect(dsn, autocommit=True) as listening:
        listening.add_notify_handler(heard.append)
        listening.execute("LISTEN procrastinate_outbox")
        for options in ({}, {"savepoint": True}):
            with psycopg.connect(dsn) as conn:
                ship.configure(connection=extconn.external(Outbox(conn), **options)).defer()
        # In the order of the commits: what was committed before arrives before.
        listening.execute("NOTIFY procrastinate_outbox, 'sentinel'")
    assert [notification.payload for notification in heard] == ["", "", "sentinel"]


def test_insert_is_enough(postgresql_url: URL, ship: Any) -> None:
    """Who defers needs no other privilege than INSERT on the outbox, with a savepoint either."""
    engine = create_engine(postgresql_url)
    role = f"shop_{postgresql_url.database}"
    with engine.connect() as conn:
        conn.execute(text(f"CREATE ROLE {role}"))
        conn.execute(text(f"GRANT INSERT ON procrastinate_outbox TO {role}"))
        conn.execute(text(f"SET LOCAL ROLE {role}"))
        for connection in (Outbox(conn), extconn.external(Outbox(conn), savepoint=True)):
            assert ship.configure(connection=connection).defer() == -1
        conn.rollback()
    engine.dispose()
