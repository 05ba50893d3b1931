"""Every message on the page "When something goes wrong" is one that really comes, and the other way round."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import ConnectorException
from psycopg_pool import ConnectionPool

import procrastinate_extconn as extconn
from procrastinate_extconn.exceptions import OutsideTransactionWarning

PAGE = Path(__file__).parents[1] / "docs/discussions/when-something-goes-wrong.md"
Task = Any


def nothing_of_ours(dsn: str, task: Task) -> None:
    """Defer on an object that no plugin knows."""
    task.configure(connection=object()).defer()


def a_dsn(dsn: str, task: Task) -> None:
    """Defer on a connection string."""
    task.configure(connection=dsn).defer()


def a_pool(dsn: str, task: Task) -> None:
    """Defer on a pool."""
    task.configure(connection=ConnectionPool(dsn, open=False)).defer()


def a_cursor(dsn: str, task: Task) -> None:
    """Defer on a cursor."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn.cursor()).defer()


def an_engine(dsn: str, task: Task) -> None:
    """Defer on a SQLAlchemy engine."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    task.configure(connection=sqlalchemy.create_engine("postgresql+psycopg://")).defer()


def another_database(dsn: str, task: Task) -> None:
    """Defer on a connection to SQLite."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with sqlalchemy.create_engine("sqlite://").connect() as conn:
        task.configure(connection=conn).defer()


def the_wrong_colour(dsn: str, task: Task) -> None:
    """Call `defer()` on an asynchronous connection."""

    async def defer() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            task.configure(connection=conn).defer()

    asyncio.run(defer())


def the_other_wrong_colour(dsn: str, task: Task) -> None:
    """Call `defer_async()` on a synchronous connection."""
    with psycopg.connect(dsn) as conn:
        asyncio.run(task.configure(connection=conn).defer_async())


def outside_a_transaction(dsn: str, task: Task) -> None:
    """Defer on an autocommit connection where that is an error."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        task.configure(connection=extconn.external(conn, outside_transaction="error")).defer()


def closed(dsn: str, task: Task) -> None:
    """Defer on a closed connection."""
    with psycopg.connect(dsn) as conn:
        pass
    task.configure(connection=conn).defer()


def failed(dsn: str, task: Task) -> None:
    """Defer in a failed transaction."""
    with psycopg.connect(dsn) as conn:
        with contextlib.suppress(psycopg.Error):
            conn.execute("SELECT 1/0")
        task.configure(connection=conn).defer()


def killed(dsn: str, task: Task) -> None:
    """Defer on a connection whose server process has gone."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        with psycopg.connect(dsn) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])
        task.configure(connection=conn).defer()


def read_only(dsn: str, task: Task) -> None:
    """Defer in a read-only transaction."""
    with psycopg.connect(dsn) as conn:
        conn.read_only = True
        task.configure(connection=conn).defer()


def no_schema(dsn: str, task: Task) -> None:
    """Defer where the search_path does not lead to Procrastinate's schema."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SET search_path = pg_temp")
        task.configure(connection=conn).defer()


def another_schema(dsn: str, task: Task) -> None:
    """Defer where Procrastinate's schema is of another version."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP FUNCTION procrastinate_defer_jobs_v1")
        task.configure(connection=conn).defer()


def not_json(dsn: str, task: Task) -> None:
    """Defer an argument that JSON does not know."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn).defer(amount=float("nan"))


def not_storable(dsn: str, task: Task) -> None:
    """Defer a text that PostgreSQL does not store."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn).defer(name="\0")


def in_a_pipeline(dsn: str, task: Task) -> None:
    """Ask for a savepoint in a pipeline."""
    with psycopg.connect(dsn) as conn, conn.pipeline():
        task.configure(connection=extconn.external(conn, savepoint=True)).defer()


CASES: list[Callable[[str, Task], None]] = [
    nothing_of_ours,
    a_dsn,
    a_pool,
    a_cursor,
    an_engine,
    another_database,
    the_wrong_colour,
    the_other_wrong_colour,
    outside_a_transaction,
    closed,
    failed,
    killed,
    read_only,
    no_schema,
    another_schema,
    not_json,
    not_storable,
    in_a_pipeline,
]


def shown() -> list[str]:
    """The messages on the page, each in one line."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [" ".join(block.split()) for block in blocks]


def as_shown(message: str) -> str:
    """*message* without what differs from one installation to the next."""
    message = re.sub(r"asked: [^)]*\)", "asked: sqlalchemy, psycopg)", message)
    return re.sub(r"database '[^']*', as '[^']*'", "database 'shop', as 'web'", message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_message_is_on_the_page(
    case: Callable[[str, Task], None], dsn: str, task: Task
) -> None:
    """What is refused is refused with the words that the page explains."""
    with pytest.raises(ConnectorException) as caught:
        case(dsn, task)
    assert f"{type(caught.value).__name__}: {as_shown(str(caught.value))}" in shown()


def test_the_warning_is_on_the_page(dsn: str, task: Task) -> None:
    """So is the warning."""
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        pytest.warns(OutsideTransactionWarning) as caught,
    ):
        task.configure(connection=conn).defer()
    assert f"OutsideTransactionWarning: {caught[0].message}" in shown()


def test_a_taken_lock_is_on_the_page(dsn: str, task: Task) -> None:
    """So is Procrastinate's own word for a taken lock."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn, queueing_lock="reindex").defer()
        with pytest.raises(procrastinate.exceptions.AlreadyEnqueued) as caught:
            task.configure(connection=conn, queueing_lock="reindex").defer()
    assert f"AlreadyEnqueued: {caught.value}" in shown()


def test_the_page_shows_nothing_else() -> None:
    """There is no message on the page that no test produces."""
    assert len(shown()) == len(CASES) + 2
