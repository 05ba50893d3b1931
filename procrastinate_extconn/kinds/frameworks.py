"""What wraps a driver, each with its plugin: Django, Tortoise, Piccolo, Peewee."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from .kind import Held, address_of, dbapi, with_plugin

_aliases = itertools.count(1)


@contextmanager
def _django(dsn: str) -> Generator[Held]:
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        import_module("django").setup()
    django_db = import_module("django.db")
    connections: Any = django_db.connections
    alias = f"held-{next(_aliases)}"
    address = address_of(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address.pop("database"),
        **{name.upper(): value for name, value in address.items()},
    }
    complete = type(connections)({"default": database})
    connections.databases[alias] = complete.databases["default"]
    conn = connections[alias]

    def end(*, rollback: bool) -> None:
        if rollback:
            conn.set_rollback(True)
        atomic.__exit__(None, None, None)

    try:
        atomic = django_db.transaction.atomic(using=alias)
        atomic.__enter__()
        held = dbapi(conn)
        yield held._replace(
            commit=partial(end, rollback=False), rollback=partial(end, rollback=True)
        )
        if conn.in_atomic_block:
            end(rollback=True)
    finally:
        conn.close()
        del connections[alias], connections.databases[alias]


@asynccontextmanager
async def _tortoise(dsn: str, driver: str) -> AsyncGenerator[Held]:
    from tortoise import Tortoise
    from tortoise.transactions import in_transaction

    database = {"engine": f"tortoise.backends.{driver}", "credentials": address_of(dsn)}
    # It wants a module with models, and warns of one without. Others may do the same meanwhile, so this is for good.
    warnings.filterwarnings("ignore", 'Module ".*" has no models', RuntimeWarning)
    await Tortoise.init(
        config={"connections": {"default": database}, "apps": {"none": {"models": [__name__]}}}
    )
    conn: Any
    try:
        async with in_transaction("default") as conn:

            async def execute(sql: str) -> list[tuple[Any, ...]]:
                return [tuple(row.values()) for row in await conn.execute_query_dict(sql)]

            yield Held(conn, execute, conn.commit, conn.rollback)
            if not conn._finalized:
                await conn.rollback()
    finally:
        await Tortoise.close_connections()


@asynccontextmanager
async def _piccolo(dsn: str) -> AsyncGenerator[Held]:
    # Older versions create one, unless told otherwise.
    engine = import_module("piccolo.engine.postgres").PostgresEngine(address_of(dsn), extensions=())
    async with engine.transaction() as transaction:

        async def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, await transaction.connection.fetch(sql)))

        yield Held(transaction, execute, transaction.commit, transaction.rollback)
        if transaction.connection.is_in_transaction():
            await transaction.rollback()


@contextmanager
def _peewee(dsn: str, prefer_psycopg3: bool) -> Generator[Held]:
    from peewee import PostgresqlDatabase

    database: Any = PostgresqlDatabase(**address_of(dsn), prefer_psycopg3=prefer_psycopg3)
    with database.connection_context():
        database.session_start()

        def execute(sql: str) -> list[tuple[Any, ...]]:
            cursor = database.execute_sql(sql)
            return cursor.fetchall() if cursor.description else []

        try:
            yield Held(database, execute, database.session_commit, database.session_rollback)
        finally:
            database.session_rollback()


_ASYNCPG = ("asyncpg", "procrastinate_extconn_asyncpg")

KINDS = (
    with_plugin("django", "django", False, _django, "django"),
    with_plugin(
        "tortoise-asyncpg",
        "tortoise",
        True,
        partial(_tortoise, driver="asyncpg"),
        "tortoise",
        *_ASYNCPG,
    ),
    with_plugin(
        "tortoise-psycopg",
        "tortoise",
        True,
        partial(_tortoise, driver="psycopg"),
        "tortoise",
        "psycopg",
    ),
    with_plugin("piccolo", "piccolo", True, _piccolo, "piccolo", *_ASYNCPG),
    with_plugin(
        "peewee-psycopg2",
        "peewee",
        False,
        partial(_peewee, prefer_psycopg3=False),
        "peewee",
        "psycopg2",
    ),
    with_plugin(
        "peewee-psycopg",
        "peewee",
        False,
        partial(_peewee, prefer_psycopg3=True),
        "peewee",
        "psycopg",
    ),
)
