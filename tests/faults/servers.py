"""Servers of the fault tests' own, and databases on them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from procrastinate.schema import SchemaManager
from psycopg.sql import SQL, Identifier

from procrastinate_extconn.embedded import TemporaryServer


@contextlib.contextmanager
def new_database(server: TemporaryServer, options: str = "") -> Iterator[str]:
    """Address a database with Procrastinate's schema and a table of orders.

    :param options: the end of ``CREATE DATABASE``.
    """
    name = f"faults_{secrets.token_hex(4)}"
    identifier = Identifier(name)
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(SQL("CREATE DATABASE {} " + options).format(identifier))
        with psycopg.connect(server.dsn(name)) as there:
            # There is a dash in a comment, which is not in every encoding.
            there.execute(SchemaManager.get_schema().encode("ascii", "replace").decode())
            there.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
        try:
            yield server.dsn(name)
        finally:
            conn.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
