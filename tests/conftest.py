"""The PostgreSQL server that the tests run on, and clean databases with Procrastinate's schema."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from holding import (  # noqa: F401 - fixtures
    app,
    async_kind,
    driver,
    external,
    installed,
    kind,
    sync_kind,
    task,
    watch,
)
from installing import fresh, layer_off, site  # noqa: F401 - fixtures
from procrastinate.schema import SchemaManager
from psycopg.sql import SQL, Identifier

from procrastinate_extconn.temporary_server import ServerError, bundled_bin_dir
from procrastinate_extconn.testing.server import VARIABLE, database_dsn, server_dsn


def pytest_report_header() -> str:
    """Name the server: the one that was given, or the one that starts when a test needs it."""
    try:
        if VARIABLE in os.environ:
            with psycopg.connect(os.environ[VARIABLE]) as conn:
                version = conn.info.parameter_status("server_version")
            return f"PostgreSQL: {version} ({VARIABLE})"
        postgres = str(bundled_bin_dir() / "postgres")
        answer = subprocess.run([postgres, "--version"], check=True, capture_output=True, text=True)
        return f"PostgreSQL: {answer.stdout.split()[-1]} (embedded)"
    except (psycopg.Error, ServerError) as exc:
        return f"PostgreSQL: none ({exc})"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Share one server among the workers of pytest-xdist, which inherit the environment."""
    os.environ[VARIABLE] = server_dsn(config)


class Databases:
    """Databases of this run, or of this pytest-xdist worker, on a server that others may use too."""

    def __init__(self, dsn: str, conn: psycopg.Connection[Any]) -> None:
        self._dsn = dsn
        self._conn = conn
        self._names = (f"extconn_{secrets.token_hex(4)}_{n}" for n in itertools.count())

    @contextlib.contextmanager
    def create(self, template: str) -> Iterator[str]:
        """Make a database like *template*, give its name, and drop it in the end."""
        name = next(self._names)
        query = SQL("CREATE DATABASE {} TEMPLATE {}")
        self._conn.execute(query.format(Identifier(name), Identifier(template)))
        try:
            yield name
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Drop a database.

        The server waits for every session, also for one that is still in authentication: up to a minute. If a test
        cancelled a connection attempt, the collector closes its socket.
        """
        drop = SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name))
        self._conn.execute("SET statement_timeout = '2s'")
        try:
            self._conn.execute(drop)
        except psycopg.errors.QueryCanceled:
            self._conn.execute("RESET statement_timeout")
            gc.collect()
            self._conn.execute(drop)
        else:
            self._conn.execute("RESET statement_timeout")

    def dsn(self, name: str) -> str:
        """Return the URI of a database."""
        return database_dsn(self._dsn, name)


@pytest.fixture(scope="session")
def databases(pytestconfig: pytest.Config) -> Iterator[Databases]:
    """Make databases on the server of this run."""
    dsn = server_dsn(pytestconfig)
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Databases(dsn, conn)


@pytest.fixture(scope="session")
def template(databases: Databases) -> Iterator[str]:
    """Name a database that holds Procrastinate's schema and a table of orders."""
    with databases.create("template0") as name:
        with psycopg.connect(databases.dsn(name)) as conn:
            conn.execute(SchemaManager.get_schema())
            conn.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
        yield name


@pytest.fixture(scope="module")
def new_database(databases: Databases, template: str) -> Iterator[Callable[[], str]]:
    """Make clean databases that last as long as the module."""
    with contextlib.ExitStack() as stack:
        yield lambda: databases.dsn(stack.enter_context(databases.create(template)))


@pytest.fixture
def dsn(databases: Databases, template: str) -> Iterator[str]:
    """Address a clean database, which is this test's own."""
    with databases.create(template) as name:
        yield databases.dsn(name)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """Address a database with nothing in it, not even Procrastinate's schema."""
    with databases.create("template0") as name:
        yield databases.dsn(name)
