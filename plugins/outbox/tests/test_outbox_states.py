"""Whether a job would commit by itself, on the drivers of SQLite, MariaDB and MySQL, bare and under SQLAlchemy."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import pytest
from procrastinate_extconn_outbox import Outbox
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import procrastinate_extconn as extconn

# MariaDB's connector, when it is compiled at its first import.
pytestmark = pytest.mark.filterwarnings(r"ignore:(\S+ )?(is an )?invalid escape")

DRIVERS = {
    "sqlite": "sqlite3",
    "mysql+pymysql": "pymysql",
    "mysql+mysqldb": "MySQLdb",
    "mysql+mariadbconnector": "mariadb",
    "mariadb+mariadbconnector": "mariadb",
    "sqlite+aiosqlite": "aiosqlite",
    "mysql+asyncmy": "asyncmy",
}
"""The drivers under SQLAlchemy, and the module of each."""
ASYNC = ("sqlite+aiosqlite", "mysql+asyncmy")
COMPILED = ("MySQLdb", "mariadb")
"""What a machine may be unable to install: they need the headers of libmariadb."""


@pytest.fixture(params=[name for name in DRIVERS if name not in ASYNC])
def url(request: pytest.FixtureRequest) -> URL:
    """Address a database on each synchronous driver."""
    return address(request, request.param)


def address(request: pytest.FixtureRequest, name: str) -> URL:
    """Address a database on a driver that is installed."""
    if find_spec(DRIVERS[name]) is None:
        if "EXTCONN_TEST_ALL_DRIVERS" in os.environ and DRIVERS[name] not in COMPILED:
            pytest.fail(f"not installed: {DRIVERS[name]}")
        pytest.skip(f"not installed: {DRIVERS[name]}")
    fixture = "sqlite_url" if name.startswith("sqlite") else "mariadb_url"
    url: URL = request.getfixturevalue(fixture)
    return url.set(drivername=name)


def in_autocommit(url: URL) -> list[dict[str, Any]]:
    """List the options of engines whose connections commit each statement by themselves."""
    options: list[dict[str, Any]] = [{"isolation_level": "AUTOCOMMIT"}]
    if not url.drivername.startswith("sqlite"):
        return [*options, {"connect_args": {"autocommit": True}}]
    options.append({"connect_args": {"isolation_level": None}})
    if sys.version_info >= (3, 12) and url.drivername == "sqlite":
        options.append({"connect_args": {"autocommit": True}})
    return options


def rows(engine: Engine) -> int:
    """Count the rows that are committed."""
    with engine.connect() as conn:
        return int(conn.execute(text("SELECT count(*) FROM procrastinate_outbox")).scalar_one())


@pytest.fixture(params=[lambda engine: engine.connect(), Session], ids=["connection", "session"])
def hold(request: pytest.FixtureRequest) -> Any:
    """Take a connection or a session."""
    return request.param


def test_transaction(url: URL, hold: Any, ship: Any) -> None:
    """A connection that begins by itself is idle, then in a transaction, and a rollback takes the row with it."""
    engine = create_engine(url)
    with hold(engine) as conn:
        outbox = Outbox(conn)
        assert extconn.describe(outbox).state == "idle"
        ship.configure(connection=outbox).defer()
        assert extconn.describe(outbox).state == "in_transaction"
        conn.rollback()
        conn.execute(text("SELECT 1"))
        assert extconn.describe(outbox).state == "in_transaction"
        ship.configure(connection=outbox).defer()
        conn.rollback()
    assert rows(engine) == 0
    engine.dispose()


def test_autocommit(url: URL, hold: Any, ship: Any) -> None:
    """A connection whose driver commits each statement is refused, at its first statement and later."""
    for options in in_autocommit(url):
        engine = create_engine(url, **options)
        with hold(engine) as conn:
            for statement in ("", "SELECT 1"):
                if statement:
                    conn.execute(text(statement))
                with pytest.raises(extconn.OutsideTransaction, match="commits each statement"):
                    ship.configure(connection=Outbox(conn)).defer()
                assert extconn.describe(Outbox(conn)).state == "autocommit"
        assert rows(engine) == 0
        engine.dispose()


@pytest.mark.parametrize("name", ASYNC)
async def test_async(request: pytest.FixtureRequest, name: str, ship: Any) -> None:
    """The same holds for the asynchronous drivers, connection and session."""
    url = address(request, name)
    for options in ({}, *in_autocommit(url)):
        engine = create_async_engine(url, **options)
        async with engine.connect() as conn, AsyncSession(engine) as session:
            for held in (conn, session):
                call = ship.configure(connection=Outbox(held))
                if options:
                    with pytest.raises(extconn.OutsideTransaction):
                        await call.defer_async()
                else:
                    assert await call.defer_async() == -1
                    assert await call.batch_defer_async({"n": 1}, {"n": 2}) == [-1, -1]
                    with pytest.raises(extconn.SyncAsyncMismatch):
                        call.defer()
                await held.rollback()
            found = await conn.execute(text("SELECT count(*) FROM procrastinate_outbox"))
            assert found.scalar_one() == 0
        await engine.dispose()


def test_begin_of_sqlalchemys_recipe(sqlite_url: URL, hold: Any, ship: Any) -> None:
    """An engine that sends BEGIN in a listener, as SQLAlchemy's pages have it for SQLite, is in a transaction."""
    engine = create_engine(sqlite_url, connect_args={"isolation_level": None})

    @event.listens_for(engine, "begin")
    def begin(conn: Any) -> None:
        conn.exec_driver_sql("BEGIN")

    with hold(engine) as conn:
        assert extconn.describe(Outbox(conn)).state == "idle"
        ship.configure(connection=Outbox(conn)).defer()
        assert extconn.describe(Outbox(conn)).state == "in_transaction"
        conn.rollback()
    assert rows(engine) == 0
    engine.dispose()


@pytest.fixture
def raw(url: URL) -> Iterator[Any]:
    """Open a connection of the driver itself."""
    engine = create_engine(url)
    held = engine.raw_connection()
    conn = held.driver_connection
    held.detach()  # closed by the test, not by a pool
    yield conn
    engine.dispose()


def test_bare_connection(raw: Any, ship: Any) -> None:
    """The driver's own connection is taken too, in its transaction, and refused without an outbox around it."""
    with pytest.raises(extconn.UnsupportedConnection, match=r"pass Outbox\(connection\)"):
        ship.configure(connection=raw).defer()
    ship.configure(connection=Outbox(raw)).defer(text="%s :x é")
    raw.rollback()
    ship.configure(connection=Outbox(raw)).defer()
    assert extconn.describe(Outbox(raw)).state in ("idle", "in_transaction")
    raw.commit()
    with closing(raw.cursor()) as cursor:
        cursor.execute("SELECT count(*) FROM procrastinate_outbox")
        assert cursor.fetchone() == (1,)
    raw.close()
    assert extconn.describe(Outbox(raw)).state == "closed"
    with pytest.raises(extconn.UnusableConnection):
        ship.configure(connection=Outbox(raw)).defer()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has `autocommit` since Python 3.12")
@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"autocommit": True}, "autocommit"),
        ({"autocommit": False}, "in_transaction"),
        ({"isolation_level": None}, "autocommit"),
        ({}, "idle"),
    ],
)
def test_sqlite3_since_python_312(sqlite_url: URL, options: dict[str, Any], state: str) -> None:
    """Of the attribute's three values, only True means that each statement commits by itself."""
    with closing(sqlite3.connect(str(sqlite_url.database), **options)) as conn:
        assert extconn.describe(Outbox(conn)).state == state
