"""``using``: the ambient transaction, for code that defers three layers below the one that holds the connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from contextvars import ContextVar, Token
from typing import TypeVar

from .exceptions import ExternalConnectionError
from .layer import layer
from .queries import MANAGER_QUERIES, WORKER_QUERIES

C = TypeVar("C")


class _Block:
    """One ``with using(conn):`` and who entered it."""

    def __init__(self, conn: object) -> None:
        self.conn: object | None = conn
        self.owner = _here()


_block: ContextVar[_Block | None] = ContextVar("procrastinate_extconn_using", default=None)


@contextlib.contextmanager
def using(conn: C) -> Generator[C]:
    """Run every call of a patched app inside the ``with`` block on *conn*, without handing it down.

    Deferring, cancelling, status and every other call of the job manager, sync or async as *conn* is. An explicit
    ``configure(connection=other)`` wins, and the innermost block does. The connection belongs to the task or thread
    that entered the block: a child task or thread that inherits the context gets an error, never *conn*.

    :param conn: any connection that a plugin takes, or what `external` made of one.
    :returns: a context manager that yields *conn*.
    :raises ExternalConnectionError: if no connector is patched, since the block would do nothing.
    :raises UnsupportedConnection: if no plugin takes *conn*, or it leads to another database than PostgreSQL.
    """
    if not layer.is_on_anywhere():
        raise ExternalConnectionError(
            "using() would do nothing, as no connector is patched: call procrastinate_extconn.install() first"
        )
    from .guard import require_postgresql
    from .plugins import describe

    require_postgresql(conn, describe(conn))
    block = _Block(conn)
    token = _block.set(block)
    try:
        yield conn
    finally:
        # A context that was copied inside the block keeps the block, but neither the connection nor a way to it.
        block.conn = None
        _leave(token)


def _leave(token: Token[_Block | None]) -> None:
    try:
        _block.reset(token)
    except ValueError as exc:
        raise ExternalConnectionError(
            "this using() block was entered in one context and left in another, so what ran in between may not have "
            "seen it, and deferred outside your transaction: enter it in the task or thread that defers"
        ) from exc


@contextlib.contextmanager
def outside() -> Generator[None]:
    """Leave the caller's block for a while."""
    token = _block.set(None)
    try:
        yield
    finally:
        _block.reset(token)


def connection(query: str | None) -> object | None:
    """The connection that *query* should run on, if the caller is in a block.

    :raises ExternalConnectionError: if the block is somebody else's, or for a worker that starts in it.
    """
    block = _block.get()
    if block is None:
        return None
    if query in WORKER_QUERIES:
        raise ExternalConnectionError(
            "a worker does not start inside a using() block: it needs connections of its own, and would outlive "
            "the transaction. Start it outside the block."
        )
    if query not in MANAGER_QUERIES:
        return None
    if block.conn is None or block.owner != _here():
        raise ExternalConnectionError(
            "this call inherited a using() block from the task or thread that started it, and the connection belongs "
            "to that one: two of them would interleave their statements on it. (asyncio.create_task, gather, to_thread "
            "and, before Python 3.12, wait_for start one.) Defer from the task or thread that entered the block, pass "
            "configure(connection=...) a connection of this one's own, or start it with an empty context "
            "(contextvars.Context())."
        )
    return block.conn


def _here() -> tuple[int, asyncio.Task[object] | None]:
    """The running asyncio task and thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task
