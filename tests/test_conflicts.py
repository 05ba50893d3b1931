"""A taken queueing lock need not cost the caller's transaction, nor be an error at all."""

from __future__ import annotations

import datetime
import enum
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, Watch, wait_until_blocked
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector

Task = Any

WRITTEN = "SELECT lock, queueing_lock, queue_name FROM procrastinate_jobs WHERE id = %s"


def defer(external: External, task: Task, lock: str | None, **options: Any) -> int:
    """Defer one job under *lock*, with options of `extconn.external`."""
    conn = extconn.external(external.conn, **options)
    deferrer = task.configure(connection=conn, queueing_lock=lock)
    return external.call(deferrer, "defer")


def test_a_savepoint_keeps_the_transaction(external: External, task: Task, watch: Watch) -> None:
    """After a taken lock the rows from before and after it commit, with the jobs that were deferred."""
    external.execute("INSERT INTO orders (id) VALUES (1)")
    first = defer(external, task, "one", savepoint=True)
    with pytest.raises(AlreadyEnqueued):
        defer(external, task, "one", savepoint=True)
    external.execute("INSERT INTO orders (id) VALUES (2)")
    second = defer(external, task, "two", savepoint=True)
    external.commit()
    assert watch.orders() == [1, 2]
    assert watch.jobs() == [first, second]


def test_existing_gives_the_job_that_waits(
    dsn: str, external: External, task: Task, watch: Watch
) -> None:
    """The id of the waiting job comes back instead of an error, and the transaction goes on."""
    with psycopg.connect(dsn) as other:
        first = task.configure(connection=other, queueing_lock="one").defer()
    assert defer(external, task, "one", on_conflict="existing") == first
    external.execute("INSERT INTO orders (id) VALUES (1)")
    external.commit()
    assert watch.orders() == [1]
    assert watch.jobs() == [first]


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain psycopg connection."""
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's connection."""
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()


def existing(conn: Any) -> Any:
    """*conn*, with a taken lock being no error."""
    return extconn.external(conn, on_conflict="existing")


def locks(task: Task, conn: Any, *queueing_locks: str | None) -> list[int]:
    """Defer a batch of one job for each lock."""
    manager: JobManager = task.blueprint.job_manager
    job = task.configure().job
    jobs = [job.evolve(queueing_lock=lock) for lock in queueing_locks]
    return [one.id for one in manager.batch_defer_jobs(jobs, connection=conn)]


def test_a_batch_mixes_old_and_new(conn: Any, task: Task) -> None:
    """Ids come in order, of waiting jobs where a lock is taken, and one for a lock that comes twice."""
    taken, also_taken = locks(task, conn, "taken", "also taken")
    conn.commit()
    ids = locks(task, existing(conn), "a", "taken", None, "a", None, "also taken", "taken")
    new_a, _, none, again_a, other_none, _, _ = ids
    assert ids == [new_a, taken, none, new_a, other_none, also_taken, taken]
    assert again_a == new_a
    assert len({new_a, none, other_none, taken, also_taken}) == 5


class Paint(enum.Enum):
    """A plain enum."""

    RED = "r"


class Shade(str, enum.Enum):
    """An enum of texts."""

    DARK = "d"


NO_TEXT = [uuid.UUID(int=7), 0, True, 1.5, Decimal("1.10"), Paint.RED, Shade.DARK]


async def test_locks_that_are_no_text(dsn: str, app: Any, task: Task, watch: Watch) -> None:
    """A lock or a queue that is no str is written as Procrastinate's own connector writes it."""
    connector = procrastinate.PsycopgConnector(conninfo=dsn)
    names = "lock", "queueing_lock", "queue"
    for value in NO_TEXT:
        options: dict[str, Any] = dict.fromkeys(names, value)
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            job_id = await task.configure(connection=conn, **options).defer_async()
            ours = await (await conn.execute(WRITTEN, [job_id])).fetchone()
            await conn.rollback()
        with app.replace_connector(connector) as native:
            async with native.open_async():
                job_id = await native.tasks["process_order"].configure(**options).defer_async()
        job = watch.job(job_id)
        assert job is not None
        assert ours == (job["lock"], job["queueing_lock"], job["queue_name"])
        with psycopg.connect(dsn) as cleaning:
            cleaning.execute("DELETE FROM procrastinate_jobs")


@pytest.mark.parametrize("name", ["lock", "queueing_lock", "queue"])
@pytest.mark.parametrize("value", [b"bytes", {"a": 1}, object()])
def test_locks_that_cannot_be_text(conn: Any, task: Task, name: str, value: object) -> None:
    """Bytes, and what psycopg cannot write, are refused before anything is sent."""
    with pytest.raises(extconn.ExternalConnectionError, match=r"should be a str, got"):
        task.configure(connection=conn, **{name: value}).defer()
    assert extconn.describe(conn).state == "idle"


def test_existing_finds_locks_that_are_no_text(conn: Any, task: Task) -> None:
    """A UUID or a number may be a lock, as with Procrastinate's own connectors."""
    taken = [uuid.uuid4(), 0, uuid.uuid4()]
    first = locks(task, conn, *taken)
    ids = locks(task, existing(conn), None, *taken, 1)
    assert ids[1:4] == first
    assert len(set(ids)) == 5


def test_locks_that_look_like_sql(conn: Any, task: Task) -> None:
    """A lock is compared as it is, with any characters in it."""
    queueing_locks = ["a)b", "it's", 'say "x"', "100%", "%(locks)s", "{a,b}", "\\", "é", ""]
    first = locks(task, conn, *queueing_locks)
    conn.commit()
    assert locks(task, existing(conn), *queueing_locks) == first


def test_a_worker_passes_the_existing_job_over(
    conn: Any, other: Any, task: Task, watch: Watch
) -> None:
    """The job that was given back cannot run before the caller's rows are visible."""
    job_id = task.configure(connection=conn, queueing_lock="one").defer()
    conn.commit()
    conn.execute("INSERT INTO orders (id) VALUES (1)")
    assert task.configure(connection=existing(conn), queueing_lock="one").defer() == job_id
    fetch = "SELECT id FROM procrastinate_fetch_job_v2(NULL, %s)"
    worker = other.execute("SELECT worker_id FROM procrastinate_register_worker_v1()").fetchone()[0]
    assert other.execute(fetch, [worker]).fetchone() == (None,)
    conn.commit()
    assert other.execute(fetch, [worker]).fetchone() == (job_id,)
    assert watch.orders() == [1]


def test_a_lock_that_goes_meanwhile_is_inserted_again(
    dsn: str, conn: Any, other: Any, task: Task
) -> None:
    """Where the job in the way is cancelled while the caller waits for it, the caller gets a new one."""
    first = task.configure(connection=other, queueing_lock="one").defer()
    other.commit()
    other.execute("SELECT procrastinate_cancel_job_v1(%s, false, true)", [first])
    ids: list[int] = []
    thread = threading.Thread(target=lambda: ids.extend(locks(task, existing(conn), "one")))
    thread.start()
    wait_until_blocked(dsn, conn)
    other.commit()
    thread.join()
    assert ids != [first]
    assert conn.execute("SELECT id FROM procrastinate_jobs").fetchall() == [(ids[0],)]


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_an_old_snapshot_cannot_see_it(conn: Any, other: Any, task: Task, level: str) -> None:
    """Where the snapshot is older than the job in the way, the error is raised and the transaction is usable."""
    conn.isolation_level = getattr(psycopg.IsolationLevel, level)
    conn.execute("INSERT INTO orders (id) VALUES (1)")
    task.configure(connection=other, queueing_lock="one").defer()
    other.commit()
    with pytest.raises(AlreadyEnqueued):
        task.configure(connection=existing(conn), queueing_lock="one").defer()
    assert conn.execute("SELECT id FROM orders").fetchall() == [(1,)]


def test_without_a_transaction_the_defer_just_runs(dsn: str, task: Task, watch: Watch) -> None:
    """On an autocommit connection there is no savepoint and none is needed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        options = {"savepoint": True, "outside_transaction": "allow"}
        first = task.configure(connection=extconn.external(conn, **options)).defer()
        options["on_conflict"] = "existing"
        assert locks(task, extconn.external(conn, **options), "one", "one")[0] == first + 1
    assert watch.jobs() == [first, first + 1]


def test_a_pipeline_keeps_its_transaction(conn: Any, task: Task) -> None:
    """In a psycopg pipeline a taken lock costs the statement alone, too."""
    first = task.configure(connection=conn, queueing_lock="one").defer()
    with conn.pipeline():
        conn.execute("INSERT INTO orders (id) VALUES (1)")
        with pytest.raises(AlreadyEnqueued):
            locks(task, extconn.external(conn, savepoint=True), "one")
        assert locks(task, existing(conn), "one", "two")[0] == first
    assert conn.execute("SELECT id FROM orders").fetchall() == [(1,)]


def test_a_lock_taken_between_look_and_insert(
    dsn: str, conn: Any, other: Any, task: Task, watch: Watch
) -> None:
    """Where somebody's open transaction holds the lock, the caller waits for it and gets that job."""
    conn.execute("INSERT INTO orders (id) VALUES (1)")
    first = task.configure(connection=other, queueing_lock="one").defer()
    ids: list[int] = []
    thread = threading.Thread(target=lambda: ids.extend(locks(task, existing(conn), "one", "two")))
    thread.start()
    wait_until_blocked(dsn, conn)
    other.commit()
    thread.join()
    conn.commit()
    assert ids[0] == first
    assert watch.jobs() == [first, ids[1]]
    assert watch.orders() == [1]


def test_a_change_behind_a_failed_one_is_kept(external: External, task: Task, watch: Watch) -> None:
    """Retrying a job whose lock is taken by another costs the statement alone; cancelling one returns its rows."""
    manager = JobManager(ExternalConnector(extconn.external(external.conn, savepoint=True)))
    failed = defer(external, task, "one")
    external.execute(f"UPDATE procrastinate_jobs SET status = 'failed' WHERE id = {failed}")
    waiting = defer(external, task, "one")
    now = datetime.datetime.now(datetime.timezone.utc)
    method = "retry_job_by_id"
    with pytest.raises(ConnectorException):
        external.call(manager, method, job_id=failed, retry_at=now)
    assert external.call(manager, "cancel_job_by_id", job_id=waiting) is True
    external.call(manager, method, job_id=failed, retry_at=now)
    external.commit()
    assert watch.job(failed)["status"] == "todo"  # type: ignore[index]


def test_what_json_dumps_raises_is_the_persons(conn: Any, task: Task) -> None:
    """An error of their own encoder comes out as it is, and leaves the transaction as it was."""
    conn.execute("INSERT INTO orders (id) VALUES (1)")
    with pytest.raises(TypeError, match="not JSON serializable"):
        task.configure(connection=extconn.external(conn, savepoint=True)).defer(value=object())
    assert conn.execute("SELECT id FROM orders").fetchall() == [(1,)]


def test_a_deadlock_is_reported(dsn: str, conn: Any, other: Any, task: Task) -> None:
    """The one that the server chose to fail hears of it, once, with what to do."""
    conn.execute("SET deadlock_timeout = '10ms'")
    other.execute("SET deadlock_timeout = '1h'")
    task.configure(connection=conn, queueing_lock="one").defer()
    task.configure(connection=other, queueing_lock="two").defer()
    thread = threading.Thread(target=lambda: locks(task, other, "one"), daemon=True)
    thread.start()
    wait_until_blocked(dsn, other)
    with pytest.raises(ConnectorException, match=r"40P01.*whole transaction again"):
        task.configure(connection=existing(conn), queueing_lock="two").defer()
    conn.rollback()
    thread.join()


def test_another_unique_violation_is_never_a_taken_lock(conn: Any, task: Task) -> None:
    """A unique index that the application put on the jobs is an error of its own, with all options."""
    conn.execute("CREATE UNIQUE INDEX one_of_each ON procrastinate_jobs (task_name)")
    task.configure(connection=conn).defer()
    conn.commit()
    with pytest.raises(procrastinate.exceptions.UniqueViolation) as caught:
        task.configure(connection=existing(conn)).defer()
    assert caught.value.constraint_name == "one_of_each"


@pytest.mark.parametrize("option", ["on_conflict", "outside_transaction"])
def test_a_wrong_option_is_refused(option: str) -> None:
    """A value that is none of an option's own is refused by name."""
    with pytest.raises(ValueError, match=f"{option} should be one of .*'nonsense'"):
        extconn.external(object(), **{option: "nonsense"})
