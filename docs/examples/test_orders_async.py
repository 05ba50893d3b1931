"""The same on an asynchronous connection, with pytest-asyncio."""

from collections.abc import AsyncIterator

import asyncpg
import procrastinate
import pytest
import pytest_asyncio

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import assert_deferred, rolled_back

extconn.install()

app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.task(name="process_order")
async def process_order(order_id: int) -> None: ...


async def place_order(conn: asyncpg.Connection, order_id: int) -> None:
    await conn.execute("INSERT INTO orders (id) VALUES ($1)", order_id)
    await process_order.configure(connection=conn).defer_async(order_id=order_id)


@pytest_asyncio.fixture
async def conn() -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect()
    async with conn.transaction(), rolled_back(conn):
        yield conn
    await conn.close()


@pytest.mark.asyncio
async def test_an_order_is_processed(conn: asyncpg.Connection) -> None:
    await place_order(conn, 42)
    await assert_deferred(conn, process_order, order_id=42)
