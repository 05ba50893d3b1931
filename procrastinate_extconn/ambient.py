"""``using``: the ambient transaction, for code that defers three layers below the one that holds the connection.

And ``standalone``, which leaves it, for calls that are meant to commit by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TypeVar

from .exceptions import MEANT, ExternalConnectionError
from .layer import layer
from .options import unwrap
from .queries import MANAGER_QUERIES, WORKER_QUERIES, original
from .sync_async import within

C = TypeVar("C")
F = TypeVar("F", bound="Callable[..., Any]")


class _Block:
    """One ``with using(conn):`` and who entered it."""

    def __init__(self, conn: object) -> None:
        self.conn: object | None = conn
        self.owner = _here()
        self.outer = _innermost()
        self.is_left = False


class _Standalone:
    """One ``with standalone():`` and what it was entered in."""

    def __init__(self, outer: _Block | _Standalone | None) -> None:
        self.outer = outer
        self.is_open = True


_block: ContextVar[_Block | _Standalone | None] = ContextVar(
    "procrastinate_extconn_block", default=None
)


class _Blocks(AbstractContextManager[C]):
    """What `using` and `standalone` return: a block, and a decorator of functions, sync and async."""

    def __init__(self, block: Callable[[], AbstractContextManager[C]]) -> None:
        self._block = block

    def __enter__(self) -> C:
        self._entered = self._block()
        return self._entered.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._entered.__exit__(exc_type, exc, traceback)

    def __call__(self, function: F) -> F:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{function.__qualname__} is a generator, which runs after the block: enter the block inside it"
            )
        decorated: F = within(self._block, function)
        return decorated


def using(conn: C) -> AbstractContextManager[C]:
    """Run every call of a patched app inside the ``with`` block on *conn*, without handing it down.

    Deferring, cancelling, status and every other call of the job manager, sync or async as *conn* is. An explicit
    ``configure(connection=other)`` wins, and the innermost block does. The connection belongs to the task or thread
    that entered the block. A child task, thread or process that inherits the context gets an error, never *conn*.

    :param conn: any connection that a plugin takes, or what `external` made of one.
    :returns: a context manager that yields *conn*.
    :raises ExternalConnectionError: if no connector is patched, since the block would do nothing.
    :raises UnsupportedConnection: if no plugin takes *conn*, or it leads to another database than PostgreSQL.
    """
    return _Blocks(lambda: _using(conn))


@contextlib.contextmanager
def _using(conn: C) -> Generator[C]:
    if not layer.is_on_anywhere():
        raise ExternalConnectionError(
            "using() would do nothing, as no connector is patched: call procrastinate_extconn.install() first"
        )
    from .guard import require_postgresql
    from .own_work import recognise
    from .patching import watch
    from .plugins import describe

    require_postgresql(conn, describe(conn))
    watch()
    recognise()  # A worker does not run in a block that its task has left open.
    block = _Block(conn)
    token = _block.set(block)
    try:
        yield conn
    finally:
        # A context that was copied inside the block keeps the block, but neither the connection nor a way to it.
        block.conn = None
        block.is_left = True
        _leave(block, token)


def _leave(block: _Block, token: Token[_Block | _Standalone | None]) -> None:
    current = _block.get()
    try:
        _block.reset(token)
    except ValueError as exc:
        raise ExternalConnectionError(
            "this using() block was entered in one context and left in another, so what ran in between may not have "
            "seen it, and deferred outside your transaction: enter it in the task or thread that defers"
        ) from exc
    # Blocks may be left in another order than they were entered, as those of two generators.
    _block.set(_innermost() if current is block else current)


def standalone() -> AbstractContextManager[None]:
    """Let the calls inside the ``with`` block commit by themselves, on the app's own connector.

    Inside a `using` block, that one is left for the length of this one. A task or thread that copies the context
    inside the block is inside as well, until the block ends. A worker does not hand the block to its tasks. A call
    with a connection is judged as anywhere.
    """
    return _Blocks(_standalone)


@contextlib.contextmanager
def _standalone() -> Generator[None]:
    block = _Standalone(_block.get())
    with setting(_block, block):
        try:
            yield
        finally:
            block.is_open = False  # for those who copied the context


def cleared() -> AbstractContextManager[None]:
    """Be in no block at all for a while."""
    return setting(_block, None)


@contextlib.contextmanager
def setting(variable: ContextVar[Any], value: object) -> Generator[None]:
    """Give *variable* that value for a while."""
    token = variable.set(value)
    try:
        yield
    finally:
        current = variable.get()
        with contextlib.suppress(ValueError):  # a coroutine that is closed in another context
            variable.reset(token)
            if current is not value:  # set anew since, by a block that is open still
                variable.set(current)


def _innermost() -> _Block | _Standalone | None:
    block = _block.get()
    while block is not None and _is_over(block):
        block = block.outer
    return block


def _is_over(block: _Block | _Standalone) -> bool:
    if isinstance(block, _Standalone):
        return not block.is_open
    # A generator that holds the block may be closed in another context, which cannot reset the variable of this one.
    return block.is_left and block.owner == _here()


def is_standalone() -> bool:
    """Whether the caller is in a `standalone` block."""
    return isinstance(_innermost(), _Standalone)


def in_block() -> bool:
    """Whether the caller is in a `using` block, its own or an inherited one."""
    return isinstance(_innermost(), _Block)


def after_commit(conn: object) -> str:
    """What a refusal adds where *conn* is that of the caller's block, and its transaction may be over."""
    block = _innermost()
    if not isinstance(block, _Block) or unwrap(block.conn) is not conn:
        return ""
    return f". {MEANT}"


def connection(query: str | None) -> object | None:
    """The connection that *query* should run on, if the caller is in a block.

    :raises ExternalConnectionError: if the block is somebody else's, or for a worker that starts in it.
    """
    block = _innermost()
    if not isinstance(block, _Block):
        return None
    query = original(query)
    if query in WORKER_QUERIES:
        raise ExternalConnectionError(
            "a worker does not start inside a using() block: it needs connections of its own, and would outlive "
            "the transaction. Start it outside the block."
        )
    if query not in MANAGER_QUERIES:
        return None
    if block.conn is None or block.owner != _here():
        raise ExternalConnectionError(
            "this call inherited a using() block from the task, thread or process that started it, and the connection "
            "belongs to that one: two of them would interleave their statements on it. (asyncio.create_task, gather, "
            "to_thread and, before Python 3.12, wait_for start one, and so does a fork.) Defer from the task or thread "
            "that entered the block, or pass configure(connection=...) a connection of this one's own. Or start it "
            "with an empty context (contextvars.Context()), and a process before the block. If it is meant to commit "
            "by itself, enter procrastinate_extconn.standalone()."
        )
    return block.conn


def _here() -> tuple[int, threading.Thread, asyncio.Task[object] | None]:
    """The running process, thread and asyncio task. A process that was forked has the thread and the context."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    # Not its number, which a later thread may have as well.
    return os.getpid(), threading.current_thread(), task
