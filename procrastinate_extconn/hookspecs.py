"""The contract with driver plugins: six hooks, and the types that they use.

The contract grows by new hooks and new arguments, which a plugin may leave out. It never changes its meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import pluggy

PROJECT_NAME = "procrastinate_extconn"
"""Pluggy's project name, and the entry-point group in which plugins are found."""

T = TypeVar("T")

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT_NAME)

Value: TypeAlias = "bool | int | float | str | datetime | None"
"""Every type that a plugin is asked to bind. JSON, job records and lists are text, and the query casts them."""

Rows: TypeAlias = "list[dict[str, Any]]"

State: TypeAlias = Literal["idle", "in_transaction", "autocommit", "failed", "closed", "unknown"]


OUTBOX = "outbox"
"""The dialect of what keeps jobs beside the caller's rows, in any database, until they reach Procrastinate's."""


class Description(NamedTuple):
    """What is known of an external connection without asking the server."""

    driver: str
    """The driver that talks to the server, as its own project spells it."""
    plugin: str
    """The plugin that takes the connection."""
    is_async: bool
    """Whether queries on it are awaited."""
    state: State
    """``"idle"``: the next statement opens a transaction; ``"in_transaction"``; ``"autocommit"``: each statement
    commits by itself; ``"failed"``: the transaction can only be rolled back; ``"closed"``; ``"unknown"``."""
    begin: str | None = None
    """The line of code that opens a transaction on this connection. `OutsideTransaction` shows it. It may differ by
    `state`."""
    dialect: str = "postgresql"
    """The database: ``"postgresql"``, ``"sqlite"``. A connection to any other than PostgreSQL is refused. The value
    ``"outbox"`` stands for an object that takes deferred jobs, to any database, and refuses every other query."""


class Diagnostic(NamedTuple):
    """What the server said of an error. A fact that the driver does not give is None."""

    sqlstate: str | None = None
    """The five characters of the SQLSTATE."""
    message: str | None = None
    """The primary message, without DETAIL, HINT and CONTEXT."""
    detail: str | None = None
    """The DETAIL line. It may quote values, so no error of this project shows it."""
    constraint: str | None = None
    """The name of the constraint that was violated."""


class Listener(NamedTuple):
    """A connection that listens, as `listen_external` yields it."""

    conn: object
    """A connection that commits each statement by itself. `execute_on_external` takes it while notifications are
    awaited."""
    notifications: AsyncIterator[tuple[str, str]]
    """The channel and payload of each notification. It ends, or raises, when the connection is lost."""
    size: int | None = None
    """How many connections the pool opens at most, if that is known."""


class Held(NamedTuple):
    """A connection in a transaction, with its driver's own way to do things.

    The results of these functions are awaited if the connection is async.
    """

    conn: Any
    """The object that the caller passed as ``connection=``."""
    execute: Callable[[str], Any]
    """Runs SQL without parameters. Returns the rows as tuples, ``[]`` for a statement without rows."""
    commit: Callable[[], Any]
    rollback: Callable[[], Any]


class Kind(NamedTuple):
    """A way to hold a connection in a transaction."""

    id: str
    """A short name, such as ``"mydriver-pool"``."""
    plugin: str
    """The plugin that takes the connection. It may have the same name."""
    requires: tuple[str, ...]
    """The modules that it needs, by the names that are imported, the driver's above all."""
    is_async: bool
    """Whether what is done on the connection is awaited."""
    open: Callable[[str], Any]
    """Takes a DSN. Returns a context manager that yields a `Held` and closes what it opened, async if `is_async`."""

    @property
    def in_greenlet(self) -> bool:
        """Whether it is the sync inside of an async connection: `open` is async, and calls are sync in a greenlet."""
        return False

    async def call(self, body: Callable[[Held], Coroutine[Any, Any, T]], held: Held) -> T:
        """Run *body* where the connection can be used."""
        return await body(held)

    def missing(self) -> list[str]:
        """Those of the modules in `requires` that are not installed."""
        # Of a submodule, find_spec() imports the parent, which has to be there.
        return [
            name
            for name in self.requires
            if find_spec(name.partition(".")[0]) is None or find_spec(name) is None
        ]


@hookspec(firstresult=True)
def execute_on_external(
    conn: object, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    """Run *query* on *conn*, inside the transaction that its owner has open.

    Stops at the first result that is not None. Write ``def``, never ``async def``: a coroutine is not None, so it
    would claim every connection; return the awaitable of an inner coroutine instead. Claim by the object's class
    alone, because the claim is cached, and refuse by its state. Never commit, roll back or close *conn*. Let the
    driver's errors through as they are.

    :param conn: the caller's object.
    :param query: one SQL statement with ``%(name)s`` placeholders; a literal percent sign is doubled.
    :param args: the value of each placeholder. Bind it untyped or as text: the query casts where it must.
    :returns: each row as a dict (``[]`` for a statement without rows), an awaitable of that, or None if *conn* is
        not yours. JSON columns are text where the driver allows it; decoded values are accepted.
    :raises UnsupportedConnection: for an object of your driver that is no connection, such as a pool or a cursor.
    """


@hookspec(firstresult=True)
def describe_external(conn: object) -> Description | None:
    """Say what *conn* is and whether it is in a transaction, without touching the network.

    Asked before each statement, so it should be quick. Optional. Without it the state is ``"unknown"``, and a sync
    call on an async connection is noticed only once your plugin has returned an awaitable.

    :param conn: the caller's object.
    :returns: its description, or None if *conn* is not yours.
    :raises UnsupportedConnection: as in `execute_on_external`.
    """


@hookspec(firstresult=True)
def connect_external(
    pool: object,
) -> AbstractContextManager[object] | AbstractAsyncContextManager[object] | None:
    """Lend a connection from *pool* in a transaction of its own, committed on a clean exit and rolled back otherwise.

    Optional. `procrastinate_extconn.PoolConnector` uses it. The context manager is sync or async as the pool is.
    `execute_on_external` takes what it yields. Never open, resize or close *pool*.

    :param pool: the caller's pool or engine.
    :returns: a context manager that yields the connection, or None if *pool* is not yours.
    """


@hookspec(firstresult=True)
def listen_external(
    pool: object, channels: Sequence[str]
) -> AbstractAsyncContextManager[Listener] | None:
    """Hold one connection of *pool* that listens on *channels* until the context manager exits.

    Optional. A worker on `procrastinate_extconn.PoolConnector` uses it. Without it the worker polls. The context
    manager takes one connection from the pool, and gives it back without any LISTEN and with its own settings. It
    closes the connection where the context ends with an exception, since that connection is lost or in doubt.

    :param pool: the caller's async pool or engine.
    :param channels: the names of the channels. With none, the connection is only held, so that `Listener.conn` can
        be used.
    :returns: an async context manager that yields a `Listener`, or None if *pool* is not yours or cannot listen.
        A pool that cannot listen may still be held: return None only where there are channels.
    :raises ExternalConnectionError: if *pool* is not open. Name the line that opens it.
    """


@hookspec(firstresult=True)
def read_external_error(error: BaseException) -> Diagnostic | None:
    """Read what the server said from an exception of your driver.

    Optional. Asked for each exception in the chain of causes, so decide by its class. Without it, these attributes
    are read, or a dict of the protocol's one-letter fields in ``args[0]``:

    - ``sqlstate`` or ``pgcode``
    - ``diag.message_primary`` or ``message``
    - ``diag.message_detail`` or ``detail``
    - ``diag.constraint_name`` or ``constraint_name``

    A fact that is None is then looked for in the error's text.

    :param error: the driver's exception, or one that it wraps.
    :returns: what the server said, or None if *error* is not of your driver.
    """


@hookspec
def external_kinds() -> Sequence[Kind]:  # type: ignore[empty-body]
    """Name the ways to hold a connection of your driver.

    Optional. Every plugin is asked. The demo, the doctor and the contract kit open each kind. Import the driver, or a
    module that does so, inside this function.

    :returns: `Kind` tuples. That class is in ``procrastinate_extconn.kinds``.
    """
