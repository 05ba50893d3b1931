"""The plugin that is asked last: it says why nobody takes the object, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

from .classes import Classes
from .exceptions import UnsupportedConnection
from .hookspecs import Value, hookimpl

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

# What leads to a connection whatever the driver. A class of somebody's own that can be awaited or entered is not here:
# it may well be a connection.
_YET_TO_BE = Classes(
    {
        "builtins.str": "A DSN is not a connection: open one with your driver, and pass that.",
        "collections.abc.Coroutine": "Await it, and pass what that gives.",
        "asyncio.Future": "Await it, and pass what that gives.",
        "contextlib._GeneratorContextManager": "Enter it with `with`, and pass what that gives.",
        "contextlib._AsyncGeneratorContextManager": "Enter it with `async with`, and pass what that gives.",
    }
)


def install_line(driver: str) -> str:
    """The command that installs the plugin for *driver*."""
    return f"pip install procrastinate-extconn-{driver}"


def missing_plugin(conn: object, installed: Collection[str]) -> str | None:
    """What to do where *conn* is of a driver whose plugin is a package that is not among the *installed* ones."""
    driver = _DRIVERS.find(conn)
    return None if driver is None or driver in installed else f"Run `{install_line(driver)}`."


def type_name(cls: type) -> str:
    """*cls* as errors name it."""
    return (
        f"{cls.__module__}.{cls.__qualname__}" if cls.__module__ != "builtins" else cls.__qualname__
    )


class Fallback:
    """Refuses what no plugin took.

    :param asked: gives the names of the plugins that were asked.
    """

    def __init__(self, asked: Callable[[], list[str]]) -> None:
        self._asked = asked

    @hookimpl(trylast=True)
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Value]) -> NoReturn:
        raise self.refusal(conn)

    def refusal(self, conn: object) -> UnsupportedConnection:
        asked = self._asked()
        advice = (
            missing_plugin(conn, asked)
            or _YET_TO_BE.find(conn)
            or 'Pass an open connection, or write a plugin: see "Write a driver plugin" in the documentation.'
        )
        return UnsupportedConnection(
            f"procrastinate-extconn does not support external connections of type {type_name(type(conn))}: "
            f"no plugin takes it (asked: {', '.join(asked)}). {advice}"
        )
