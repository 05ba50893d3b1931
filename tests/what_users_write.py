# pyright: strict
"""What users write, every public name of it: type checkers read this in their strict modes, and nobody runs it."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
from procrastinate import JobContext
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate_extconn_outbox import (
    Outbox,
    Tables,
    once,
    once_async,
    relay,
    relay_async,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from typing_extensions import assert_type

import procrastinate_extconn as extconn
from procrastinate_extconn import Diagnostic, hookimpl
from procrastinate_extconn.hookspecs import Description, Rows, Value
from procrastinate_extconn.testing import (
    Held,
    Kind,
    PluginContract,
    StrictInMemoryConnector,
    assert_deferred,
    deferred_jobs,
    rolled_back,
)

extconn.install()
extconn.install(outside_transaction="error", without_connection="warn")
extconn.uninstall()

app = procrastinate.App(connector=procrastinate.PsycopgConnector())
assert_type(extconn.patch(app, outside_transaction="warn"), procrastinate.App)
assert_type(extconn.unpatch(app), procrastinate.App)


@app.task
async def ship(order_id: int) -> None: ...


def defer(conn: psycopg.Connection, session: Session) -> int:
    with extconn.using(session) as held:
        assert_type(held, Session)
        ship.defer(order_id=1)
    careful = extconn.external(
        conn, savepoint=True, on_conflict="existing", outside_transaction="allow"
    )
    try:
        return ship.configure(connection=careful).defer(order_id=2)
    except extconn.SyncAsyncMismatch:
        raise
    except (extconn.OutsideTransaction, extconn.UnusableConnection, extconn.UnsupportedConnection):
        return 0
    except extconn.ExternalConnectionError as exc:
        raise ConnectorException from exc


def meant() -> None:
    with extconn.standalone() as nothing:
        assert_type(nothing, None)
        ship.defer(order_id=6)
    unit = procrastinate.App(connector=StrictInMemoryConnector(without_connection="error"))
    extconn.patch(unit, without_connection="allow")


async def defer_async(session: AsyncSession) -> int:
    with extconn.using(session):
        await ship.defer_async(order_id=3)
    return await ship.configure(connection=session).defer_async(order_id=4)


async def import_orders(session: AsyncSession, numbers: AsyncIterator[int]) -> None:
    rows = ({"order_id": number} for number in range(10))
    assert_type(extconn.defer_many(ship, rows), int)
    assert_type(
        extconn.defer_many(ship.configure(priority=1), [{"order_id": 1}], chunk_size=9), int
    )
    orders = ({"order_id": number} async for number in numbers)
    assert_type(await extconn.defer_many_async(ship.configure(connection=session), orders), int)


def look(conn: psycopg.Connection) -> bool:
    description = extconn.describe(conn)
    assert_type(description, extconn.Description)
    assert_type(description.plugin, str)
    return description.state == "in_transaction" and not description.is_async


@app.task(pass_context=True)
def reckon(context: JobContext) -> None:
    with psycopg.connect() as conn:
        extconn.complete(context, conn)


@app.task(pass_context=True)
async def reckon_async(context: JobContext) -> None:
    async with await psycopg.AsyncConnection.connect() as conn:
        await extconn.complete_async(context, connection=conn)


async def connectors(pool: psycopg_pool.ConnectionPool, conn: psycopg.AsyncConnection) -> None:
    procrastinate.App(connector=extconn.PoolConnector(pool))
    engine = create_async_engine("postgresql+psycopg://")
    other = app.with_connector(extconn.PoolConnector(engine))
    async with other.open_async():
        await ship.configure(connection=conn).defer_async(order_id=5)
    external = extconn.ExternalConnector(conn, json_dumps=None, json_loads=None)
    await app.with_connector(external).job_manager.list_jobs_async()


class MyConnection:
    """A driver's connection."""

    def run(self, query: str, args: Mapping[str, Value]) -> list[tuple[Any, ...]]:
        raise NotImplementedError


class MyPlugin:
    """A plugin: a module has the same functions."""

    @hookimpl
    def describe_external(self, conn: object) -> Description | None:
        if not isinstance(conn, MyConnection):
            return None
        return Description("mydriver", "mydriver", is_async=False, state="unknown")

    @hookimpl
    def execute_on_external(
        self, conn: object, query: str, args: Mapping[str, Value]
    ) -> Rows | None:
        if not isinstance(conn, MyConnection):
            return None
        return [{"id": row[0]} for row in conn.run(query, args)]

    @hookimpl
    def read_external_error(self, error: BaseException) -> Diagnostic | None:
        return Diagnostic("23505", constraint="orders_pkey")

    @hookimpl
    def external_kinds(self) -> Sequence[Kind]:
        return ()

    @hookimpl(trylast=True)
    def connect_external(self, pool: object) -> AbstractContextManager[object] | None:
        return None


warnings.simplefilter("error", extconn.OutsideTransactionWarning)
warnings.simplefilter("error", extconn.PluginWarning)
plugin = MyPlugin()
assert_type(extconn.register(plugin, name="mydriver"), str)
extconn.unregister(plugin)


def open_mine(dsn: str) -> AbstractContextManager[Held]:
    raise NotImplementedError


class TestMyPlugin(PluginContract):
    """The plugin's test-suite."""

    kinds = (Kind("mydriver", "mydriver", ("mydriver",), is_async=False, open=open_mine),)


def test_order(conn: psycopg.Connection) -> None:
    with rolled_back(conn) as held:
        assert_type(held, psycopg.Connection)
        ship.configure(connection=held).defer(order_id=6)
        job: Job = assert_deferred(held, ship, order_id=6)
        assert [job] == deferred_jobs(held)


async def test_order_async(conn: psycopg.AsyncConnection) -> None:
    async with rolled_back(conn) as held:
        await ship.configure(connection=held).defer_async(order_id=7)
        job: Job = await assert_deferred(held, "ship", order_id=7)
        assert [job] == await deferred_jobs(held)
    with app.replace_connector(StrictInMemoryConnector()) as unit:
        await unit.configure_task("ship", connection=conn).defer_async(order_id=8)


def rows_elsewhere(context: JobContext, session: Session) -> None:
    ship.configure(connection=Outbox(session, table="shop.jobs")).defer(order_id=9)
    with extconn.using(extconn.external(Outbox(session), savepoint=True)):
        ship.defer(order_id=10)
    assert_type(Tables(table="shop.jobs").ddl("sqlite"), list[str])
    Tables().metadata.create_all(session.connection())
    assert_type(once(context, session, namespace="shop"), bool)
    relay("sqlite:///shop.sqlite", app, table="shop.jobs", wait=False)


async def rows_elsewhere_async(context: JobContext, session: AsyncSession) -> None:
    await ship.configure(connection=Outbox(session)).defer_async(order_id=11)
    assert_type(await once_async(context, session), bool)
    await relay_async(create_async_engine("mysql+asyncmy://"), app)
