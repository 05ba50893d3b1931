"""What only psqlpy has: transaction objects, types that it cannot read, and errors that are nothing but text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psqlpy
import psqlpy.exceptions
import pytest
import wrapt
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, UniqueViolation
from procrastinate.jobs import Status
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector, server_errors
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.testing.contract.database import Database

SECRET = "correct horse battery staple"


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[psqlpy.Connection]:
    """Connect."""
    connection = await psqlpy.connect(dsn)
    yield connection
    connection.close()


async def test_numbers_in_json(conn: psqlpy.Connection, ship: Any) -> None:
    """Numbers that 64 bits cannot hold come back equal: JSON is read as text."""
    async with conn.transaction() as transaction:
        await ship.configure(connection=transaction).defer_async(big=2**70 + 1, small=0.1)
        [job] = await JobManager(ExternalConnector(transaction)).list_jobs_async()
    assert job.task_kwargs == {"big": 2**70 + 1, "small": 0.1}


async def test_void_and_regclass(conn: psqlpy.Connection, database: Database, ship: Any) -> None:
    """Functions that return what psqlpy cannot read are called all the same."""
    async with conn.transaction() as transaction:
        manager = JobManager(ExternalConnector(transaction))
        assert await manager.check_connection_async()
        ids = [await ship.configure(connection=transaction).defer_async() for _ in range(2)]
        await manager.finish_job_by_id_async(ids[0], Status.FAILED, delete_job=False)
        await manager.finish_job_by_id_async(ids[1], Status.SUCCEEDED, delete_job=True)
    assert [(job["status"]) for job in database.jobs()] == ["failed"]


async def test_states_of_a_connection(dsn: str) -> None:
    """A connection knows of the transactions that it began; what else goes on, nobody can tell."""
    conn = await psqlpy.connect(dsn)
    states = [extconn.describe(conn).state]
    async with conn.transaction():
        states.append(extconn.describe(conn).state)
    states.append(extconn.describe(conn).state)
    conn.close()
    states.append(extconn.describe(conn).state)
    assert states == ["unknown", "in_transaction", "unknown", "closed"]


async def test_states_of_a_transaction(conn: psqlpy.Connection) -> None:
    """A transaction is closed once it has ended."""
    async with conn.transaction() as transaction:
        assert extconn.describe(transaction)[:4] == ("psqlpy", "psqlpy", True, "in_transaction")
    assert extconn.describe(transaction).state == "closed"


async def test_state_while_a_statement_runs(conn: psqlpy.Connection, database: Database) -> None:
    """The state is told without waiting for the statement that is under way."""
    database.value("SELECT pg_advisory_lock(1)")
    transaction = conn.transaction()
    await transaction.begin()
    running = asyncio.ensure_future(transaction.fetch("SELECT 1 FROM pg_advisory_xact_lock(1)"))
    await asyncio.sleep(0)  # it begins, and waits for the lock
    assert extconn.describe(conn).state == "in_transaction"
    assert extconn.describe(transaction).state == "in_transaction"
    assert not running.done()
    database.value("SELECT pg_advisory_unlock(1)")
    await running


async def test_begin_as_a_statement(
    conn: psqlpy.Connection, database: Database, ship: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the person sent a BEGIN, a taken lock leaves that transaction usable with a savepoint."""
    monkeypatch.setattr(plugins(), "_warned", set())  # it is warned of once, and was perhaps
    with pytest.warns(UserWarning, match="does not tell"):
        waiting = await ship.configure(
            connection=extconn.external(conn, outside_transaction="warn"), queueing_lock="taken"
        ).defer_async()
    await conn.execute("BEGIN")
    kept = await ship.configure(connection=conn).defer_async()
    external = extconn.external(conn, savepoint=True)
    with pytest.raises(AlreadyEnqueued):
        await ship.configure(connection=external, queueing_lock="taken").defer_async()
    external = extconn.external(conn, on_conflict="existing")
    again = await ship.configure(connection=external, queueing_lock="taken").defer_async()
    await conn.execute("COMMIT")
    assert again == waiting
    assert database.sees(kept)


@pytest.mark.parametrize("wrapped", ["connection", "transaction"])
async def test_proxies(
    conn: psqlpy.Connection, database: Database, ship: Any, wrapped: str
) -> None:
    """A `wrapt` proxy of either is taken, though both classes report the module builtins."""
    async with conn.transaction() as transaction:
        proxy = wrapt.ObjectProxy(transaction if wrapped == "transaction" else conn)
        job_id = await ship.configure(connection=proxy).defer_async()
        assert not database.sees(job_id)
    assert database.sees(job_id)


async def test_wrong_objects(dsn: str, conn: psqlpy.Connection, ship: Any) -> None:
    """What is no connection is refused, with the line that gets one."""
    pool = psqlpy.ConnectionPool(dsn)
    with pytest.raises(extconn.UnsupportedConnection, match=r"async with pool\.acquire\(\)"):
        await ship.configure(connection=pool).defer_async()
    with pytest.raises(extconn.UnusableConnection, match="closed"):
        await ship.configure(connection=pool.acquire()).defer_async()
    with pytest.raises(extconn.UnsupportedConnection, match="connection=conn"):
        await ship.configure(connection=conn.cursor("SELECT 1")).defer_async()
    pool.close()


async def test_pool_lends_a_transaction(dsn: str, database: Database, ship: Any) -> None:
    """What the pool lends commits on a clean exit, and rolls back on another."""

    async def defer(*, then_divide_by: int) -> None:
        async with plugins().connect(pool) as lent:
            ids.append(await ship.configure(connection=lent).defer_async())
            assert not database.sees(ids[-1])
            1 / then_divide_by

    ids: list[int] = []
    pool = psqlpy.ConnectionPool(dsn)
    await defer(then_divide_by=1)
    with pytest.raises(ZeroDivisionError):
        await defer(then_divide_by=0)
    pool.close()
    assert [database.sees(job_id) for job_id in ids] == [True, False]


async def test_failed_transaction(conn: psqlpy.Connection, ship: Any) -> None:
    """What the server says of a failed transaction is explained, although it comes as text."""
    transaction = conn.transaction()
    await transaction.begin()
    with pytest.raises(psqlpy.exceptions.Error):
        await transaction.execute("SELECT 1 / 0")
    with pytest.raises(extconn.UnusableConnection, match=r"transaction is aborted.*roll it back"):
        await ship.configure(connection=transaction).defer_async()
    await transaction.rollback()


async def test_schema_elsewhere(conn: psqlpy.Connection, ship: Any) -> None:
    """A search_path without Procrastinate's schema is named as what to check."""
    async with conn.transaction() as transaction:
        await transaction.execute("SET LOCAL search_path = pg_catalog")
        external = extconn.external(transaction, savepoint=True)
        with pytest.raises(ConnectorException, match="SHOW search_path"):
            await ship.configure(connection=external).defer_async()


async def test_error_without_values(conn: psqlpy.Connection, ship: Any) -> None:
    """The server's primary message is in the error, the job's arguments are not."""
    transaction = conn.transaction()
    await transaction.begin()
    with pytest.raises(ConnectorException, match="Unicode escape sequence") as caught:
        await ship.configure(connection=transaction).defer_async(secret=SECRET, text="\0")
    await transaction.rollback()
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value.__cause__, psqlpy.exceptions.Error)


async def test_quoted_value(conn: psqlpy.Connection) -> None:
    """A value that the server quotes in its message is not in our error."""
    async with conn.transaction() as transaction:
        connector = ExternalConnector(extconn.external(transaction, savepoint=True))
        with pytest.raises(ConnectorException, match='type bigint: "…"'):
            await connector.execute_query_all_async(
                "SELECT CAST(CAST(%(text)s AS text) AS bigint)", text=SECRET
            )


def test_taken_lock_on_a_server_that_speaks_german() -> None:
    """The constraint is found between any quotation marks, and the error names the lock."""
    error = psqlpy.exceptions.Error(
        "Cannot execute query, error - db error: FEHLER: doppelter Schlüsselwert verletzt Unique-Constraint "
        "»procrastinate_jobs_queueing_lock_idx_v1«\nDETAIL: Schlüssel »(queueing_lock)=(b)« existiert bereits."
    )
    result = server_errors.translate(error, None, driver="psqlpy", locks=["a", "b"])
    assert isinstance(result, UniqueViolation)
    assert result.queueing_lock == "b"
