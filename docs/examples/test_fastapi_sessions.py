"""A FastAPI application with async sessions, inside one transaction that is rolled back."""

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import procrastinate
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import assert_deferred, assert_not_deferred, run_deferred

extconn.install(outside_transaction="error")

engine = create_async_engine("postgresql+psycopg://")
new_session = async_sessionmaker(engine)
queue = procrastinate.App(connector=procrastinate.PsycopgConnector())
api = FastAPI()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "web_order"

    id: Mapped[int] = mapped_column(primary_key=True)


class Confirmation(Base):
    __tablename__ = "web_confirmation"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("web_order.id"))


@queue.task(name="confirm_order")
async def confirm_order(order_id: int) -> None:
    async with new_session.begin() as session:
        session.add(Confirmation(order_id=order_id))


async def transaction() -> AsyncIterator[AsyncSession]:
    async with new_session.begin() as session:
        with extconn.using(session):
            yield session


Session = Annotated[AsyncSession, Depends(transaction, scope="function")]


@api.post("/orders", status_code=201)
async def create_order(paid: bool, session: Session) -> dict[str, int]:
    order = Order()
    session.add(order)
    await session.flush()
    await confirm_order.defer_async(order_id=order.id)
    if not paid:
        raise HTTPException(402, "The payment was refused.")
    return {"id": order.id}


# -- the tests ---------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def connection() -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection, connection.begin() as transaction:
        await connection.run_sync(Base.metadata.create_all)
        # Each session is a savepoint of this transaction.
        new_session.configure(bind=connection, join_transaction_mode="create_savepoint")
        yield connection
        new_session.configure(bind=engine, join_transaction_mode="conditional_savepoint")
        await transaction.rollback()
    await engine.dispose()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.asyncio
async def test_an_order_is_confirmed(
    connection: AsyncConnection, client: httpx.AsyncClient
) -> None:
    response = await client.post("/orders?paid=true")
    assert response.status_code == 201
    order_id = response.json()["id"]
    await assert_deferred(connection, confirm_order, order_id=order_id)

    await run_deferred(connection, queue)
    async with new_session() as session:
        assert (await session.scalars(select(Confirmation.order_id))).all() == [order_id]


@pytest.mark.asyncio
async def test_a_refused_payment_leaves_nothing(
    connection: AsyncConnection, client: httpx.AsyncClient
) -> None:
    assert (await client.post("/orders?paid=false")).status_code == 402
    await assert_not_deferred(connection, confirm_order)
    async with new_session() as session:
        assert (await session.scalars(select(Order.id))).all() == []
