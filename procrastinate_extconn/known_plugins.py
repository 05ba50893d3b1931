"""The plugins of this project whose distributions may not be installed, by the classes that they take."""

from __future__ import annotations

from collections.abc import Collection

from .classes import Classes

KNOWN: dict[str, tuple[str, ...]] = {
    "asyncpg": ("asyncpg.Connection", "asyncpg.pool.PoolConnectionProxy", "asyncpg.Pool"),
    "psycopg2": ("psycopg2.extensions.connection", "psycopg2.pool.AbstractConnectionPool"),
    "aiopg": ("aiopg.Connection", "aiopg.Pool"),
    "pg8000": ("pg8000.dbapi.Connection", "pg8000.native.Connection", "pg8000.legacy.Connection"),
    "psqlpy": ("psqlpy.Connection", "psqlpy.Transaction", "psqlpy.ConnectionPool"),
    "django": (
        "django.db.backends.base.base.BaseDatabaseWrapper",
        "django.utils.connection.ConnectionProxy",
    ),
    "tortoise": ("tortoise.backends.base.client.BaseDBAsyncClient",),
    "piccolo": ("piccolo.engine.postgres.PostgresTransaction", "piccolo.engine.Engine"),
    "peewee": ("peewee.PostgresqlDatabase", "peewee.DatabaseProxy"),
}
"""The drivers whose plugin is a package of its own, by the classes that give them away."""

_DRIVERS = Classes({path: driver for driver, paths in KNOWN.items() for path in paths})


def install_line(driver: str) -> str:
    """The command that installs the plugin for *driver*."""
    return f"pip install procrastinate-extconn-{driver}"


def missing_plugin(conn: object, installed: Collection[str]) -> str | None:
    """What to do where *conn* is of a driver whose plugin is a package that is not among the *installed* ones."""
    driver = _DRIVERS.find(conn)
    return None if driver is None or driver in installed else f"Run `{install_line(driver)}`."
