"""Servers of the fault tests' own, and databases on them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from procrastinate.schema import SchemaManager
from psycopg.sql import SQL, Composed, Identifier

from procrastinate_extconn.temporary_server import TemporaryServer


@contextlib.contextmanager
def new_database(server: TemporaryServer, options: str = "") -> Iterator[str]:
    """Address a database with Procrastinate's schema and a table of orders.

    :param options: the end of ``CREATE DATABASE``.
    """
    name = f"faults_{secrets.token_hex(4)}"
    identifier = Identifier(name)
    run(server, SQL("CREATE DATABASE {} " + options).format(identifier))
    with psycopg.connect(server.dsn(name)) as conn:
        # There is a dash in a comment, which is not in every encoding.
        conn.execute(SchemaManager.get_schema().encode("ascii", "replace").decode())
        conn.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    try:
        yield server.dsn(name)
    finally:
        run(server, SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def run(server: TemporaryServer, statement: Composed) -> None:
    """Run a statement on a connection of its own: the server may have died since the last one."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(statement)
