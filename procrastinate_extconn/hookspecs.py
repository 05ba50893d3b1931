"""The contract with driver plugins: three hooks, and the types that they speak.

The contract grows by new hooks and new arguments, which plugins of today may leave out; what stands here never
changes its meaning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import pluggy

PROJECT_NAME = "procrastinate_extconn"
"""Pluggy's project name, and the entry-point group in which plugins are found."""

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT_NAME)

Value: TypeAlias = "bool | int | float | str | datetime | Sequence[int] | Sequence[str] | None"
"""All that a plugin is ever asked to bind. JSON and job records are text already, and the query casts them."""

Rows: TypeAlias = "list[dict[str, Any]]"

State: TypeAlias = Literal["idle", "in_transaction", "autocommit", "failed", "closed", "unknown"]


class Description(NamedTuple):
    """What is known of an external connection without asking the server."""

    driver: str
    """The driver that talks to the server, as its own project spells it: ``"psycopg"``, ``"asyncpg"``."""
    plugin: str
    """The plugin that takes the connection."""
    is_async: bool
    """Whether queries on it are awaited."""
    state: State
    """``"idle"``: the next statement opens a transaction; ``"in_transaction"``; ``"autocommit"``: each statement
    commits by itself; ``"failed"``: the transaction can only be rolled back; ``"closed"``; ``"unknown"``."""


@hookspec(firstresult=True)
def execute_on_external(
    conn: object, query: str, args: Mapping[str, Value]
) -> Rows | Awaitable[Rows] | None:
    """Run *query* on *conn*, inside the transaction that its owner has open.

    Stops at the first result that is not None. Write ``def``, never ``async def``: a coroutine is not None, so it
    would claim every connection; return the awaitable of an inner coroutine instead. Claim by the object's class
    alone (the claim is remembered), and refuse by its state. Never commit, roll back or close *conn*, and let the
    driver's errors through as they are.

    :param conn: the caller's object.
    :param query: SQL with ``%(name)s`` placeholders; a literal percent sign is doubled.
    :param args: the value of each placeholder, plain values only.
    :returns: each row as a dict (``[]`` for a statement without rows), an awaitable of that, or None if *conn* is
        not yours. JSON columns are text where the driver allows it; decoded values are accepted.
    :raises UnsupportedConnection: for an object of your driver that is no connection, such as a pool or a cursor.
    """


@hookspec(firstresult=True)
def describe_external(conn: object) -> Description | None:
    """Say what *conn* is and whether it is in a transaction, without touching the network.

    Asked before each statement, so it should be quick. Optional, but without it the transaction guard is blind, and
    a sync call on an async connection is noticed only once your plugin has returned an awaitable.

    :param conn: the caller's object.
    :returns: its description, or None if *conn* is not yours.
    :raises UnsupportedConnection: as in `execute_on_external`.
    """


@hookspec(firstresult=True)
def connect_external(
    pool: object,
) -> AbstractContextManager[object] | AbstractAsyncContextManager[object] | None:
    """Lend a connection from *pool* in a transaction of its own, committed on a clean exit and rolled back otherwise.

    What `procrastinate_extconn.PoolConnector` stands on. The context manager is sync or async as the pool is, and what
    it yields is taken by `execute_on_external`. Never open, resize or close *pool*.

    :param pool: the caller's pool or engine.
    :returns: a context manager that yields the connection, or None if *pool* is not yours.
    """
