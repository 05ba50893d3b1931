"""Orders in SQLite, and the queue in PostgreSQL: an order and its job commit together, in an outbox.

$ export PGHOST=... PGDATABASE=...
$ PYTHONPATH=. procrastinate --app=shop.queue schema --apply
$ uvicorn shop:api &
$ curl -X POST 'http://127.0.0.1:8000/orders?paid=true'
$ PYTHONPATH=. procrastinate-extconn-outbox relay --from sqlite:///shop.sqlite --app shop.queue &
$ PYTHONPATH=. procrastinate --app=shop.queue worker
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import procrastinate
from fastapi import Depends, FastAPI, HTTPException
from procrastinate_extconn_outbox import Outbox, Tables, once_async
from sqlalchemy import ForeignKey
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import procrastinate_extconn as extconn

# A job outside a transaction is an error here, and so is a job whose connection was forgotten.
extconn.install(outside_transaction="error")

engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ.get('SHOP', 'shop.sqlite')}")
queue = procrastinate.App(connector=procrastinate.PsycopgConnector())


class Base(DeclarativeBase):
    pass


Tables(Base.metadata)  # the outbox, and the marks of once()


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


class Confirmation(Base):
    __tablename__ = "confirmations"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))


@queue.task(name="confirm_order", pass_context=True)
async def confirm_order(context: procrastinate.JobContext, order_id: int) -> None:
    async with AsyncSession(engine) as session, session.begin():
        if await once_async(context, session):
            session.add(Confirmation(order_id=order_id))


async def transaction() -> AsyncIterator[AsyncSession]:
    """One request, one transaction: every job deferred meanwhile is a row of its outbox."""
    async with AsyncSession(engine) as session, session.begin():
        with extconn.using(Outbox(session)):
            yield session


# scope="function": commit before the response is sent, so that a 201 is true.
Session = Annotated[AsyncSession, Depends(transaction, scope="function")]


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


api = FastAPI(lifespan=lifespan)


@api.post("/orders", status_code=201)
async def create_order(paid: bool, session: Session) -> dict[str, int]:
    order = Order()
    session.add(order)
    await session.flush()
    await notify(order.id)
    if not paid:
        raise HTTPException(402, "The payment was refused.")
    return {"id": order.id}


async def notify(order_id: int) -> None:
    """Far from the session: nobody hands it a connection."""
    await confirm_order.defer_async(order_id=order_id)
