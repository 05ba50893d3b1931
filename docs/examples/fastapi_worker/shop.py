"""Orders with FastAPI, asyncpg and one pool, which the worker shares.

$ export PGHOST=... PGDATABASE=...
$ PYTHONPATH=. procrastinate --app=shop.queue schema --apply
$ uvicorn shop:api &          # serves, and works in the same process
$ curl -X POST 'http://127.0.0.1:8000/orders/1?paid=true'

Or with the worker in a process of its own:

$ WORKER=elsewhere uvicorn shop:api &
$ python worker.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

import asyncpg
import procrastinate
from fastapi import Depends, FastAPI, HTTPException, Request

import procrastinate_extconn as extconn

# A job that is deferred outside a transaction is an error here, not a surprise.
extconn.install(outside_transaction="error")

# For `procrastinate schema --apply`. The pool takes its place as soon as it is open.
queue = procrastinate.App(connector=procrastinate.PsycopgConnector())

CONCURRENCY = 4
POOL_SIZE = CONCURRENCY + 2 + 4  # for the worker, and for four requests at a time

TABLES = """
    CREATE TABLE IF NOT EXISTS shop_order (id bigint PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS shop_confirmation (order_id bigint REFERENCES shop_order);
"""


@queue.task(name="confirm_order", pass_context=True)
async def confirm_order(context: procrastinate.JobContext, order_id: int) -> None:
    pool = context.additional_context["pool"]
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("INSERT INTO shop_confirmation (order_id) VALUES ($1)", order_id)
        await extconn.complete_async(context, conn)


@asynccontextmanager
async def open_pool() -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(max_size=POOL_SIZE) as pool:
        with queue.replace_connector(extconn.PoolConnector(pool)):
            yield pool


async def work(pool: asyncpg.Pool, *, install_signal_handlers: bool = True) -> None:
    await queue.run_worker_async(
        concurrency=CONCURRENCY,
        additional_context={"pool": pool},
        shutdown_graceful_timeout=10,
        install_signal_handlers=install_signal_handlers,
    )


@asynccontextmanager
async def working(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """Work in the background; in the end, let the jobs that run come to their end."""
    worker = asyncio.create_task(work(pool, install_signal_handlers=False))
    try:
        yield
    finally:
        worker.cancel()
        await asyncio.wait([worker])


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        api.state.pool = await stack.enter_async_context(open_pool())
        await api.state.pool.execute(TABLES)
        if os.environ.get("WORKER") != "elsewhere":
            await stack.enter_async_context(working(api.state.pool))
        yield


api = FastAPI(lifespan=lifespan)


async def transaction(request: Request) -> AsyncIterator[asyncpg.Connection]:
    """One request, one transaction: every job deferred meanwhile is part of it."""
    async with request.app.state.pool.acquire() as conn, conn.transaction():
        with extconn.using(conn):
            yield conn


# scope="function": commit before the response is sent, so that a 201 is true.
Transaction = Annotated[asyncpg.Connection, Depends(transaction, scope="function")]


@api.post("/orders/{order_id}", status_code=201)
async def create_order(order_id: int, paid: bool, conn: Transaction) -> dict[str, int]:
    await conn.execute("INSERT INTO shop_order (id) VALUES ($1)", order_id)
    await confirm_order.defer_async(order_id=order_id)
    if not paid:
        raise HTTPException(402, "The payment was refused.")
    return {"id": order_id}
