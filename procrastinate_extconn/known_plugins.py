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
    "outbox": (
        "sqlite3.Connection",
        "aiosqlite.Connection",
        "pymysql.connections.Connection",
        "MySQLdb.connections.Connection",
        "mariadb.connections.Connection",
        "aiomysql.connection.Connection",
        "asyncmy.connection.Connection",
    ),
}
"""The drivers whose plugin is a package of its own, by the classes that give them away."""

_DRIVERS = Classes({path: driver for driver, paths in KNOWN.items() for path in paths})


RELEASED = False
"""Whether the distributions are on the package index. Set it with a release, and run ``docs/install_lines.py``."""


def install_line(driver: str | None = None, extras: str = "") -> str:
    """The command that installs the plugin for *driver*, or procrastinate-extconn itself.

    :param extras: such as ``"cli"``.
    """
    suffix = f"[{extras}]" if extras else ""
    if RELEASED:
        target = "procrastinate-extconn" + (f"-{driver}" if driver else "") + suffix
    else:
        target = (f"./plugins/{driver}" if driver else ".") + suffix
    return f"pip install '{target}'" if extras else f"pip install {target}"


def where() -> str:
    """Where to run `install_line`, to be put behind it."""
    return "" if RELEASED else " in a clone of procrastinate-extconn"


def missing_plugin(conn: object, installed: Collection[str]) -> str | None:
    """What to do where *conn* is of a driver whose plugin is a package that is not among the *installed* ones."""
    driver = _DRIVERS.find(conn)
    if driver is None or driver in installed:
        return None
    return f"Install procrastinate-extconn-{driver}: run `{install_line(driver)}`{where()}."
