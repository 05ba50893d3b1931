"""The seam to Procrastinate: names are read, not positions, and what cannot be read is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import Watch, run_python
from procrastinate.connector import BaseConnector

import procrastinate_extconn as extconn

SUPPORT = str(Path(__file__).with_name("support"))
BEFORE = """
import asyncio, inspect, sys
sys.path.insert(0, SUPPORT)
import other_procrastinate
other_procrastinate.CHANGE()
import procrastinate, psycopg, procrastinate_extconn as extconn
from procrastinate_extconn.cli.doctor.installation import interface

extconn.install()
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DSN))
"""


def run(change: str, program: str, dsn: str) -> list[str]:
    """What *program* prints, with a Procrastinate that was changed before the layer was imported."""
    pytest.importorskip("click")  # of the doctor, whose findings are shown
    before = BEFORE.replace("CHANGE", change)
    return run_python(program, before, SUPPORT=SUPPORT, DSN=dsn).splitlines()


def test_a_job_with_one_more_field(dsn: str, watch: Watch) -> None:
    """A job's fields are sent under their names, in any order, a new one among them."""
    program = """
        with psycopg.connect(DSN) as conn:
            conn.execute(other_procrastinate.SCHEMA)
            deferrer = app.configure_task(
                "one", connection=conn, lock="l", queueing_lock="q", priority=7, queue="letters",
                schedule_at=procrastinate.utils.parse_datetime("2030-01-02")
            )
            print(*deferrer.batch_defer({"n": 1}))
            conn.commit()
        print(list(interface())[1].text)
    """
    job_id, found = run("add_field", program, dsn)
    job = watch.job(int(job_id)) or {}
    assert found == "its jobs have lock_mode, which is new here: it is sent under that name"
    assert job["scheduled_at"].isoformat().startswith("2030-01-0")
    expected = {
        "task_name": "one",
        "lock": "l",
        "lock_mode": "shared",
        "queueing_lock": "q",
        "priority": 7,
        "queue_name": "letters",
        "args": {"n": 1},
    }
    assert {name: job[name] for name in expected} == expected


def test_a_job_with_a_field_that_the_database_has_not(dsn: str, watch: Watch) -> None:
    """Where the schema is older than the job's new field, that is an error, and not a job without the field."""
    program = """
        procrastinate.sql.queries["defer_jobs"] = procrastinate.sql.queries["defer_jobs"].replace("_v9", "_v1")
        with psycopg.connect(DSN) as conn:
            try:
                app.configure_task("one", connection=conn).defer()
            except procrastinate.exceptions.ConnectorException as exc:
                print("lock_mode" in str(exc))
            conn.commit()
    """
    assert run("add_field", program, dsn) == ["True"]
    assert watch.jobs() == []


def test_a_job_without_a_field_that_is_known(dsn: str, watch: Watch) -> None:
    """A job that cannot be read is refused before anything is sent, and `doctor` says so."""
    program = """
        with psycopg.connect(DSN) as conn:
            try:
                app.configure_task("one", connection=conn).defer()
            except extconn.ExternalConnectionError as exc:
                print(conn.info.transaction_status.name, exc)
        print(*(finding.text for finding in interface() if finding.status == "problem"))
    """
    error, found = run("rename_fields", program, dsn)
    assert error.startswith("IDLE this version of Procrastinate has jobs without lock, queueing_lo")
    assert found in error


def test_connection_folded_into_the_queries(dsn: str, watch: Watch) -> None:
    """Defer, batch, cancel and status run on the connection, sync and async, passed and in a block."""
    program = """
        async def main():
            async with await psycopg.AsyncConnection.connect(DSN) as conn:
                one = await app.configure_task("async", connection=conn).defer_async()
                with extconn.using(conn):
                    two = await app.configure_task("async").defer_async()
                await conn.rollback()
                three = await app.configure_task("async", connection=conn).defer_async()
                await conn.commit()
                return one, two, three

        with psycopg.connect(DSN) as conn:
            gone = app.configure_task("sync", connection=conn).defer()
            conn.rollback()
            kept, cancelled = app.configure_task("sync", connection=conn).batch_defer({}, {})
            with extconn.using(conn):
                block = app.configure_task("sync").defer()
                status = app.job_manager.get_job_status
                assert app.job_manager.cancel_job_by_id(cancelled)
                assert status(cancelled).value == "cancelled"
            if "connection" in inspect.signature(status).parameters:  # since 3.10
                assert app.job_manager.cancel_job_by_id(cancelled, connection=conn) is False
                assert status(cancelled, connection=conn).value == "cancelled"
            conn.commit()
        print(gone, kept, cancelled, block, *asyncio.run(main()))
        print(next(interface()).text)
        extconn.install(without_connection="error")
        for call in app.configure_task("sync").defer, lambda: app.job_manager.cancel_job_by_id(kept):
            try:
                call()
            except extconn.OutsideTransaction:
                print("refused")
    """
    ids, found, *refused = run("fold", program, dsn)
    _, kept, cancelled, block, *of_async = map(int, ids.split())
    assert watch.jobs() == [kept, cancelled, block, of_async[-1]]
    assert (watch.job(kept) or {})["status"] == "todo"
    assert "install() patches the connection= keyword of its connectors" in found
    assert refused == ["refused", "refused"]


def test_folded_connectors_of_ours(dsn: str, watch: Watch) -> None:
    """`StrictInMemoryConnector` still checks, and `PoolConnector` still runs on the connection."""
    program = """
        import psycopg_pool
        from procrastinate_extconn.testing import StrictInMemoryConnector

        memory = StrictInMemoryConnector()
        unit = procrastinate.App(connector=memory)
        pool = psycopg_pool.ConnectionPool(DSN, min_size=1, open=False)
        pooled = procrastinate.App(connector=extconn.PoolConnector(pool))
        with psycopg.connect(DSN) as conn, pool:
            for bad in pool, object():
                try:
                    unit.configure_task("memory", connection=bad).defer()
                except extconn.UnsupportedConnection:
                    print("refused", len(memory.jobs))
            print(unit.configure_task("memory", connection=conn).defer(), len(memory.jobs))
            gone = pooled.configure_task("pool", connection=conn).defer()
            conn.rollback()
            print(gone, pooled.configure_task("pool").defer())
    """
    *refused, in_memory, ids = run("fold", program, dsn)
    assert refused == ["refused 0", "refused 0"]
    assert in_memory == "1 1"
    assert watch.jobs() == [int(ids.split()[1])]


def test_a_folded_connector_of_a_persons(dsn: str) -> None:
    """An override that cannot take the connection is refused before it is called; others work as they did."""
    program = """
        from procrastinate.connector import BaseConnector
        calls = []

        class Deaf(BaseConnector):
            def get_sync_connector(self):
                return self

            def execute_query_all(self, query, **arguments):
                calls.append("Deaf")
                return [{"id": 1}]

            async def execute_query_all_async(self, query, **arguments):
                calls.append("Deaf")
                return [{"id": 1}]

        class Derived(procrastinate.SyncPsycopgConnector):
            def execute_query_all(self, query, **arguments):
                calls.append("Derived")
                return [{"id": 1}]

        class Passing(procrastinate.SyncPsycopgConnector):
            def execute_query_all(self, query, **arguments):
                calls.append("Passing")
                return super().execute_query_all(query, **arguments)

        class Nested(procrastinate.SyncPsycopgConnector):
            def execute_query_all(self, query, **arguments):
                def attempt(self):
                    calls.append("Nested")
                    return getattr(super(), "execute_query_all")(query, **arguments)
                return attempt(self)

        class Composed(Deaf):
            inner = procrastinate.SyncPsycopgConnector()

            def execute_query_all(self, query, **arguments):
                calls.append("Composed")
                return self.inner.execute_query_all(query, **arguments)

        class Taking(Deaf):
            def execute_query_all(self, query, *, connection=None, **arguments):
                calls.append(f"Taking {connection is not None}")
                return [{"id": 1}]

        def attempt(connector, block=False, end=""):
            other = procrastinate.App(connector=connector)
            with psycopg.connect(DSN) as conn:
                try:
                    if block:
                        with extconn.using(conn):
                            job = other.configure_task("t").defer()
                    elif end:
                        job = asyncio.run(other.configure_task("t", connection=conn).defer_async())
                    else:
                        job = other.configure_task("t", connection=conn).defer()
                    print(bool(job), conn.info.transaction_status.name, *calls)
                except extconn.ExternalConnectionError as exc:
                    print(str(exc).partition(",")[0], *calls)
                conn.rollback()
            calls.clear()

        attempt(Deaf())
        attempt(Deaf(), block=True)
        attempt(Deaf(), end="_async")
        attempt(Derived())
        attempt(Passing())
        attempt(Passing(), block=True)
        attempt(Nested(), block=True)
        attempt(Composed())
        attempt(Taking())
        attempt(Taking(), block=True)
    """
    assert run("fold", program, dsn) == [
        "Deaf.execute_query_all takes no connection",
        "Deaf.execute_query_all runs the query by itself",
        "Deaf.execute_query_all_async takes no connection",
        "Derived.execute_query_all takes no connection",
        "True INTRANS Passing",
        "True INTRANS Passing",
        "True INTRANS Nested",
        "True INTRANS Composed",
        "True IDLE Taking True",
        "Taking.execute_query_all runs the query by itself",
    ]


# -- this Procrastinate ------------------------------------------------------------------------------------------------


class Own(BaseConnector):
    """A person's own connector, which runs its queries by itself."""

    def __init__(self) -> None:
        self.asked = 0

    def get_sync_connector(self) -> BaseConnector:
        return self

    def execute_query_all(self, query: Any, **arguments: Any) -> Any:
        self.asked += 1
        return [{"id": 1}]

    async def execute_query_all_async(self, query: Any, **arguments: Any) -> Any:
        self.asked += 1
        return [{"id": 1}]


@pytest.fixture
def conn(installed: None, dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


async def test_a_connector_that_would_ignore_a_block_is_refused(conn: Any) -> None:
    """In a `using` block, a person's connector that runs its queries by itself is refused, and asked nothing."""
    connector = Own()
    deferrer = procrastinate.App(connector=connector).configure_task("process_order")
    refused = pytest.raises(extconn.ExternalConnectionError, match=r"Own\.execute_query_all")
    with extconn.using(conn):
        with refused:
            deferrer.defer()
        with refused:
            await deferrer.defer_async()
        assert connector.asked == 0
        with extconn.standalone():
            assert deferrer.defer() == 1
    assert await deferrer.defer_async() == 1


def test_it_takes_a_connection_that_is_passed(conn: Any, watch: Watch) -> None:
    """A connection that is passed is used by a person's connector as well."""
    app = procrastinate.App(connector=Own())
    job_id = app.configure_task("process_order", connection=conn).defer()
    conn.commit()
    assert watch.jobs() == [job_id]
