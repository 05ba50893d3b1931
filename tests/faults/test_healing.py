"""After a restart of the server, engines and pools heal as they do by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import ConnectorException
from procrastinate.schema import SchemaManager

import procrastinate_extconn as extconn
from procrastinate_extconn.builtin.sqlalchemy_kinds import url
from procrastinate_extconn.temporary_server import TemporaryServer

SIZE = 3
"""Connections in each pool."""

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryServer]:
    """A server that may be restarted."""
    with TemporaryServer() as server:
        with psycopg.connect(server.dsn()) as conn:
            conn.execute(SchemaManager.get_schema())
        yield server


def restart(server: TemporaryServer) -> None:
    """End the server, and start it again on the same port."""
    server.kill()
    server.start()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize("on_pool", [False, True])
def test_an_engine_heals(server: TemporaryServer, driver: str, on_pool: bool) -> None:
    """An engine has at most one error for each connection that its pool held."""
    sa = pytest.importorskip("sqlalchemy")
    pytest.importorskip(driver)
    engine = sa.create_engine(url(server.dsn(), driver), pool_size=SIZE)
    app = procrastinate.App(
        connector=extconn.PoolConnector(engine)
        if on_pool
        else extconn.patch(procrastinate.SyncPsycopgConnector(conninfo=server.dsn()))
    )
    held = [engine.connect() for _ in range(SIZE)]
    for conn in held:
        conn.execute(sa.text("SELECT 1"))
        conn.close()
    restart(server)

    def defer() -> None:
        if on_pool:
            app.configure_task("ship").defer()
        else:
            with engine.begin() as conn:
                app.configure_task("ship", connection=conn).defer()

    assert _errors(defer) <= SIZE
    engine.dispose()


def _errors(defer: Callable[[], None]) -> int:
    """How often *defer* fails before it works as often as there are connections."""
    errors = in_a_row = 0
    while in_a_row < SIZE + 1:
        try:
            defer()
        except ConnectorException:
            errors += 1
            in_a_row = 0
            assert errors < 10 * SIZE, "it does not heal"
        else:
            in_a_row += 1
    return errors


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("on_pool", [False, True])
async def test_an_async_engine_heals(server: TemporaryServer, driver: str, on_pool: bool) -> None:
    """So does an async engine, whose driver knows at once that its connection is closed."""
    sa = pytest.importorskip("sqlalchemy")
    asyncio_ = pytest.importorskip("sqlalchemy.ext.asyncio")
    pytest.importorskip(driver)
    engine = asyncio_.create_async_engine(url(server.dsn(), driver), pool_size=SIZE)
    app = procrastinate.App(
        connector=extconn.PoolConnector(engine)
        if on_pool
        else extconn.patch(procrastinate.PsycopgConnector(conninfo=server.dsn()))
    )
    held = [await engine.connect() for _ in range(SIZE)]
    for conn in held:
        await conn.execute(sa.text("SELECT 1"))
        await conn.close()
    await asyncio.to_thread(restart, server)

    async def defer() -> None:
        if on_pool:
            await app.configure_task("ship").defer_async()
        else:
            async with engine.begin() as conn:
                await app.configure_task("ship", connection=conn).defer_async()

    errors = in_a_row = 0
    while in_a_row < SIZE + 1:
        try:
            await defer()
        except ConnectorException:
            errors += 1
            in_a_row = 0
            assert errors < 10 * SIZE, "it does not heal"
        else:
            in_a_row += 1
    assert errors <= SIZE
    await engine.dispose()
