"""`relay`: rows become jobs, in each database, or are set aside."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from outbox_rows import JOB, left, write
from procrastinate_extconn_outbox import Outbox, Tables, relay, relay_async
from sqlalchemy import URL, Engine, create_engine, update

import procrastinate_extconn as extconn
from procrastinate_extconn.builtin.sqlalchemy_kinds import url


@pytest.mark.usefixtures("installed_strictly")
def test_a_job_arrives_as_it_was_deferred(
    engine: Engine, app: procrastinate.App, dsn: str, jobs: Callable[..., list[Any]]
) -> None:
    """Every attribute arrives, a relay is nobody who has forgotten a connection, and the outbox is empty."""

    @app.task(name="ship", queue="parcels")
    def ship(**task_kwargs: object) -> None: ...

    at = datetime.datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)
    args = {"text": "%s :x é 😀 ' \" \\ \n", "large": 2**70, "deep": [{"a": None}, 0.1]}
    with engine.begin() as conn:
        task = ship.configure(
            connection=Outbox(conn), lock="l", queueing_lock="%(q)s", priority=-3, schedule_at=at
        )
        task.defer(**args)
        ship.configure(connection=Outbox(conn)).batch_defer({"n": 1}, {"n": 2})
    relay(engine, app, wait=False)
    columns = "task_name, queue_name, lock, queueing_lock, priority, scheduled_at, args"
    assert jobs(columns)[0] == ("ship", "parcels", "l", "%(q)s", -3, at, args)
    assert jobs()[1:] == [{"n": 1}, {"n": 2}]
    assert left(engine) == {}


@pytest.fixture
def installed_strictly() -> Any:
    """Refuse every call that was given no connection."""
    extconn.install(outside_transaction="error", without_connection="error")
    yield
    extconn.uninstall()


def test_taken_lock(
    sqlite: Engine,
    app: procrastinate.App,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose queueing lock is taken, in the queue or by a row before it, waits already: the row is done."""
    caplog.set_level(logging.INFO)
    locked = {**JOB, "queueing_lock": "l"}
    write(sqlite, [locked])
    relay(sqlite, app, wait=False)
    other = {**JOB, "queueing_lock": "m"}
    write(sqlite, [{**locked, "args": {"n": 1}}, other], [{**other, "args": {"n": 2}}], [JOB])
    relay(sqlite, app, wait=False)
    assert jobs("queueing_lock") == ["l", "m", None]
    assert left(sqlite) == {}
    said = [one for one in caplog.records if "waits already" in one.message]
    assert len(said) == 2


def test_a_row_that_fails_takes_no_other_along(
    sqlite: Engine, app: procrastinate.App, jobs: Callable[..., list[Any]]
) -> None:
    """A job is forwarded although an earlier row under its queueing lock is set aside."""
    locked = {**JOB, "queueing_lock": "l"}
    write(sqlite, [{**locked, "priority": 2**40}], [{**locked, "args": {"n": 2}}])
    relay(sqlite, app, wait=False)
    assert jobs() == [{"n": 2}]
    assert len(left(sqlite)) == 1


def test_a_queue_in_autocommit_is_refused(
    sqlite: Engine, dsn: str, jobs: Callable[..., list[Any]]
) -> None:
    """A relay whose app commits each statement by itself ends, and has neither forwarded nor deleted anything."""
    write(sqlite, [JOB])
    queue = create_engine(url(dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with pytest.raises(extconn.ExternalConnectionError, match="AUTOCOMMIT"):
            relay(sqlite, procrastinate.App(connector=extconn.PoolConnector(queue)), wait=False)
    queue.dispose()
    assert jobs() == []
    assert len(left(sqlite)) == 1


@pytest.fixture
def levels(dsn: str) -> Iterator[None]:
    """Note the isolation level in which each job is inserted, in place of its queue."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE FUNCTION level() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "NEW.queue_name = current_setting('transaction_isolation'); RETURN NEW; END $$"
        )
        conn.execute(
            "CREATE TRIGGER level BEFORE INSERT ON procrastinate_jobs "
            "FOR EACH ROW EXECUTE FUNCTION level()"
        )
        yield
        conn.execute("DROP FUNCTION level() CASCADE")


@pytest.mark.usefixtures("levels")
def test_a_queue_of_another_isolation_level(
    sqlite: Engine, dsn: str, jobs: Callable[..., list[Any]]
) -> None:
    """The relay sees what others have committed since it began, on a queue that is REPEATABLE READ by default."""
    queue = create_engine(url(dsn, "psycopg"), isolation_level="REPEATABLE READ")
    write(sqlite, [JOB])
    relay(sqlite, procrastinate.App(connector=extconn.PoolConnector(queue)), wait=False)
    queue.dispose()
    assert jobs("queue_name") == ["read committed"]


def test_lock_that_is_taken_meanwhile(
    sqlite: Engine,
    app: procrastinate.App,
    dsn: str,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where another transaction takes the lock after the relay has looked, the job is dropped once that commits."""
    caplog.set_level(logging.INFO)
    write(sqlite, [{**JOB, "queueing_lock": "l"}], [JOB])
    taken = "INSERT INTO procrastinate_jobs (task_name, queue_name, queueing_lock) VALUES ('t', 'q', 'l')"

    async def race() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(taken)
            task = asyncio.create_task(relay_async(sqlite, app, wait=False))
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                while not await (await other.execute(waits)).fetchone():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await conn.commit()
        await task

    asyncio.run(race())
    assert jobs("queueing_lock") == ["l", None]
    assert "waits already" in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("secret", "not a JSON array"),
        ("[", "not a JSON array"),
        ('{"task_name": "secret"}', "not a JSON array"),
        ('["secret"]', "not a JSON object"),
        ("[{}] []", "no task_name"),
        ([{**JOB, "lock_mode": "secret"}], r"does not know \(lock_mode\)"),
        ([{**JOB, "SECRET": "secret"}], r"does not know \(\)"),
        ([{**JOB, "priority": "secret"}], r"invalid input syntax .* \(SQLSTATE 22P02\)"),
        ([{**JOB, "queue_name": None}], "null value in column"),
        ([JOB, {**JOB, "args": {"a": "\0 secret"}}], "22P05"),
    ],
)
def test_set_aside(
    sqlite: Engine,
    app: procrastinate.App,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
    row: object,
    reason: str,
) -> None:
    """A row that cannot be forwarded is set aside with a reason that quotes nothing of it, and is in nobody's way."""
    ids = write(sqlite, [{**JOB, "args": {"n": 1}}], row, [{**JOB, "args": {"n": 2}}])
    relay(sqlite, app, wait=False)
    assert jobs() == [{"n": 1}, {"n": 2}]
    [(row_id, said)] = left(sqlite).items()
    assert row_id == ids[1]
    assert said and re.search(reason, said)
    assert said in caplog.text
    assert "secret" not in caplog.text.lower() + said.lower()


def test_a_row_that_is_mended(
    sqlite: Engine, app: procrastinate.App, jobs: Callable[..., list[Any]]
) -> None:
    """A row that was set aside is forwarded once it is mended and waits again."""
    write(sqlite, [{**JOB, "priority": "high"}])
    relay(sqlite, app, wait=False)
    with sqlite.begin() as conn:
        mended = {"jobs": json.dumps([JOB]), "set_aside": None}
        conn.execute(update(Tables().outbox).values(mended))
    relay(sqlite, app, wait=False)
    assert len(jobs()) == 1
    assert left(sqlite) == {}


def test_many_outboxes(
    sqlite: Engine,
    mariadb_url: URL,
    postgresql_url: URL,
    app: procrastinate.App,
    dsn: str,
    jobs: Callable[..., list[Any]],
) -> None:
    """Relays of several outboxes work on one queue at once, and leave nothing in its inbox."""
    others = [create_engine(mariadb_url), create_engine(postgresql_url)]
    for engine in (sqlite, *others):
        write(engine, *[[JOB]] * 450)

    async def all_of_them() -> None:
        async with app.open_async():
            await asyncio.gather(
                *(relay_async(engine, app, wait=False) for engine in (sqlite, *others))
            )

    asyncio.run(all_of_them())
    assert len(jobs()) == 3 * 450
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_outbox_inbox").fetchone() == (0,)
    for engine in others:
        engine.dispose()
