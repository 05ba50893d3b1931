"""The pool of an app, which is opened for the relay if it is not open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
from procrastinate.connector import BaseAsyncConnector, BaseConnector
from procrastinate.exceptions import AppNotOpen
from procrastinate.testing import InMemoryConnector

from procrastinate_extconn.exceptions import ExternalConnectionError
from procrastinate_extconn.fallback import type_name

from .lending import explained

QUEUE = "the queue's database"
"""What errors call it."""


@asynccontextmanager
async def pool_of(app: procrastinate.App) -> AsyncGenerator[object]:
    """The pool or engine that *app* stands on, open for the length of the block."""
    connector: Any = app.connector
    if isinstance(connector, InMemoryConnector):
        raise ExternalConnectionError(
            f"the relay needs an app on a database: this one is on {type_name(type(connector))}"
        )
    if hasattr(connector, "get_worker_connector"):  # Django's, which has no pool
        connector = connector.get_worker_connector()
    pool = _open_pool(connector)
    if pool is not None:
        yield pool
        return
    try:
        await _open(connector)
        yield _open_pool(connector) or connector
    finally:
        await _close(connector)


def _open_pool(connector: BaseConnector) -> object | None:
    """The pool of *connector*, or of its synchronous one, or None if neither is open."""
    for one in (connector, vars(connector).get("_sync_connector")):
        for name in ("pool", "engine"):
            try:
                pool: object | None = getattr(one, name, None)
            except AppNotOpen:
                continue
            if pool is not None:
                return pool
    return None


async def _open(connector: BaseConnector) -> None:
    try:
        if isinstance(connector, BaseAsyncConnector):
            await connector.open_async()
        else:
            await asyncio.to_thread(connector.open)
    except Exception as exc:  # noqa: BLE001 - a driver may raise anything
        error = explained(exc, QUEUE)
    else:
        return
    raise error


async def _close(connector: BaseConnector) -> None:
    if isinstance(connector, BaseAsyncConnector):
        await connector.close_async()
    else:
        await asyncio.to_thread(connector.close)
