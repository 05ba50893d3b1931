"""Orders with FastAPI and asyncpg: an order and its job commit together.

$ export PGHOST=... PGDATABASE=...
$ PYTHONPATH=. procrastinate --app=shop.queue schema --apply
$ uvicorn shop:api &
$ curl -X POST 'http://127.0.0.1:8000/orders/1?paid=true'
$ PYTHONPATH=. procrastinate --app=shop.queue worker
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import procrastinate
from fastapi import Depends, FastAPI, HTTPException, Request

import procrastinate_extconn as extconn

# A job outside a transaction is an error here, and so is a job whose connection was forgotten.
extconn.install(outside_transaction="error")

queue = procrastinate.App(connector=procrastinate.PsycopgConnector())

TABLES = """
    CREATE TABLE IF NOT EXISTS shop_order (id bigint PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS shop_confirmation (order_id bigint REFERENCES shop_order);
"""


@queue.task(name="confirm_order")
async def confirm_order(order_id: int) -> None:
    conn = await asyncpg.connect()
    await conn.execute("INSERT INTO shop_confirmation (order_id) VALUES ($1)", order_id)
    await conn.close()


async def transaction(request: Request) -> AsyncIterator[asyncpg.Connection]:
    """One request, one transaction: every job deferred meanwhile is part of it."""
    async with request.app.state.pool.acquire() as conn, conn.transaction():
        with extconn.using(conn):
            yield conn


# scope="function": commit before the response is sent, so that a 201 is true.
Transaction = Annotated[asyncpg.Connection, Depends(transaction, scope="function")]


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool() as api.state.pool:
        await api.state.pool.execute(TABLES)
        yield


api = FastAPI(lifespan=lifespan)


@api.post("/orders/{order_id}", status_code=201)
async def create_order(order_id: int, paid: bool, conn: Transaction) -> dict[str, int]:
    await conn.execute("INSERT INTO shop_order (id) VALUES ($1)", order_id)
    await confirm_order.defer_async(order_id=order_id)
    if not paid:
        raise HTTPException(402, "The payment was refused.")
    return {"id": order_id}
