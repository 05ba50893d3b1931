"""A place for the demo's tables: a server of its own, or a database or schema of its own on a server that is there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from ...temporary_server import TemporaryServer
from ..server_address import ServerAddress
from .interrupts import Interrupts


@dataclass(frozen=True)
class Workspace:
    """Where the demo works."""

    address: ServerAddress
    what: str
    """What it is, for people."""
    schema: str | None = None
    """Where it is a schema, its name. It is on the search_path of `address`, as far as a driver reads that."""


@contextlib.contextmanager
def own_server(interrupts: Interrupts) -> Generator[Workspace]:
    """A PostgreSQL that lives as long as the block.

    :raises ServerError: if it does not start.
    """
    server = TemporaryServer()
    with _without_environment():
        try:
            with interrupts.allowed():
                server.start()
            yield Workspace(ServerAddress(server.dsn()), "started for the demo")
        finally:
            server.stop()


@contextlib.contextmanager
def _without_environment() -> Generator[None]:
    """Take away PGHOSTADDR, PGOPTIONS, PGSSLMODE and the like: they are meant for another server."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(taken)


class NotRemoved(RuntimeError):
    """What the demo made on a server is still there."""


@contextlib.contextmanager
def on_server(address: ServerAddress) -> Generator[Workspace]:
    """A database on a server that is there, or where that cannot be, a schema. Removed after the block.

    :raises psycopg.Error: if the server is not reached, or allows neither.
    :raises NotRemoved: if it does not allow to remove it.
    """
    with psycopg.connect(address.dsn, autocommit=True) as conn:
        address.settle(conn)
        workspace, drop = _make(conn, address)
    try:
        yield workspace
    finally:
        try:
            with psycopg.connect(address.dsn, autocommit=True) as conn:
                conn.execute("SET client_min_messages = warning")  # not a line for each table
                conn.execute(drop)
        except psycopg.Error as exc:
            reason = address.harmless(str(exc).strip())
            raise NotRemoved(
                f"what the demo made {workspace.what} could not be removed: {reason}"
            ) from exc


def _make(conn: psycopg.Connection[Any], address: ServerAddress) -> tuple[Workspace, sql.Composed]:
    """The workspace, and the statement that removes it."""
    name = f"procrastinate_extconn_demo_{os.getpid()}_{secrets.token_hex(4)}"
    identifier = sql.Identifier(name)
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier)
    with contextlib.suppress(psycopg.Error):  # no right to make one
        # Unlike template1, template0 never has anybody in it, who would be in the way.
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
        own = ServerAddress(address.but(dbname=name))
        try:
            psycopg.connect(own.dsn).close()
        except psycopg.Error:  # a pooler or pg_hba.conf lets nobody in
            conn.execute(drop)
        else:
            return Workspace(own, f"in database {name}"), drop
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(identifier))
    own = ServerAddress(address.but(options=f"{address.get('options')} -csearch_path={name}"))
    what = f"in schema {name}, for want of a database of its own"
    return (
        Workspace(own, what, schema=name),
        sql.SQL("DROP SCHEMA {} CASCADE").format(identifier),
    )
